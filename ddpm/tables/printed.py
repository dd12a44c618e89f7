"""Published tables as `workflow/published/*.yaml` declare them, every number as it was printed. No torch."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.registry import Files, known
from ddpm.pipeline.results import PUBLISHED
from ddpm.tables import selectors
from ddpm.tables.columns import OURS

# What documents print, in the order of the tables' columns → its heading. Those that our table has too have its names.
ITEMS = OURS.toplined | {
    "inception_score": "IS",
    "nll_bits_per_dim": "NLL",
    "nll_train": "NLL (train)",
    "v100_days": "V100 days",
}
# The data that documents print numbers of → their titles.
NAMES = {
    "cifar10": "CIFAR-10",
    "imagenet": "ImageNet",
    "imagenet256": "ImageNet 256²",
    "celeba": "CelebA",
    "mnist": "MNIST",
    "lsun-bedroom": "LSUN Bedroom",
    "lsun-church": "LSUN Church",
}
# The keys of a file and of its rows → whether they are required.
KEYS = {"title": True, "source": True, "dataset": True, "rows": True, "note": False, "topline": False, "cell": False}
ROW = {"label": True, "published": True, "also": False, "cell": False, "steps": False}
FORM = re.compile(r"(≤ ?)?(\d+(?:\.\d+)?)(?: ?± ?(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Printed:
    """`9.46 ± 0.11`, `≤ 3.75` or 3.17: the number, the text that stands for it, and what was printed beside it."""

    value: float
    text: str
    spread: float | None = None
    bound: bool = False

    def __str__(self) -> str:
        return self.text

    def over(self, top: float) -> str:
        """The number as a multiple of a topline."""
        return f"{self.value / top:.1f}"


def printed(found: object) -> Printed:
    """One entry of a published table; ValueError where it is neither a number nor such a text."""
    if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
        return Printed(float(found), f"{found:.2f}" if isinstance(found, float) else str(found))
    match = FORM.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise ValueError(f"{found!r}; it must be a number, or text such as '9.46 ± 0.11' or '≤ 3.75'")
    bound, value, spread = match.groups()
    text = f"{'≤ ' if bound else ''}{value}{f' ± {spread}' if spread else ''}"
    return Printed(float(value), text, float(spread) if spread else None, bool(bound))


# ---- files --------------------------------------------------------------------------------------------------


def read_all(files: Files = (), folder: Path = PUBLISHED) -> dict[str, dict]:
    """Every file of the folder by its stem; UserError names all mistakes, each by its file and key. `files`: own
    methods."""
    found, wrong = {}, []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found[path.stem] = read(path, files)
        except UserError as e:
            wrong.append(str(e))
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def read(path: Path, files: Files = ()) -> dict:
    """One file, every printed number as a `Printed`; UserError names all mistakes."""
    source = config.load(path, "published table")
    if wrong := [f"{path}: {key}: {why}" for key, why in _mistakes(source, files)]:
        raise UserError("\n".join(wrong))
    rows = [_row(row, source.get("cell", {})) for row in source["rows"]]
    return source | {"rows": rows, "topline": source.get("topline", {})}


def _row(row: dict, shared: selectors.Selector) -> dict:
    """A row with its numbers; its `cell`, if it has one, adds to what all rows of the file are selected by."""
    also = {data: _numbers(found) for data, found in row.get("also", {}).items()}
    cell = {"cell": config.merge(shared, row["cell"])} if "cell" in row else {}
    return row | {"published": _numbers(row["published"]), "also": also} | cell


def _numbers(found: dict) -> dict[str, Printed]:
    return {item: printed(value) for item, value in found.items()}


def _mistakes(source: dict, files: Files) -> Iterator[tuple[str, str]]:
    """Keys of a published table and what is wrong with their values."""
    yield from _keys(source, KEYS)
    for key in ("title", "source", "note"):
        if not isinstance(source.get(key, ""), str):
            yield key, f"{source[key]!r}; it must be text"
    yield from _data("dataset", source.get("dataset", "mnist"), files)
    yield from _items("topline", source.get("topline", {}), OURS.toplined)
    for item, value in source["topline"].items() if isinstance(source.get("topline"), dict) else ():
        if isinstance(value, str):
            yield f"topline.{item}", f"{value!r}; it must be a number"
    yield from selectors.mistakes("cell", source.get("cell", {}), files)
    rows = source.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        yield "rows", f"{rows!r}; it must be a list of rows, each a mapping with the keys {', '.join(ROW)}"
        return
    for i, row in enumerate(rows):
        label = row.get("label")
        where = label if isinstance(label, str) else f"rows.{i}"
        yield from ((f"{where}.{key}", why) for key, why in _of_row(row, files))


def _of_row(row: dict, files: Files) -> Iterator[tuple[str, str]]:
    """The same of one row."""
    yield from _keys(row, ROW)
    if not isinstance(row.get("label", ""), str):
        yield "label", f"{row['label']!r}; it must be text"
    if type(steps := row.get("steps", 1)) is not int or steps < 1:
        yield "steps", f"{steps!r}; it must be a number of sampling steps, at least 1"
    yield from _items("published", row.get("published", {}), ITEMS)
    if not isinstance(also := row.get("also", {}), dict):
        yield "also", f"{also!r}; it must be a mapping of data to their items"
        also = {}
    for data, found in also.items():
        yield from _data(f"also.{data}", data, files)
        yield from _items(f"also.{data}", found, ITEMS)
    yield from selectors.mistakes("cell", row.get("cell", {}), files)


def _keys(found: dict, keys: dict[str, bool]) -> Iterator[tuple[str, str]]:
    """Keys that are unknown, or required and missing."""
    yield from ((str(key), f"unknown key; known are {', '.join(keys)}") for key in found if key not in keys)
    yield from ((key, "missing") for key, required in keys.items() if required and key not in found)


def _data(key: str, name: object, files: Files) -> Iterator[tuple[str, str]]:
    """A name of data that nothing has."""
    if name not in (names := list(dict.fromkeys([*NAMES, *known("dataset", files)]))):
        yield key, f"{name!r}; it must be one of {', '.join(names)}"


def _items(key: str, found: object, possible: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What is wrong with printed numbers by their items."""
    if not isinstance(found, dict):
        yield key, f"{found!r}; it must be a mapping of items to numbers; items are {', '.join(possible)}"
        return
    for item, value in found.items():
        if item not in possible:
            yield f"{key}.{item}", f"unknown item; known are {', '.join(possible)}"
        try:
            printed(value)
        except ValueError as e:
            yield f"{key}.{item}", str(e)
