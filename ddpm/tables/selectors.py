"""Rows chosen by the parameters of their axis values, not by the names that a configuration gives these: claims and
published tables stand beside every grid that has such rows. No torch."""

from collections.abc import Iterator
from typing import Any

from ddpm.parameters import cast
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.registry import AXES, PARTS, Files, known

Row = tuple[str, ...]  # the names on the axes
Values = dict[str, dict[str, Any]]  # axis → parameter → value
Selector = dict[str, dict[str, Any]]  # axis → parameter → its value, a list of values, or `any`
ANY = "any"


def files_of(config: dict) -> Files:
    """The files of the user's own that declare methods of a configuration's axis values and data."""
    values = [config["data"], *(value for section in AXES.values() for value in config.get(section, {}).values())]
    return tuple(dict.fromkeys(file for value in values for file in value.get("modules", ())))


def _naming(axis: str) -> dict[str, str]:
    """The parameters of an axis's values that name a method → the kind that it is of."""
    return dict(zip(PARTS, PARTS, strict=True)) if axis == "objective" else {"method": axis}


def parameters(axis: str, files: Files) -> set[str]:
    """The parameters that values of an axis can have."""
    naming = _naming(axis)
    sources = (source for kind in naming.values() for source in known(kind, files).values())
    return set(naming).union(*(source.parameters for source in sources))


def mistakes(key: str, selector: Any, files: Files) -> Iterator[tuple[str, str]]:
    """What is wrong with a choice of rows."""
    if not isinstance(selector, dict) or not all(isinstance(value, dict) for value in selector.values()):
        yield key, f"{selector!r}; it must be AXIS: {{PARAMETER: VALUE}}, such as sampler: {{method: ddim, eta: 0.0}}"
        return
    for axis, wanted in selector.items():
        if axis in AXES:
            for parameter, value in wanted.items():
                for why in _choice(axis, parameter, value, files):
                    yield f"{key}.{axis}.{parameter}", why
        else:
            yield f"{key}.{axis}", f"unknown axis; known are {', '.join(AXES)}"


def _choice(axis: str, parameter: str, value: Any, files: Files) -> Iterator[str]:
    """What is wrong with what a parameter is asked to be."""
    naming, wanted = _naming(axis), [option for option in _options(value) if option != ANY]
    if kind := naming.get(parameter):
        names = list(known(kind, files))
        yield from (f"{name!r}; it must be one of {', '.join(names)}" for name in wanted if name not in names)
        return
    sources = [source.parameters for kind in naming.values() for source in known(kind, files).values()]
    annotations = [of[parameter].annotation for of in sources if parameter in of]
    if not annotations:
        yield f"unknown parameter; known are {', '.join(sorted(parameters(axis, files)))}"
        return
    for option in wanted:
        said = [_unfit(parameter, annotation, option) for annotation in annotations]
        if all(said):
            yield said[0]


def _unfit(parameter: str, annotation: Any, value: Any) -> str:
    """Why a parameter of this type cannot have the value; empty where it can."""
    try:
        cast(parameter, annotation, value)
    except ValueError as e:
        return str(e).removeprefix(f"{parameter}: ")
    return ""


def _options(wanted: Any) -> list:
    """What a parameter may be, by a selector's value for it."""
    return wanted if isinstance(wanted, list) else [wanted]


def values_of(row: Row, grid: Grid) -> Values:
    """All parameters of a row's axis values."""
    return {axis: grid.axis(axis, name) for axis, name in zip(AXES, row, strict=True)}


def fitting(rows: dict[Row, Values], selector: Selector) -> dict[Row, Values]:
    """The rows whose axis values have the parameters that are asked for."""
    asked = [(axis, k, _options(v)) for axis, wanted in selector.items() for k, v in wanted.items() if v != ANY]

    def fits(values: Values) -> bool:
        return all(k in values[axis] and values[axis][k] in options for axis, k, options in asked)

    return {row: values for row, values in rows.items() if fits(values)}
