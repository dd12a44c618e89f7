"""The claims of the source documents, as `workflow/claims/*.yaml` declares them, and the rows that each is about.

A claim compares pairs of rows that differ in nothing but what it names, or follows one parameter through rows that are
alike in all else. Rows are chosen by the parameters of their axis values, not by the names that a configuration gives
these, so that one claim is tested on every grid that has such rows. No torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.measures import metrics
from ddpm.pipeline.registry import AXES, Files
from ddpm.pipeline.results import CLAIMS
from ddpm.tables.columns import OURS
from ddpm.tables.documents import DOCUMENTS, cited
from ddpm.tables.selectors import ANY, Row, Selector, Values, fitting, mistakes, parameters, values_of

OVER = "_over_topline"
REQUIRED = ("says", "sources", "compare", "column", "direction")
KEYS = {*REQUIRED, "against", "along", "margin", "published", "note"}


@dataclass(frozen=True)
class Claim:
    """One sentence of a document, and the test of it.

    compare, against: rows of the first have less, or more, in `column` than those of the second that are their pairs.
    along: axis and parameter; instead of `against`: in rows of `compare`, `column` falls or rises with it.
    margin: how much worse than `against` still agrees with the claim: a factor above 1 of distances, a difference above
    0 of all else.
    """

    name: str
    says: str
    sources: tuple[str, ...]
    column: str
    direction: str
    compare: Selector
    against: Selector | None
    along: tuple[str, str] | None
    margin: float | None
    published: str
    note: str

    @property
    def ratio(self) -> bool:
        return is_distance(self.column)


def is_distance(column: str) -> bool:
    """Distances are compared by their ratio, everything else by its difference."""
    declared = metrics().get(column.removesuffix(OVER))
    return declared is not None and declared["distance"]


# ---- reading ------------------------------------------------------------------------------------------------


def read(files: Files = (), folder: Path = CLAIMS) -> list[Claim]:
    """Every claim of the folder; UserError names all mistakes, each by its file and key. `files`: own methods."""
    found, wrong = {}, []
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = config.load(path, "file of claims")
        except UserError as e:
            wrong.append(str(e))
            continue
        for name, entry in content.items():
            mistakes = [f"{path}: {name}{'.' if key else ''}{key}: {why}" for key, why in _mistakes(entry, files)]
            if name in found:
                mistakes.append(f"{path}: {name}: a claim of this name stands in another file; give it another")
            wrong += mistakes
            if not mistakes:
                found[name] = _claim(str(name), entry)
    if wrong:
        raise UserError("\n".join(wrong))
    return list(found.values())


def _claim(name: str, entry: dict) -> Claim:
    axis = tuple(entry["along"].split(".")) if "along" in entry else None
    return Claim(
        name=name,
        says=entry["says"],
        sources=tuple(map(cited, entry["sources"])),
        column=entry["column"],
        direction=entry["direction"],
        compare=entry["compare"],
        against=entry.get("against"),
        along=axis,
        margin=entry.get("margin"),
        published=entry.get("published", ""),
        note=entry.get("note", ""),
    )


def _mistakes(entry: Any, files: Files) -> Iterator[tuple[str, str]]:
    """Keys of a claim and what is wrong with their values."""
    if not isinstance(entry, dict):
        yield "", f"{entry!r}; it must be a mapping with the keys {', '.join(REQUIRED)}"
        return
    for key in entry.keys() - KEYS:
        yield str(key), f"unknown key; known are {', '.join(sorted(KEYS))}"
    for key in sorted(set(REQUIRED) - entry.keys()):
        yield key, "missing"
    if ("against" in entry) == ("along" in entry):
        yield "against", "a claim has either `against`, other rows, or `along`, AXIS.PARAMETER, and not both"
    for key, (fits, wanted) in _forms().items():
        if key in entry and not fits(entry[key]):
            yield key, f"{entry[key]!r}; it must be {wanted}"
    if is_distance(str(entry.get("column"))) and isinstance(at := entry.get("margin"), int | float) and 0 < at <= 1:
        yield "margin", f"{at!r}; of a distance it is a factor, how much worse still agrees: it must be above 1"
    yield from _sources(entry.get("sources", []))
    for key in ("compare", "against"):
        yield from mistakes(key, entry.get(key, {}), files)
    if "along" in entry:
        axis, _, parameter = str(entry["along"]).partition(".")
        if axis not in AXES or parameter not in parameters(axis, files):
            yield "along", f"{entry['along']!r}; it must be AXIS.PARAMETER, such as sampler.steps or guidance.weight"


def _forms() -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Key → whether a value is right, and what would be."""
    measured = [*OURS.measures, *(f"{name}{OVER}" for name in OURS.toplined)]
    return {
        **dict.fromkeys(("says", "published", "note"), (lambda value: isinstance(value, str), "text")),
        "column": (measured.__contains__, f"a measured column: {', '.join(measured)}"),
        "direction": (("less", "more").__contains__, "less or more"),
        "margin": (lambda value: isinstance(value, int | float) and value > 0, "a positive number"),
    }


def _sources(sources: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a claim's places in the documents."""
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        yield "sources", f"{sources!r}; it must be a list of {{paper, document, place}}"
        return
    for i, source in enumerate(sources):
        if source.keys() != {"paper", "document", "place"}:
            yield f"sources.{i}", f"has the keys {', '.join(map(str, source))}; it must have paper, document, place"
        elif source["document"] not in list(DOCUMENTS):
            yield (
                f"sources.{i}.document",
                f"{source['document']!r}; it must be one of {', '.join(DOCUMENTS)}, in quotes",
            )


# ---- rows ---------------------------------------------------------------------------------------------------


def groups(claim: Claim, grid: Grid) -> list[list[Row]]:
    """What a claim is tested on: pairs (compare, against), or, `along` a parameter, rows in its order."""
    # Where labels play no part, there is no accuracy of theirs.
    cells = [c for c in grid.runs.values() if claim.column != "label_accuracy" or grid.is_given_classes(c)]
    rows = {cell.row: values_of(cell.row, grid) for cell in cells}
    chosen = fitting(rows, claim.compare)
    if claim.against is None:
        return _sequences(claim, chosen)
    free = _free(claim.compare, claim.against)
    pairs = product(chosen.items(), fitting(rows, claim.against).items())
    return [[row, other] for (row, a), (other, b) in pairs if row != other and _alike(a, b, free)]


def _sequences(claim: Claim, rows: dict[Row, Values]) -> list[list[Row]]:
    """Those of these rows that differ in nothing but the parameter of `along`, in its order."""
    assert claim.along is not None
    axis, parameter = claim.along
    place = {row: at for row, values in rows.items() if (at := values[axis].get(parameter)) is not None}
    free, found = _free(claim.compare, {axis: {parameter: ANY}}), list[list[Row]]()
    for row in sorted(place, key=lambda row: place[row]):
        group = next((g for g in found if _alike(rows[g[0]], rows[row], free)), None)
        if group is None:
            found.append([row])
        elif place[group[-1]] != place[row]:
            group.append(row)
    return [group for group in found if len(group) > 1]


def _free(one: Selector, other: Selector) -> dict[str, set[str]]:
    """Axis → the parameters in which two rows may differ: those that the selectors give different values, or `any`."""
    found: dict[str, set[str]] = {}
    for axis in one.keys() | other.keys():
        a, b = one.get(axis, {}), other.get(axis, {})
        found[axis] = {
            key for key in a.keys() | b.keys() if ANY in (a.get(key), b.get(key)) or a.get(key) != b.get(key)
        }
    return found


def _alike(one: Values, other: Values, free: dict[str, set[str]]) -> bool:
    """Whether two rows agree in every parameter that both have, but for those that may differ."""
    held = ((axis, key) for axis in AXES for key in one[axis].keys() & other[axis].keys() - free.get(axis, set()))
    return all(one[axis][key] == other[axis][key] for axis, key in held)
