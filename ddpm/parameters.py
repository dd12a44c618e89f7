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
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, Len

INFINITIES = {"inf": math.inf, "-inf": -math.inf}


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
    error = errors[0]
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    bound = next((k for k in ("ge", "gt", "le", "lt") if k in context), "")
    if kind == "finite_number" or (isinstance(found, float) and math.isnan(found)):
        return f"{name}: {found}; it must be {'a finite' if kind == 'finite_number' else 'a'} number"
    if kind == "literal_error" and len(errors) == 1:
        return f"{name}: {found!r}; it must be {in_words(annotation)}"
    if bound and len(errors) == 1:
        shown = float(found) if isinstance(context[bound], float) else found
        return f"{name}: {shown}; it must {_range(_bounds(annotation, bound, context[bound]))}"
    if kind == "too_short" and context.get("min_length") == 1:
        return f"{name}: []; it must name at least one"
    if kind.endswith("_type") or kind in ("literal_error", "missing", "too_short", "too_long"):
        number = in_words(annotation).split()[0] == "float" and isinstance(value, str)
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
    if get_origin(annotation) is Annotated:
        found = {k: getattr(m, k) for m in annotation.__metadata__ for k in ("ge", "gt", "le", "lt") if _has(m, k)}
        if found.get(kind) == value:
            return found
    inner = (_bounds(a, kind, value) for a in get_args(annotation) if a is not Ellipsis)
    return next(filter(None, inner), {kind: value} if get_origin(annotation) is None else {})


def _has(metadata: Any, kind: str) -> bool:
    return isinstance(getattr(metadata, kind, None), int | float)


def _range(bounds: dict[str, float]) -> str:
    """`lie in 0 … 1`, `be at least 1`, `be above 0 and at most 1`."""
    if bounds.keys() == {"ge", "le"}:
        return f"lie in {bounds['ge']} … {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return "be " + " and ".join(f"{word} {bounds[kind]}" for kind, word in words.items() if kind in bounds)


# ---- parameters that must fit together ----------------------------------------------------------------------


def conflicts(values: Mapping[str, Any], declared: Mapping[str, Any], written: Collection[str]) -> Iterator[str]:
    """Parameters that do not fit together as their method declares, see ddpm/methods.py.

    written: those that were set on purpose, whatever to; only of them can one be too many.
    """
    for low, how, high in declared.get("ordered") or ():
        if values[low] > values[high] or (how == "<" and values[low] == values[high]):
            wanted = {"<=": "at most", "<": "below"}[how]
            yield f"{low}: {values[low]}; it must be {wanted} {high}, {values[high]}"
    for name, use in (declared.get("uses") or {}).items():
        if name in written and not (use and values[use]):
            yield unused(name, values[name], f"{use} above 0" if use else "")
    for name, others in (declared.get("instead") or {}).items():
        if values[name] is not None:
            yield from (unused(n, values[n], "", f"{name} {values[name]!r}") for n in others if n in written)
    for name, factor in declared.get("multiples") or ():
        if values[name] % values[factor]:
            yield f"{name}: {values[name]}; it must be a multiple of {factor}, {values[factor]}"
    for names in declared.get("paired") or ():
        counts = [len(values[name]) for name in names]
        if len(set(counts)) > 1:
            said = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
            yield f"{names[0]}: {said}; it must be one of each"
    for name in declared.get("shares") or ():
        if abs(sum(values[name]) - 1) > 1e-9:
            yield f"{name}: {list(values[name])} sum to {sum(values[name]):g}; it must be 1"
    for name, entries, factor, heads in declared.get("attended") or ():
        for index in values[name]:
            count = len(values[entries])
            if index >= count:
                yield f"{name}: {index}; it must be below {count}, the number of {entries}"
            elif (width := values[factor] * values[entries][index]) % heads:
                yield (
                    f"{name}: {index}, where there are {width} channels ({factor} {values[factor]} × {entries} "
                    f"{values[entries][index]}); {heads} heads share them evenly: it must be a multiple of {heads}"
                )


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
