"""Published numbers beside ours."""

import pandas as pd
import yaml

from ddpm.pipeline.results import PUBLISHED
from ddpm.tables.columns import OURS
from ddpm.tables.markdown import markdown


def published(table: pd.DataFrame, source: dict) -> pd.DataFrame:
    """A published table with our numbers beside it, both also as multiples of their own toplines (ours alone where none
    was published; ours by the topline of each row's kind); columns without any number are left out."""
    real, rows = table.iloc[0], []
    top = source.get("topline", {})

    def line(label: str, theirs: dict, ours: pd.Series | None) -> dict:
        row: dict[str, object] = {"row": label}
        for column, short in OURS.toplined.items():
            their, our = theirs.get(column), None if ours is None else ours[column]
            row[f"{short} published"], row[f"{short} ours"] = their, our
            row[f"{short}/top published"] = their / top[column] if their and column in top else None
            row[f"{short}/top ours"] = None if ours is None else ours[f"{column}_over_topline"]
        row["NLL published"] = theirs.get("nll_bits_per_dim")
        row["NLL ours"] = None if ours is None else ours["nll_bits_per_dim"]
        row["status"] = "not in this grid" if ours is None else ours["status"]
        return row

    rows.append(line("split topline (real data)", top, real))
    for entry in source["rows"]:
        match = table
        for axis, name in entry["cell"].items():
            match = match[match[axis] == name]
        rows.append(line(entry["label"], entry["published"], match.iloc[0] if len(match) else None))
    frame = pd.DataFrame(rows)
    frame = frame.astype({c: float for c in frame.columns if c not in ("row", "status")})
    return frame.dropna(axis="columns", how="all")


def published_text(table: pd.DataFrame) -> str:
    """Every published table of workflow/published that has a row in this grid, with ours beside it."""
    out, ours = [], table.loc[0, "dataset"]
    for path in sorted(PUBLISHED.glob("*.yaml")):
        source = yaml.safe_load(path.read_text(encoding="utf-8"))
        beside = published(table, source)
        if (beside["status"].iloc[1:] == "not in this grid").all():
            continue
        heading = f"# {source['title']}\n\n{source['source']} ({source['dataset']})."
        if source["dataset"] != ours:
            heading += f" Ours is `{ours}`: compare the order and the multiples of the topline, not the numbers."
        heading += " Multiples of ours are of the topline of each row's kind, as table.md has it."
        out.append(f"{heading}\n\n{markdown(beside)}")
    return "\n".join(out) or "No published table has a row in this grid.\n"
