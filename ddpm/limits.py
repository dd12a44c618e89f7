"""What methods declare of their parameters, checked alike in a configuration and in a method. No torch."""

import math
from collections.abc import Collection, Iterator


def outside(
    name: str, value: object, limits: tuple[float | None, float | None] | None, choices: tuple[str, ...] | None
) -> str:
    """What is wrong with a parameter's value, or with the first wrong one of its values; empty where nothing is."""
    if isinstance(value, list | tuple):
        return next(filter(None, (outside(name, v, limits, choices) for v in value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name}: {value}; it must be a finite number"
    if choices is not None and value not in choices:
        return f"{name}: {value!r}; it must be one of {', '.join(choices)}"
    if limits is None:
        return ""
    low, high = limits
    if (low is None or value >= low) and (high is None or value <= high):
        return ""
    if high is None:
        return f"{name}: {value}; it must be at least {low}"
    return f"{name}: {value}; it must lie in {low} … {high}"


def conflicts(values: dict[str, object], attributes: dict[str, object], written: Collection[str]) -> Iterator[str]:
    """Parameters that do not fit together as their method declares, see ddpm/methods.py.

    written: those that were set on purpose, whatever to; only of them can one be too many.
    """
    for low, how, high in attributes.get("ordered") or ():
        if values[low] > values[high] or (how == "<" and values[low] == values[high]):
            wanted = {"<=": "at most", "<": "below"}[how]
            yield f"{low}: {values[low]}; it must be {wanted} {high}, {values[high]}"
    for name, value, other, wanted in attributes.get("needs") or ():
        if values[name] == value and values[other] != wanted:
            yield f"{other}: {values[other]!r}; with {name} {value!r} it must be {wanted!r}"
    for name, uses in (attributes.get("uses") or {}).items():
        if name in written and not any(all(map(_holds, use.items(), [values] * len(use))) for use in uses):
            yield f"{name}: {values[name]!r}; nothing uses it{_only(uses)}: leave it out (an overlay sets it to null)"
    for names in attributes.get("paired") or ():
        counts = [len(values[name]) for name in names]
        if len(set(counts)) > 1:
            said = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
            yield f"{names[0]}: {said}; it must be one of each"
    for name in attributes.get("shares") or ():
        if abs(sum(values[name]) - 1) > 1e-9:
            yield f"{name}: {list(values[name])} sum to {sum(values[name]):g}; it must be 1"
    for name, entries, factor, heads in attributes.get("attended") or ():
        for level in values[name]:
            count = len(values[entries])
            if level >= count:
                yield f"{name}: {level}; it must be below {count}, the number of {entries}"
            elif (width := values[factor] * values[entries][level]) % heads:
                yield (
                    f"{name}: {level}, where there are {width} channels ({factor} {values[factor]} × {entries} "
                    f"{values[entries][level]}); {heads} heads share them evenly: it must be a multiple of {heads}"
                )


def _holds(condition: tuple[str, tuple], values: dict[str, object]) -> bool:
    """Whether a parameter has one of these values; of none, any but 0."""
    name, wanted = condition
    return values[name] in wanted if wanted else bool(values[name])


def _only(uses: tuple[dict[str, tuple], ...]) -> str:
    """The values of other parameters that a parameter is used with, in words."""
    found = [
        " and ".join(f"{name} {' or '.join(map(str, wanted)) or 'above 0'}" for name, wanted in use.items())
        for use in uses
    ]
    return f" but {', or '.join(found)}" if found else ""
