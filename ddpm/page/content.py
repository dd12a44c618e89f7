"""What stands on the page, as plain dictionaries and texts for the template."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ddpm import __version__
from ddpm.page import charts
from ddpm.pipeline import project
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.looks import LEAST
from ddpm.pipeline.registry import AXES
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import STAGES
from ddpm.pipeline.status import duration
from ddpm.tables import paired
from ddpm.tables.claims_text import ORDER, effect
from ddpm.tables.columns import FINISHED, Columns, columns_of
from ddpm.tables.markdown import features
from ddpm.tables.published import documents
from ddpm.tables.verdicts import ABSENT, Verdict
from ddpm.tables.winners import trainings, winners

WIDEST = 1500  # pixels of an embedded picture
LINES, CHARACTERS = 40, 4000  # of the end of a log, at most
# What explains a column and is shown beside its number, and what the page calls the others.
BESIDE = ("_std", "_standard_error")
CALLED = {
    "nfe": "NFE",
    "nll_bits_per_dim": "bits/dim",
    "nll_ode_bits_per_dim": "bits/dim, ODE",
    "nll_minus_histogram": "− histogram",
}
LESS = ("nll_bits_per_dim", "nll_ode_bits_per_dim", "nll_minus_histogram")  # beside the metrics: less is better


# ---- heading and verdicts -----------------------------------------------------------------------------------


def head(results: Results, table: pd.DataFrame) -> dict[str, Any]:
    """What all rows share."""
    grid, real = results.grid, table.iloc[0]
    ours = table.iloc[len(grid.baselines) : len(table) - len(results.external)]
    runs = ours[ours["status"] != "n/a"]
    seeds = sorted({len(grid.config["seeds"]), *map(int, runs["seeds"])})
    return {
        "dataset": real["dataset"],
        "done": int(runs["status"].isin(FINISHED).sum()),
        "of": len(runs),
        "networks": len(grid.networks),
        "seeds": seeds[0] if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
        "sampling_seeds": grid.sampling_seeds,
        "samples": None if pd.isna(real["samples"]) else int(real["samples"]),
        "features": features(grid, real),
        "several": int(runs["seeds"].max()) > 1,
        "version": __version__,
    }


def verdicts(found: list[Verdict]) -> list[dict[str, Any]]:
    """Every claim that this grid has rows for, what holds first."""
    here = sorted((v for v in found if v.verdict != ABSENT), key=lambda v: ORDER.index(v.verdict))
    return [
        {
            "verdict": v.verdict,
            "says": v.claim.says,
            "note": v.claim.note,
            "sources": "; ".join(v.claim.sources),
            "column": v.claim.column,
            "effect": effect(v),
            "published": v.claim.published,
            "seeds": v.seeds,
            "reason": v.reason,
            "chart": charts.interval(v.effect, v.low, v.high, v.boundary, v.claim.ratio),
        }
        for v in here
    ]


def few(found: list[Verdict]) -> dict[str, int] | None:
    """The seeds that claims have here and the least that decide one, where every claim lacks some."""
    most = max((v.seeds for v in found if v.verdict != ABSENT), default=LEAST)
    return {"seeds": most, "least": LEAST} if most < LEAST else None


def absent(found: list[Verdict]) -> list[str]:
    """The claims about rows that this grid does not have."""
    return [v.claim.says for v in found if v.verdict == ABSENT]


# ---- the table ----------------------------------------------------------------------------------------------


def titled(column: str, of: Columns) -> str:
    """What the page calls a column: a metric by its title."""
    base = column.removesuffix("_over_topline")
    declared = of.metrics.get(base)
    text = declared["title"] if declared else CALLED.get(column, column.replace("_", " "))
    return f"{text} ÷ topline" if column != base else text


def better(column: str, of: Columns) -> str:
    """↓ or ↑, empty where neither is better."""
    declared = of.metrics.get(column.removesuffix("_over_topline"))
    return declared["direction"] if declared else "↓" if column in LESS else ""


def columns(table: pd.DataFrame, of: Columns) -> list[dict[str, str]]:
    """The columns that the page shows, those of table.md: spreads and errors stand beside their numbers."""
    names = [c for c in of.read if not c.endswith(BESIDE) and c not in (*AXES, "reason") and table[c].notna().any()]
    return [{"name": c, "title": titled(c, of), "better": better(c, of)} for c in names]


def spread(row: pd.Series, column: str) -> str:
    """` ± 0.012`, over seeds where there are several, else the standard error; empty where neither is known."""
    base = column.removesuffix("_bits_per_dim")
    for end in ("_std", "_standard_error"):
        value = row.get(f"{base}{end}")
        if value is not None and pd.notna(value) and value > 1e-9:  # what is known exactly has no error
            return f"± {rounded(float(value))}" if value >= 0.0005 else "± < 0.001"
    return ""


def interval(row: pd.Series, column: str) -> str:
    """`0.27 – 0.33`, the ends of 95 % of samples; empty where they are not known."""
    ends = [row.get(f"{column}_{end}") for end in ("low", "high")]
    known = all(end is not None and pd.notna(end) for end in ends)
    return " – ".join(rounded(float(end)) for end in ends) if known else ""


def cell_of(row: pd.Series, column: str, best: bool) -> dict[str, Any]:
    """One number of the table: as it is shown, and as it is sorted by."""
    value = row[column]
    if isinstance(value, str) or pd.isna(value):
        text = value if isinstance(value, str) else ""
        return {"text": text, "sort": text, "beside": "", "range": "", "best": False}
    return {
        "text": rounded(value),
        "sort": repr(float(value)),
        "beside": spread(row, column),
        "range": interval(row, column),
        "best": best,
    }


def rounded(value: Any) -> str:
    """A number to the three decimals of table.md; a whole number of steps or images as it is."""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:.0f}"


def rows(results: Results, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every row of the table with what is behind it: pictures, curves, commands and records."""
    grid, of = results.grid, columns_of(results.grid.config)
    shown, first = columns(table, of), next(iter(of.metrics))
    best = winners(table, paired.differences(results), list(of.toplined), trainings(table, grid))
    behind: list[list[Cell]] = [[] for _ in grid.baselines]
    behind += [*grid.rows.values(), *([] for _ in results.external)]
    return [
        {
            "id": f"row-{i}",
            "name": named(row, cells),
            "baseline": not cells,
            "status": row["status"],
            "reason": row["reason"] if pd.notna(row["reason"]) else "",
            "numbers": [cell_of(row, c["name"], index in best.get(c["name"], ())) for c in shown],
            "score": score(row, first, of),
            "seeds": [seed(results, cell) for cell in cells if not cell.reason],
        }
        for i, ((index, row), cells) in enumerate(zip(table.iterrows(), behind, strict=True))
    ]


def named(row: pd.Series, cells: list[Cell]) -> str:
    """What a row is called: by its names on the axes, that of the default network left out."""
    names = [str(row[axis]) for axis in AXES if pd.notna(row[axis])]
    return " · ".join(names[: len(cells[0].parts)] if cells else names)


def score(row: pd.Series, metric: str, of: Columns) -> str:
    """`FID 0.306 (0.27 – 0.33)`: what stands below a row's picture."""
    if pd.isna(row[metric]):
        return row["status"]
    ends = interval(row, metric)
    return f"{of.metrics[metric]['title']} {rounded(float(row[metric]))}" + (f" ({ends})" if ends else "")


def seed(results: Results, cell: Cell) -> dict[str, Any]:
    """What lies behind one cell: its samples, its network's loss, and every job with command, log and record."""
    layout, network = results.layout, results.grid.network(cell).name
    drawn = layout.cell(cell.name) / "samples.png"
    there = results.valid("sample", cell.name) is not None and drawn.is_file()
    trained = results.valid("train", network)
    jobs = [job(results, stage, name) for stage, name in results.grid.row(cell) if name]
    return {
        "seed": f"{cell.seed}, sampling {cell.sampling}" if results.grid.sampling_seeds > 1 else cell.seed,
        "name": cell.name,
        "picture": picture(drawn) if there else "",
        "loss": charts.loss(pd.read_csv(layout.output("train", network, "loss"))) if trained else "",
        "jobs": jobs,
    }


def job(results: Results, stage: str, name: str) -> dict[str, str]:
    """One job: how it is run by hand, the end of its log, and its record."""
    layout, record = results.layout, results.record(stage, name)
    batch = results.grid.batch_of[name] if stage == "fidelity" else name
    return {
        "stage": stage,
        "name": name,
        "command": f"ddpm {stage} {name}" if STAGES[stage].called else "",
        "log": tail(layout.log(stage, batch)),
        "path": layout.record(stage, name).relative_to(layout.root).as_posix(),
        "state": "; ".join(map(str, results.todo.get((stage, name), ()))) or results.known(stage, name)["status"],
        "record": json.dumps(record, indent=1, ensure_ascii=False) if record else "",
    }


def tail(path: Path) -> str:
    """The last lines of a log as a terminal shows them, of a progress bar its last state; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]", "", "\n".join(lines[-LINES:]))
    return shown[-CHARACTERS:]


# ---- pictures, published tables, costs ----------------------------------------------------------------------


def picture(path: Path) -> str:
    """A PNG as a data URI, no wider than `WIDEST`."""
    with Image.open(path) as image:
        if image.width <= WIDEST:
            content = path.read_bytes()
        else:
            size = WIDEST, round(image.height * WIDEST / image.width)
            buffer = io.BytesIO()
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(256).save(buffer, "PNG", optimize=True)
            content = min(buffer.getvalue(), path.read_bytes(), key=len)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def figures(results: Results) -> list[dict[str, str]]:
    """The pictures of the whole grid that are of the results that lie there, each with the caption that the Snakemake
    report has."""
    if results.valid("figures") is None:
        return []
    found = []
    for name in results.grid.pictures:
        caption = project.find("workflow/report") / f"{name}.rst"
        text = " ".join(caption.read_text(encoding="utf-8").split())
        drawn = results.layout.root / "figures" / f"{name}.png"
        found.append({"name": name, "caption": text, "picture": picture(drawn)})
    return found


def published(table: pd.DataFrame, grid: Grid) -> list[dict[str, Any]]:
    """The documents' tables whole, ours beside them; those that this grid has rows of first."""
    return [
        {
            "title": of.title,
            "text": of.caption,
            "here": of.here,
            "columns": list(of.frame.columns),
            "rows": [list(map(str, row)) for row in of.frame.itertuples(index=False)],
        }
        for of in sorted(documents(table, grid), key=lambda of: not of.here)
    ]


def costs(table: pd.DataFrame) -> dict[str, Any]:
    """What all jobs cost, by stage."""
    by = table.groupby("stage", sort=False)
    stages = [
        {
            "stage": stage,
            "jobs": len(jobs),
            "total": duration(jobs["seconds"].sum()),
            "median": duration(jobs["seconds"].median()),
            "memory": f"{jobs['peak_memory_mb'].max():.0f} MiB",
            "device": ", ".join(dict.fromkeys(jobs["device"])),
        }
        for stage, jobs in (by if len(table) else ())
    ]
    return {"stages": stages, "total": duration(table["seconds"].sum()) if len(table) else ""}
