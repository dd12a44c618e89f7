"""Published numbers beside ours: published.md, of rows in this grid, and every table of the documents whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from ddpm.errors import UserError
from ddpm.pipeline.results import PUBLISHED
from ddpm.tables.columns import OURS
from ddpm.tables.latex import latex
from ddpm.tables.markdown import markdown
from ddpm.tables.printed import Printed, printed

# What documents print, in the order of the tables' columns → its heading. Those that our table has too have its names.
ITEMS = OURS.toplined | {
    "inception_score": "IS",
    "nll_bits_per_dim": "NLL",
    "nll_train": "NLL (train)",
    "v100_days": "V100 days",
}
NAMES = {
    "cifar10": "CIFAR-10",
    "imagenet": "ImageNet",
    "imagenet256": "ImageNet 256²",
    "celeba": "CelebA",
    "mnist": "MNIST",
    "lsun-bedroom": "LSUN Bedroom",
    "lsun-church": "LSUN Church",
}
ABSENT = "not in this grid"


def read(path: Path) -> dict:
    """One file of workflow/published, every printed number as a `Printed`; UserError where it is wrong."""
    source = yaml.safe_load(path.read_text(encoding="utf-8"))

    def numbers(found: dict, where: str) -> dict[str, Printed]:
        if wrong := sorted(set(found) - set(ITEMS)):
            raise UserError(f"{path}: {where}: {wrong[0]!r} is no item; known are {', '.join(ITEMS)}")
        return {item: printed(value, f"{path}: {where}.{item}") for item, value in found.items()}

    for row in source["rows"]:
        also = row.get("also", {})
        row["published"] = numbers(row["published"], row["label"])
        row["also"] = {data: numbers(found, f"{row['label']}, {data}") for data, found in also.items()}
    return source


def ours(table: pd.DataFrame, entry: dict) -> pd.Series | None:
    """The row of our table that an entry names; None where it names none, or this grid has none."""
    if "cell" not in entry:
        return None
    match = table
    for axis, name in entry["cell"].items():
        match = match[match[axis] == name]
    return match.iloc[0] if len(match) else None


# ---- published.md -------------------------------------------------------------------------------------------


def published(table: pd.DataFrame, source: dict) -> pd.DataFrame:
    """A published table with our numbers beside it, both also as multiples of their own toplines (ours alone where none
    was published; ours by the topline of each row's kind); rows of other models, and columns without any number, are
    left out."""
    real, rows = table.iloc[0], []
    top = source.get("topline", {})

    def line(label: str, theirs: dict, our: pd.Series | None) -> dict:
        row: dict[str, object] = {"row": label}
        for column, short in OURS.toplined.items():
            their = theirs.get(column)
            row[f"{short} published"], row[f"{short} ours"] = their, None if our is None else our[column]
            row[f"{short}/top published"] = their / top[column] if their and column in top else None
            row[f"{short}/top ours"] = None if our is None else our[f"{column}_over_topline"]
        row["NLL published"] = theirs.get("nll_bits_per_dim")
        row["NLL ours"] = None if our is None else our["nll_bits_per_dim"]
        row["status"] = ABSENT if our is None else our["status"]
        return row

    rows.append(line("split topline (real data)", top, real))
    for entry in source["rows"]:
        if "cell" in entry:
            values = {k: v.value if isinstance(v, Printed) else v for k, v in entry["published"].items()}
            rows.append(line(entry["label"], values, ours(table, entry)))
    frame = pd.DataFrame(rows)
    frame = frame.astype({c: float for c in frame.columns if c not in ("row", "status")})
    return frame.dropna(axis="columns", how="all")


def tables(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Every published table that has a row in this grid: title, caption, with ours beside it."""
    data = table.loc[0, "dataset"]
    for path in sorted(PUBLISHED.glob("*.yaml")):
        source = read(path)
        beside = published(table, source)
        if (beside["status"].iloc[1:] == ABSENT).all():
            continue
        caption = f"{source['source']} ({source['dataset']})."
        if source["dataset"] != data:
            caption += f" Ours is `{data}`: compare the order and the multiples of the topline, not the numbers."
        caption += " Multiples of ours are of the topline of each row's kind, as table.md has it."
        yield source["title"], caption, beside


def published_text(table: pd.DataFrame) -> str:
    """published.md."""
    out = [f"# {title}\n\n{caption}\n\n{markdown(beside)}" for title, caption, beside in tables(table)]
    return "\n".join(out) or "No published table has a row in this grid.\n"


# ---- the documents' tables, whole ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One table of a document, all of its rows as text, ours beside them; `here`: how many rows this grid has."""

    stem: str
    title: str
    caption: str
    frame: pd.DataFrame
    here: int


def documents(table: pd.DataFrame) -> list[Document]:
    """Every table of workflow/published."""
    return [document(table, path) for path in sorted(PUBLISHED.glob("*.yaml"))]


def document(table: pd.DataFrame, path: Path) -> Document:
    """One table: what is printed, then ours in the same items."""
    source = read(path)
    matches = [ours(table, row) for row in source["rows"]]
    here = sum(match is not None for match in matches)
    columns = {"": [row["label"] for row in source["rows"]]} | _theirs(source)
    if here:
        columns |= _ours(table, source, matches)
    return Document(path.stem, source["title"], caption_of(table, source, here), pd.DataFrame(columns), here)


def _printed(cells: list[dict]) -> list[str]:
    """The items that any of these rows has, in the order of `ITEMS`."""
    return [item for item in ITEMS if any(item in row for row in cells)]


def _theirs(source: dict) -> dict[str, list[str]]:
    """A column for each item of each data set that is printed, and its multiple of the document's own topline."""
    data, rows, columns = source["dataset"], source["rows"], {}
    cells = {data: [row["published"] for row in rows]}
    cells |= {name: [row["also"].get(name, {}) for row in rows] for row in rows for name in row["also"]}
    for name, of in cells.items():
        tops = source.get("topline", {}) if name == data else {}
        for item in _printed(of):
            columns[f"{ITEMS[item]}, {NAMES.get(name, name)}"] = _column(of, item, Printed.__str__)
            if top := tops.get(item):
                columns[f"{ITEMS[item]} ÷ topline"] = _column(of, item, partial(Printed.over, top=top))
    return columns


def _column(cells: list[dict[str, Printed]], item: str, shown: Callable[[Printed], str]) -> list[str]:
    """One item of every row as text, empty where it has none."""
    return [shown(cell[item]) if item in cell else "" for cell in cells]


def _ours(table: pd.DataFrame, source: dict, matches: list[pd.Series | None]) -> dict[str, list[str]]:
    """Our numbers in the items that are printed, with the multiple of their own topline where there is one."""
    columns = {}
    for item in (item for item in _printed([row["published"] for row in source["rows"]]) if item in table):
        columns[f"{ITEMS[item]}, ours"] = [mean(match, item) for match in matches]
        if item in OURS.toplined:
            columns[f"{ITEMS[item]} ÷ topline, ours"] = [over(match, item) for match in matches]
    return columns


def over(row: pd.Series | None, column: str) -> str:
    """Our number as a multiple of its topline; empty where there is none."""
    value = None if row is None else row[f"{column}_over_topline"]
    return "" if pd.isna(value) else f"{value:.2f}"


def mean(row: pd.Series | None, column: str) -> str:
    """Our number with its spread over seeds, if there is one; a row without numbers says its status."""
    if row is None:
        return ""
    if pd.isna(row[column]):
        return row["status"] if row["status"] != "ok" else ""
    std = row.get(OURS.spreads.get(column, ""))
    return f"{row[column]:.2f}" + ("" if std is None or pd.isna(std) else f" ± {std:.2f}")


def caption_of(table: pd.DataFrame, source: dict, here: int) -> str:
    """Where a table is from, and whether ours can be compared with it."""
    data, theirs = table.loc[0, "dataset"], NAMES.get(source["dataset"], source["dataset"])
    text = f"{source['source']}." + (f" {source['note']}" if "note" in source else "")
    if not here:
        return f"{text} None of these rows is in this grid."
    if data == source["dataset"]:
        text += " Ours is of the same data, in features of a classifier of its own: FIDs are comparable but as"
    else:
        text += f" Ours is of {data} instead of {theirs}, in features of its own: no number is comparable but as"
    return f"{text} multiples of the topline, what real images of the same data get, and in their order."


def files(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The files of results/tables by name: each table as Markdown and as LaTeX."""
    for of in documents(table):
        yield f"{of.stem}.md", f"# {of.title}\n\n{of.caption}\n\n{markdown(of.frame)}"
        yield f"{of.stem}.tex", latex(of.frame, f"{of.title}. {of.caption}", of.stem)
