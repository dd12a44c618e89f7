"""Parameters are declared once, by the annotations of a method's fields. No torch.

    eta: Annotated[float, Interval(ge=0, le=1)] = 0.0      or, shorter,      eta: Fraction = 0.0
    variance: Literal["small", "large"] = "small"
    widths: tuple[Count, ...] = (1, 2)                     a list in YAML
    clip: Positive | None = None                           null stands for None (in config.yaml, not in an overlay)

pydantic validates them, strictly (no text for a number, no 2.0 for 2; a whole number for a float is that float), where
a method is made in Python and where a configuration is checked, which reads the annotation from the source without
importing it; the JSON schema for editors is made of them. A float is finite, unless it is `Unbounded`.
"""

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len

INFINITIES = {"inf": math.inf, "-inf": -math.inf}
# The kinds of a bound in words, and pydantic's errors about them.
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
OUTSIDE = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
# How two parameters may be ordered, as a method declares it.
ORDERS = {"<=": (operator.le, "at most"), "<": (operator.lt, "below")}


class Infinite:
    """Makes a float one that may be infinite. JSON has no such number: a job says "inf" or "-inf"."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Mapping[str, Any]:
        from pydantic_core import core_schema

        schema = handler(source) | {"allow_inf_nan": True, "ge": -math.inf}  # which is not a number is not at least −∞
        return core_schema.no_info_before_validator_function(
            lambda value: INFINITIES.get(value, value) if isinstance(value, str) else value, schema
        )


Count = Annotated[int, Interval(ge=1)]
Index = Annotated[int, Interval(ge=0)]
NonNegative = Annotated[float, Interval(ge=0)]
# Large enough for its square and its inverse to be numbers.
Positive = Annotated[float, Interval(ge=1e-8)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Tolerance = Annotated[float, Interval(ge=1e-14, le=1)]
Unbounded = Annotated[float, Infinite()]

__all__ = [
    "Count",
    "Fraction",
    "Index",
    "Interval",
    "Len",
    "NonNegative",
    "Positive",
    "Tolerance",
    "Unbounded",
]


@cache
def adapter(annotation: Any) -> Any:
    """pydantic's validator of one annotation."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def cast(name: str, annotation: Any, value: object) -> Any:
    """The value as its annotation has it: 1 as 1.0, a list as a tuple; ValueError, in one line, if it does not fit."""
    from pydantic import ValidationError

    try:
        return adapter(annotation).validate_python(_frozen(value))
    except ValidationError as e:
        raise ValueError(_message(name, annotation, value, e.errors(include_url=False))) from None


def plain(value: Any) -> Any:
    """The value as JSON holds it: lists, and infinities as text."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return repr(value) if isinstance(value, float) and math.isinf(value) else value


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _message(name: str, annotation: Any, value: object, errors: Sequence[Mapping[str, Any]]) -> str:
    """What was found and what would be right, from pydantic's errors about one value."""
    error, alone = errors[0], len(errors) == 1
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "finite_number" or (isinstance(found, float) and math.isnan(found)):
        return f"{name}: {found}; it must be {'a finite' if kind == 'finite_number' else 'a'} number"
    if alone and kind == "literal_error":
        return f"{name}: {found!r}; it must be {in_words(annotation)}"
    if alone and (bound := OUTSIDE.get(kind)):
        shown = float(found) if isinstance(context[bound], float) else found
        return f"{name}: {shown}; it must {_range(_bounds(annotation, bound, context[bound]))}"
    if kind == "too_short" and context["min_length"] == 1:
        return f"{name}: []; it must name at least one"
    if kind.endswith("_type") or kind in ("literal_error", "missing", "too_short", "too_long"):
        number = isinstance(value, str) and in_words(annotation).startswith("float")
        hint = " (YAML reads 2e-4 as text: write 2.0e-4)" if number else ""
        return f"{name}: {value!r} is of type {type(value).__name__}; it must be {in_words(annotation)}{hint}"
    return f"{name}: {found!r}; {error['msg'].removeprefix('Value error, ').removeprefix('Assertion failed, ')}"


def in_words(annotation: Any) -> str:
    """A type as YAML has it: `tuple[tuple[float, float], ...]` is `a list of [float, float]`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, inner))
    if origin is tuple:
        listed = len(inner) == 2 and inner[1] is Ellipsis
        return f"a list of {in_words(inner[0])}" if listed else f"[{', '.join(map(in_words, inner))}]"
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _bounds(annotation: Any, kind: str, value: float) -> dict[str, float]:
    """The bounds of the innermost type that declares this one of them: kind (ge, gt, le or lt) → number."""
    if get_origin(annotation) is None:
        return {kind: value}
    found = {k: bound for m in getattr(annotation, "__metadata__", ()) for k, bound in _stated(m)}
    if found.get(kind) == value:
        return found
    inner = (_bounds(a, kind, value) for a in get_args(annotation) if a is not Ellipsis)
    return next(filter(None, inner), {})


def _stated(metadata: Any) -> Iterator[tuple[str, float]]:
    """The bounds that a part of an annotation states."""
    bounds = ((kind, getattr(metadata, kind, None)) for kind in BOUNDS)
    yield from ((kind, bound) for kind, bound in bounds if isinstance(bound, int | float))


def _range(bounds: dict[str, float]) -> str:
    """`lie in 0 … 1`, `be at least 1`, `be above 0 and at most 1`."""
    if bounds.keys() == {"ge", "le"}:
        return f"lie in {bounds['ge']} … {bounds['le']}"
    return "be " + " and ".join(f"{word} {bounds[kind]}" for kind, word in BOUNDS.items() if kind in bounds)


# ---- parameters that must fit together ----------------------------------------------------------------------

Values = Mapping[str, Any]


def conflicts(values: Values, declared: Mapping[str, Any], written: Collection[str]) -> Iterator[str]:
    """Parameters that do not fit together as their method declares, see ddpm/methods.py.

    written: those that were set on purpose, whatever to; only of them can one be too many.
    """
    for rule, mistakes in RULES.items():
        if found := declared.get(rule):
            yield from mistakes(values, found, written)


def _ordered(values: Values, pairs: Iterable[tuple[str, str, str]], _: Collection[str]) -> Iterator[str]:
    for low, how, high in pairs:
        right, words = ORDERS[how]
        if not right(values[low], values[high]):
            yield f"{low}: {values[low]}; it must be {words} {high}, {values[high]}"


def _uses(values: Values, users: Mapping[str, str], written: Collection[str]) -> Iterator[str]:
    for name, use in users.items():
        if name in written and not (use and values[use]):
            yield unused(name, values[name], f"{use} above 0" if use else "")


def _instead(values: Values, others: Mapping[str, Sequence[str]], written: Collection[str]) -> Iterator[str]:
    for name, replaced in others.items():
        if values[name] is not None:
            yield from (unused(n, values[n], "", f"{name} {values[name]!r}") for n in replaced if n in written)


def _multiples(values: Values, pairs: Iterable[tuple[str, str]], _: Collection[str]) -> Iterator[str]:
    for name, factor in pairs:
        if values[name] % values[factor]:
            yield f"{name}: {values[name]}; it must be a multiple of {factor}, {values[factor]}"


def _paired(values: Values, lists: Iterable[Sequence[str]], _: Collection[str]) -> Iterator[str]:
    for names in lists:
        counts = {name: len(values[name]) for name in names}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} {name}" for name, count in counts.items())
            yield f"{names[0]}: {said}; it must be one of each"


def _shares(values: Values, lists: Iterable[str], _: Collection[str]) -> Iterator[str]:
    for name in lists:
        if abs(sum(values[name]) - 1) > 1e-9:
            yield f"{name}: {list(values[name])} sum to {sum(values[name]):g}; it must be 1"


def _attended(values: Values, lists: Iterable[tuple[str, str, str, int]], _: Collection[str]) -> Iterator[str]:
    for name, entries, factor, heads in lists:
        widths = [values[factor] * entry for entry in values[entries]]
        for index in values[name]:
            if index >= len(widths):
                yield f"{name}: {index}; it must be below {len(widths)}, the number of {entries}"
            elif widths[index] % heads:
                yield (
                    f"{name}: {index}, where there are {widths[index]} channels ({factor} {values[factor]} × {entries} "
                    f"{values[entries][index]}); {heads} heads share them evenly: it must be a multiple of {heads}"
                )


# What a method may declare of its parameters (ddpm/methods.py, ddpm/networks/network.py) → what breaks it.
RULES: dict[str, Callable[[Values, Any, Collection[str]], Iterator[str]]] = {
    "ordered": _ordered,
    "uses": _uses,
    "instead": _instead,
    "multiples": _multiples,
    "paired": _paired,
    "shares": _shares,
    "attended": _attended,
}


def unmet(names: Mapping[str, str], needs: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Components of an objective that cannot be used together: `needs` of each → the only other that it works with."""
    for component, wanted in needs.items():
        for other, name in wanted.items():
            if names[other] != name:
                yield f"{other}: {names[other]!r}; with {component} {names[component]!r} it must be {name!r}"


def unused(name: str, value: object, users: str, beside: str = "") -> str:
    """The complaint about a parameter that nothing uses; users: what would;  beside: what makes it superfluous."""
    why = f" with {beside}" if beside else f" but {users}" if users else ""
    return f"{name}: {plain(value)!r}; nothing uses it{why}: leave it out (an overlay sets it to null)"
