"""What the JSON schema refuses in a configuration, in words: where, what was found, what would be right. No torch."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

# A ValidationError of jsonschema → a key below the place that it is of, empty for that place, and what is wrong.
Refusal = Callable[[Any], Iterator[tuple[str, str]]]
# Type that YAML read, type that is wanted → why it is the other one.
MISREAD = {
    (str, "number"): " (YAML reads 2e-4 as text: write 2.0e-4)",
    (str, "integer"): " (YAML reads 1e3 as text: write 1000)",
    (bool, "string"): " (YAML reads on, off, yes and no as true and false: quote them)",
}


def messages(error: Any) -> Iterator[str]:
    """One line for every mistake behind a ValidationError of jsonschema."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    for key, wrong in REFUSALS.get(error.validator, _other)(error):
        place = f"{where}.{key}" if key else where
        yield ": ".join(filter(None, (place.removeprefix("."), wrong)))


def _shown(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _unknown(error: Any) -> Iterator[tuple[str, str]]:
    known = list(error.schema.get("properties", {}))
    for extra in (key for key in error.instance if key not in known):
        close = difflib.get_close_matches(str(extra), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        yield str(extra) if str(extra).isprintable() else repr(extra), f"unknown key; {hint}"


def _none_of(error: Any) -> Iterator[tuple[str, str]]:
    keys = " or ".join(repr(key) for option in error.validator_value for key in option["required"])
    yield "", f"the key {keys} is missing"


def _required(error: Any) -> Iterator[tuple[str, str]]:
    missing = (key for key in error.validator_value if key not in error.instance)
    yield from (("", f"the key {key!r} is missing") for key in missing)


def _type(error: Any) -> Iterator[tuple[str, str]]:
    found, wanted = error.instance, error.validator_value
    if type(found) in (int, float) and wanted == "number":
        yield "", f"{_shown(found)}; it must be a finite number"
        return
    hint = MISREAD.get((type(found), str(wanted)), "")
    if wanted == "integer" and "e" not in str(found):
        hint = ""
    yield "", f"{_shown(found)} is of type {type(found).__name__}; it must be {wanted}{hint}"


def _not_here(error: Any) -> Iterator[tuple[str, str]]:
    """A key that a job has, and a configuration must not."""
    yield "modules", f"{_shown(error.instance)}; files of methods are named at the top level, under methods"


def _none_of_these(error: Any) -> Iterator[tuple[str, str]]:
    yield "", f"{_shown(error.instance)}; it must be one of {', '.join(map(str, error.validator_value))}"


def _pattern(error: Any) -> Iterator[tuple[str, str]]:
    if list(error.absolute_path) == ["results"]:
        yield "", f"{_shown(error.instance)}; it must be a folder below this one, such as results/mine"
        return
    hint = "it takes 1 to 64 letters, digits, '.', '_', '-', the first of them a letter or digit"
    yield "", f"{_shown(error.instance)} cannot be part of a path; {hint}"


def _twice(error: Any) -> Iterator[tuple[str, str]]:
    found = error.instance
    twice = next(value for i, value in enumerate(found) if value in found[:i])
    yield "", f"{_shown(found)}; its values must be unique, and {twice!r} stands there twice"


def _other(error: Any) -> Iterator[tuple[str, str]]:
    yield "", error.message if len(error.message) <= 300 else f"{error.message[:297]}..."


# The rule that is broken, by its keyword; None where the schema is `false`.
REFUSALS: dict[str | None, Refusal] = {
    "additionalProperties": _unknown,
    "anyOf": _none_of,
    "required": _required,
    "type": _type,
    None: _not_here,
    "enum": _none_of_these,
    "pattern": _pattern,
    "uniqueItems": _twice,
}
