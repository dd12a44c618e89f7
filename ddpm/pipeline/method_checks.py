"""What is wrong with the methods of a configuration, each by itself: their names and parameters. No torch."""

from collections.abc import Iterator

from ddpm.parameters import cast, conflicts, unmet, unused
from ddpm.pipeline.declarations import MethodSource, describe, found_in
from ddpm.pipeline.registry import KINDS, PARTS, SHARED, Files, ObjectiveSource, composed, key_of, known


def of_files(files: Files) -> Iterator[str]:
    """Files of methods that are not there, cannot be read, or declare no method, or one of a name that is taken."""
    places = {(kind, name): source.place for kind in KINDS for name, source in known(kind).items()} if files else {}
    for file in files:
        found = [(kind, *method) for kind, (_, base) in KINDS.items() for method in found_in(file, base)]
        for kind, name, module, cls in found:
            place = describe(module, cls).place
            if (taken := places.setdefault((kind, name), place)) != place:
                yield f"methods: the {kind} {name!r} stands in {taken} and in {place}; give one another name"
        if not found:
            yield f"methods: {file} declares no method; one is a class below {', '.join(b for _, b in KINDS.values())}"


def of_value(where: str, axis: str, value: dict, files: Files) -> Iterator[str]:
    """What is wrong with one value of an axis, the network or the data: its method, and parameters."""
    if value[key_of(axis)] is not None:  # reported by the schema
        found = _of_objective(value, files) if axis == "objective" else _of_method(axis, value, files)
        yield from (f"{where}.{mistake}" for mistake in found)


def _of_method(axis: str, value: dict, files: Files) -> Iterator[str]:
    key, choices = key_of(axis), known(axis, files)
    if value[key] not in choices:
        yield f"{key}: {value[key]!r} is unknown; known are {', '.join(choices)}"
        return
    method = choices[value[key]]
    given = {k: v for k, v in value.items() if k not in (key, "modules", *SHARED.get(axis, ()))}
    unknown = [_unknown(name, value[key], choices) for name in given if name not in method.parameters]
    yield from _of_parameters(method, given, unknown)


def _unknown(name: str, method: str, choices: dict[str, MethodSource]) -> str:
    """What is wrong with a parameter that a method does not have."""
    others = [other for other, source in choices.items() if name in source.parameters]
    have = f"{others[0]} and others have" if len(others) > 1 else f"{''.join(others)} has"
    hint = f" of {method} ({have} it; null takes back what an earlier file says)" if others else ""
    return f"{name}: unknown key{hint}; known are {', '.join(choices[method].parameters) or 'none'}"


def _of_objective(value: dict, files: Files) -> Iterator[str]:
    """The same of an objective: its components, parameters that none of them has, and their values."""
    unknown = False
    for part in (part for part in PARTS if part in value):
        if value[part] not in list(known(part, files)):  # a list, for what cannot be hashed
            unknown = True
            yield f"{part}: {value[part]!r} is unknown; known are {', '.join(known(part, files))}"
    if unknown:
        return
    source = composed(value, files)
    given = {k: v for k, v in value.items() if k != "modules"}
    found = [_superfluous(name, given[name], source, files) for name in given if name not in source.parameters]
    found += unmet(source.names, {part: of.needs for part, of in source.parts.items()})
    yield from _of_parameters(source, given, found)


def _superfluous(name: str, value: object, objective: ObjectiveSource, files: Files) -> str:
    """What is wrong with a parameter that no component of an objective has."""
    users = {f"{part} {n}": s for part in PARTS for n, s in known(part, files).items() if name in s.parameters}
    if not users:
        return f"{name}: unknown key; known are {', '.join(objective.parameters)}"
    try:
        shown = cast(name, next(iter(users.values())).parameters[name].annotation, value)
    except ValueError as e:
        return str(e)
    replacing = [f"{part} {objective.names[part]}" for part, of in objective.parts.items() if name in of.replaces]
    return unused(name, shown, ", or ".join(users), " and ".join(replacing))


def _of_parameters(method: MethodSource, given: dict, found: list[str]) -> list[str]:
    """What was found before, and what is wrong with the parameters themselves."""
    values = {}
    for name, parameter in method.parameters.items():
        try:
            values[name] = cast(name, parameter.annotation, given.get(name, parameter.default))
        except ValueError as e:
            missing = parameter.required and name not in given
            found.append(f"{name}: the key is missing" if missing else str(e))
    return found or list(conflicts(values, method.attributes, given))
