"""The bounds that methods declare for their parameters, checked alike in a configuration and in a method. No torch."""


def outside(
    name: str, value: object, limits: tuple[float | None, float | None] | None, choices: tuple[str, ...] | None
) -> str:
    """What is wrong with a parameter's value; empty where nothing is."""
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
