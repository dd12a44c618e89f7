"""The bounds that methods declare for their parameters, checked alike in a configuration and in a method. No torch."""

from collections.abc import Iterator


def outside(
    name: str, value: object, limits: tuple[float | None, float | None] | None, choices: tuple[str, ...] | None
) -> str:
    """What is wrong with a parameter's value, or with the first wrong one of its values; empty where nothing is."""
    if isinstance(value, list | tuple):
        return next(filter(None, (outside(name, v, limits, choices) for v in value)), "")
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


def conflicts(values: dict[str, object], attributes: dict[str, object]) -> Iterator[str]:
    """Parameters that do not fit together as a method declares: `ordered` and `needs`, see ddpm/methods.py."""
    for low, how, high in attributes.get("ordered") or ():
        if values[low] > values[high] or (how == "<" and values[low] == values[high]):
            wanted = {"<=": "at most", "<": "below"}[how]
            yield f"{low}: {values[low]}; it must be {wanted} {high}, {values[high]}"
    for name, value, other, wanted in attributes.get("needs") or ():
        if values[name] == value and values[other] != wanted:
            yield f"{other}: {values[other]!r}; with {name} {value!r} it must be {wanted!r}"
