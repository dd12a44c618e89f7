"""Published numbers beside ours: every table of the documents whole, and published.md, of their rows that we have."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import pandas as pd

from ddpm.pipeline.grid import Grid
from ddpm.pipeline.registry import AXES
from ddpm.tables.columns import OURS
from ddpm.tables.latex import latex
from ddpm.tables.markdown import markdown
from ddpm.tables.printed import ITEMS, NAMES, Printed, read_all
from ddpm.tables.selectors import Row, Values, files_of, fitting, values_of

ABSENT = "not in this grid"
REAL = "real data (topline)"
# Our columns of spreads that a document's ± is beside: over seeds, of IS over the parts that it is computed on.
SPREADS = OURS.spreads | {"inception_score": "inception_score_parts_std"}


@dataclass(frozen=True)
class Ours:
    """Our table, and the grid that says what its rows are; the first row is of real data."""

    table: pd.DataFrame
    grid: Grid

    @cached_property
    def _values(self) -> dict[Row, Values]:
        return {cell.row: values_of(cell.row, self.grid) for cell in self.grid.cells}

    @cached_property
    def _rows(self) -> dict[Row, pd.Series]:
        return {tuple(row[list(AXES)]): row for _, row in self.table.iterrows()}

    @property
    def real(self) -> pd.Series:
        return self.table.iloc[0]

    def rows(self, entry: dict) -> list[pd.Series]:
        """The rows that an entry's `cell` selects; of those that differ in the sampler alone the ones whose number of
        sampling steps is the nearest, by its logarithm, to what the entry's number was sampled with."""
        if "cell" not in entry:
            return []
        found = fitting(self._values, entry["cell"])
        return [self._rows[row] for row in (_nearest(found, entry["steps"]) if "steps" in entry else found)]

    def name(self, row: pd.Series) -> str:
        """A row as its cells are named, with its network where there are several."""
        several = self.table["network"].nunique() > 1
        return "/".join(row[list(AXES)[: 5 if several else 4]])


def _nearest(rows: dict[Row, Values], steps: int) -> list[Row]:
    """Those of each group of rows that agree on all axes but the sampler's whose steps are the nearest to these."""
    axis = list(AXES).index("sampler")
    far = {row: abs(math.log(values["sampler"].get("steps", steps) / steps)) for row, values in rows.items()}
    groups: dict[Row, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[:axis] + row[axis + 1 :], []).append(row)
    return [row for group in groups.values() for row in group if far[row] == min(map(far.__getitem__, group))]


@dataclass(frozen=True)
class Document:
    """One table of a document, all of its rows as text, ours beside them; `here`: how many of its rows this grid has.

    ours: the lines that are about rows of ours, the topline's included, whether this grid has them or not.
    """

    stem: str
    title: str
    caption: str
    frame: pd.DataFrame
    here: int
    ours: list[int]


# A line of a document's table: its row there, and one of ours that is of the same method; None where there is none.
Line = tuple[dict, pd.Series | None]


def documents(table: pd.DataFrame, grid: Grid) -> list[Document]:
    """Every table of workflow/published."""
    ours = Ours(table, grid)
    return [document(ours, stem, source) for stem, source in read_all(files_of(grid.config)).items()]


def document(ours: Ours, stem: str, source: dict) -> Document:
    """One table: what is printed, then ours in the same items; a row that we have several of has a line for each."""
    found = [(entry, ours.rows(entry)) for entry in source["rows"]]
    here = sum(bool(rows) for _, rows in found)
    lines: list[Line] = [(entry, row) for entry, rows in found for row in rows or (None,)]
    items = [item for item in _printed([row["published"] for row in source["rows"]]) if item in ours.table]
    if source["topline"] or (here and ours.real[items].notna().any()):
        top = {item: _top(value) for item, value in source["topline"].items()}
        lines.insert(0, ({"label": REAL, "published": top, "also": {}, "cell": {}}, ours.real))
    columns = {"": [entry["label"] for entry, _ in lines]} | _theirs(source, [entry for entry, _ in lines])
    if here:
        columns |= _ours(ours, lines, items)
    about = [i for i, (entry, _) in enumerate(lines) if "cell" in entry]
    caption = caption_of(ours, source, [row for _, rows in found for row in rows], items)
    return Document(stem, source["title"], caption, pd.DataFrame(columns), here, about)


def _top(value: float) -> Printed:
    return Printed(value, f"{value:.2f}")


def _printed(cells: list[dict]) -> list[str]:
    """The items that any of these rows has, in the order of `ITEMS`."""
    return [item for item in ITEMS if any(item in row for row in cells)]


# ---- columns ------------------------------------------------------------------------------------------------


def _theirs(source: dict, entries: list[dict]) -> dict[str, list[str]]:
    """A column for each item of each data set that is printed, and its multiple of the document's own topline; before
    them the sampling steps, where rows state them."""
    data, columns = source["dataset"], dict[str, list[str]]()
    if any("steps" in entry for entry in entries):
        columns["steps"] = [str(entry.get("steps", "")) for entry in entries]
    cells = {data: [entry["published"] for entry in entries]}
    cells |= {name: [entry["also"].get(name, {}) for entry in entries] for row in entries for name in row["also"]}
    for name, of in cells.items():
        tops = source["topline"] if name == data else {}
        for item in _printed(of):
            columns[f"{ITEMS[item]}, {NAMES.get(name, name)}"] = _column(of, item, Printed.__str__)
            if top := tops.get(item):
                columns[f"{ITEMS[item]} ÷ topline"] = _column(of, item, partial(Printed.over, top=top))
    return columns


def _column(cells: list[dict[str, Printed]], item: str, shown: Callable[[Printed], str]) -> list[str]:
    """One item of every row as text, empty where it has none."""
    return [shown(cell[item]) if item in cell else "" for cell in cells]


def _ours(ours: Ours, lines: list[Line], items: list[str]) -> dict[str, list[str]]:
    """Our rows by name, with their sampling steps, and our numbers in the items that are printed, with the multiple of
    what real data have."""
    rows = [row for _, row in lines]
    columns = {
        "ours": [_name(ours, entry, row) for entry, row in lines],
        "steps, ours": ["" if row is None or pd.isna(row["steps"]) else f"{row['steps']:.0f}" for row in rows],
    }
    for item in items:
        columns[f"{ITEMS[item]}, ours"] = [number(row, item) for row in rows]
        if item in OURS.toplined or item == "inception_score":
            columns[f"{ITEMS[item]} ÷ topline, ours"] = [over(row, item, ours.real) for row in rows]
    return columns


def _name(ours: Ours, entry: dict, row: pd.Series | None) -> str:
    """What of ours a line is about."""
    if row is None:
        return ABSENT if "cell" in entry else ""
    return "real data" if row is ours.real or pd.isna(row["schedule"]) else ours.name(row)


def over(row: pd.Series | None, column: str, real: pd.Series) -> str:
    """Our number as a multiple of what real data have: of the topline of the row's kind where there is one; empty where
    there is no number."""
    if row is None:
        return ""
    value = row[f"{column}_over_topline"] if column in OURS.toplined else row[column] / real[column]
    return "" if pd.isna(value) else f"{value:.2f}"


def number(row: pd.Series | None, column: str) -> str:
    """Our number with its spread and its interval, as far as there are any, and ≤ before a bound; a row without numbers
    says its status."""
    if row is None:
        return ""
    if pd.isna(row[column]):
        return row["status"] if row["status"] != "ok" else ""
    std, low, high = (row.get(name) for name in (SPREADS.get(column, ""), f"{column}_low", f"{column}_high"))
    bound = "≤ " if column == "nll_bits_per_dim" else ""
    spread = "" if std is None or pd.isna(std) else f" ± {std:.2f}"
    interval = "" if low is None or pd.isna(low) else f" ({low:.2f}–{high:.2f})"
    return f"{bound}{row[column]:.2f}{spread}{interval}"


# ---- text ---------------------------------------------------------------------------------------------------


def caption_of(ours: Ours, source: dict, rows: list[pd.Series], items: list[str]) -> str:
    """Where a table is from, whether ours can be compared with it, and what ours are."""
    data, theirs = ours.real["dataset"], NAMES.get(source["dataset"], source["dataset"])
    text = f"{source['source']}." + (f" {source['note']}" if "note" in source else "")
    if not rows:
        return f"{text} None of these rows is in this grid."
    if data == source["dataset"]:
        text += " Ours is of the same data, in features of a classifier of its own: FIDs are comparable only as"
    else:
        text += f" Ours is of {data} instead of {theirs}, in features of its own: numbers are comparable only as"
    text += " multiples of the topline, what real images of the same data get, and in their order."
    return f"{text} {_said(rows, items)}"


def _said(rows: list[pd.Series], items: list[str]) -> str:
    """How many samples our numbers of these items are of, of how large networks, and what stands beside them."""
    samples = dict.fromkeys(f"{row['samples']:.0f}" for row in rows if pd.notna(row["samples"]))
    sizes = dict.fromkeys(f"{row['parameters'] / 1e6:.2f}" for row in rows if pd.notna(row["parameters"]))
    seeds = max((row["seeds"] for row in rows if pd.notna(row["seeds"])), default=1)
    toplined = any(item in OURS.toplined for item in items)
    said = {
        f"N = {' or '.join(samples)} samples": bool(samples),
        f"networks of {' or '.join(sizes)} million parameters": bool(sizes),
        f"± the spread over {seeds:.0f} seeds": seeds > 1,
        "± of IS that over parts of the samples": "inception_score" in items,
        "in parentheses what 95 % of sets of samples give": toplined,
        "÷ the topline of each row's kind, as table.md has it": toplined,
        "≤ a variational bound": "nll_bits_per_dim" in items,
    }
    return f"Ours: {', '.join(text for text, shown in said.items() if shown)}."


def published_text(found: list[Document]) -> str:
    """published.md: the tables that have a row in this grid, of each the rows that are about methods of ours."""
    out = [_text(of, of.frame.iloc[of.ours]) for of in found if of.here]
    return "\n".join(out) or "No published table has a row in this grid.\n"


def _text(of: Document, frame: pd.DataFrame) -> str:
    shown = frame.loc[:, [bool(name == "" or (frame[name] != "").any()) for name in frame]].reset_index(drop=True)
    return f"# {of.title}\n\n{of.caption}\n\n{markdown(shown)}"


def files(found: list[Document]) -> Iterator[tuple[str, str]]:
    """The files of results/tables by name: each table as Markdown and as LaTeX."""
    for of in found:
        yield f"{of.stem}.md", f"# {of.title}\n\n{of.caption}\n\n{markdown(of.frame)}"
        yield f"{of.stem}.tex", latex(of.frame, f"{of.title}. {of.caption}", of.stem)
