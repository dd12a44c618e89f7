"""The claims of the source documents, as `workflow/claims/*.yaml` declares them, and the rows that each is about.

A claim compares pairs of rows that differ in nothing but what it names, or follows one parameter through rows that are
alike in all else. Rows are chosen by the parameters of their axis values, not by the names that a configuration gives
these, so that one claim is tested on every grid that has such rows. No torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddpm.errors import UserError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.measures import metrics
from ddpm.pipeline.registry import AXES, PARTS, Files, known
from ddpm.pipeline.results import CLAIMS
from ddpm.tables.columns import OURS
from ddpm.tables.documents import DOCUMENTS, cited

Row = tuple[str, ...]  # the names on the axes
Selector = dict[str, dict[str, Any]]  # axis → parameter → its value, a list of values, or `any`
ANY = "any"
OVER = "_over_topline"
KEYS = {"says", "sources", "compare", "against", "along", "column", "direction", "margin", "published", "note"}


@dataclass(frozen=True)
class Claim:
    """One sentence of a document, and the test of it.

    compare, against: rows of the first have less, or more, in `column` than those of the second that are their pairs.
    along: axis and parameter; instead of `against`: in rows of `compare`, `column` falls or rises with it.
    margin: how much worse than `against` still agrees with the claim: a factor of distances, a difference of all else.
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
        """Distances are compared by their ratio, everything else by its difference."""
        declared = metrics().get(self.column.removesuffix(OVER))
        return declared is not None and declared["direction"] == "↓"


# ---- reading ------------------------------------------------------------------------------------------------


def read(files: Files = (), folder: Path = CLAIMS) -> list[Claim]:
    """Every claim of the folder; UserError names all mistakes, each by its file and key. `files`: own methods."""
    found, wrong = {}, []
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as e:
            wrong.append(f"{path}: not valid YAML ({' '.join(str(e).split())})")
            continue
        if not isinstance(content, dict):
            wrong.append(f"{path}: {type(content).__name__}; it must be a mapping of names to claims")
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
        yield "", f"{entry!r}; it must be a mapping with the keys says, sources, compare, column, direction"
        return
    for key in entry.keys() - KEYS:
        yield str(key), f"unknown key; known are {', '.join(sorted(KEYS))}"
    for key in sorted({"says", "sources", "compare", "column", "direction"} - entry.keys()):
        yield key, "missing"
    for key in ("says", "published", "note"):
        if not isinstance(entry.get(key, ""), str):
            yield key, f"{entry[key]!r}; it must be text"
    if ("against" in entry) == ("along" in entry):
        yield "against", "a claim has either `against`, other rows, or `along`, AXIS.PARAMETER, and not both"
    measured = [*OURS.measures, *(f"{name}{OVER}" for name in OURS.toplined)]
    if entry.get("column", measured[0]) not in measured:
        yield "column", f"{entry['column']!r}; it must be a measured column: {', '.join(measured)}"
    if entry.get("direction", "less") not in ("less", "more"):
        yield "direction", f"{entry['direction']!r}; it must be less or more"
    if "margin" in entry and (not isinstance(entry["margin"], int | float) or entry["margin"] <= 0):
        yield "margin", f"{entry['margin']!r}; it must be a positive number"
    yield from _sources(entry.get("sources", []))
    for key in ("compare", "against"):
        if key in entry:
            yield from _selector(key, entry[key], files)
    if "along" in entry:
        axis, _, parameter = str(entry["along"]).partition(".")
        if axis not in AXES or parameter not in _parameters(axis, files):
            yield "along", f"{entry['along']!r}; it must be AXIS.PARAMETER, such as sampler.steps or guidance.weight"


def _sources(sources: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a claim's places in the documents."""
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        yield "sources", f"{sources!r}; it must be a list of {{paper, document, place}}"
        return
    for i, source in enumerate(sources):
        if source.keys() != {"paper", "document", "place"}:
            yield f"sources.{i}", f"has the keys {', '.join(map(str, source))}; it must have paper, document, place"
        elif source["document"] not in DOCUMENTS:
            yield (
                f"sources.{i}.document",
                f"{source['document']!r}; it must be one of {', '.join(DOCUMENTS)}, in quotes",
            )


def _parameters(axis: str, files: Files) -> set[str]:
    """The parameters that values of an axis can have."""
    kinds = PARTS if axis == "objective" else (axis,)
    named = set(PARTS) if axis == "objective" else {"method"}
    return named | {name for kind in kinds for source in known(kind, files).values() for name in source.parameters}


def _selector(key: str, selector: Any, files: Files) -> Iterator[tuple[str, str]]:
    """What is wrong with a choice of rows."""
    if not isinstance(selector, dict) or not all(isinstance(value, dict) for value in selector.values()):
        yield key, f"{selector!r}; it must be AXIS: {{PARAMETER: VALUE}}, such as sampler: {{method: ddim, eta: 0.0}}"
        return
    for axis, wanted in selector.items():
        if axis not in AXES:
            yield f"{key}.{axis}", f"unknown axis; known are {', '.join(AXES)}"
            continue
        for parameter, value in wanted.items():
            where = f"{key}.{axis}.{parameter}"
            if parameter not in (possible := _parameters(axis, files)):
                yield where, f"unknown parameter; known are {', '.join(sorted(possible))}"
            elif parameter == "method" or (axis == "objective" and parameter in PARTS):
                methods = known(parameter if axis == "objective" else axis, files)
                for name in value if isinstance(value, list) else [value]:
                    if name not in (*methods, ANY):
                        yield where, f"{name!r}; it must be one of {', '.join(methods)}"


# ---- rows ---------------------------------------------------------------------------------------------------


def groups(claim: Claim, grid: Grid) -> list[list[Row]]:
    """What a claim is tested on: pairs (compare, against), or, `along` a parameter, rows in its order."""
    rows = list(dict.fromkeys(cell.row for cell in grid.runs.values()))
    chosen = [row for row in rows if _fits(row, claim.compare, grid)]
    if claim.against is not None:
        others, free = [row for row in rows if _fits(row, claim.against, grid)], _free(claim.compare, claim.against)
        return [[row, other] for row in chosen for other in others if row != other and _alike(row, other, free, grid)]
    assert claim.along is not None
    axis, parameter = claim.along
    at, free = list(AXES).index(axis), _free(claim.compare, {axis: {parameter: ANY}})
    place: dict[Row, Any] = {row: grid.axis(axis, row[at]).get(parameter) for row in chosen}
    found: list[list[Row]] = []
    for row in sorted((row for row in chosen if place[row] is not None), key=lambda row: place[row]):
        group = next((g for g in found if _alike(g[0], row, free, grid)), None)
        if group is None:
            found.append([row])
        elif place[group[-1]] != place[row]:
            group.append(row)
    return [group for group in found if len(group) > 1]


def _values(row: Row, grid: Grid) -> dict[str, dict[str, Any]]:
    return {axis: grid.axis(axis, name) for axis, name in zip(AXES, row, strict=True)}


def _fits(row: Row, selector: Selector, grid: Grid) -> bool:
    """Whether a row's axis values have the parameters that are asked for."""
    values = _values(row, grid)

    def has(axis: str, parameter: str, wanted: Any) -> bool:
        options = wanted if isinstance(wanted, list) else [wanted]
        return parameter in values[axis] and values[axis][parameter] in options

    asked = ((axis, k, v) for axis, wanted in selector.items() for k, v in wanted.items() if v != ANY)
    return all(has(*one) for one in asked)


def _free(one: Selector, other: Selector) -> dict[str, set[str]]:
    """Axis → the parameters in which two rows may differ: those that the selectors give different values, or `any`."""
    found: dict[str, set[str]] = {}
    for axis in one.keys() | other.keys():
        a, b = one.get(axis, {}), other.get(axis, {})
        found[axis] = {
            key for key in a.keys() | b.keys() if ANY in (a.get(key), b.get(key)) or a.get(key) != b.get(key)
        }
    return found


def _alike(one: Row, other: Row, free: dict[str, set[str]], grid: Grid) -> bool:
    """Whether two rows agree in every parameter that both have, but for those that may differ."""
    a, b = _values(one, grid), _values(other, grid)
    return all(
        a[axis][key] == b[axis][key] for axis in AXES for key in a[axis].keys() & b[axis].keys() - free.get(axis, set())
    )
