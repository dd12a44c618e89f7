"""The JSON schema of a configuration for editors: the form of its sections, and what the methods declare. No torch."""

import yaml

from ddpm.parameters import adapter, plain
from ddpm.pipeline.config import SCHEMA
from ddpm.pipeline.declarations import MethodSource, Parameter
from ddpm.pipeline.registry import AXES, PARTS, SHARED, Files, key_of, known


def editor(files: Files = ()) -> dict:
    """The schema of config.yaml; files: those of methods of the user's own."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    schema["description"] = "Made by `ddpm schema` from what the methods declare."
    sections = schema["properties"]
    names = {"type": "object", "minProperties": 1, "propertyNames": {"$ref": "#/$defs/name"}}
    for axis, section in AXES.items():
        inner = _objective(files) if axis == "objective" else _any_of(axis, files)
        sections[section] = names | {"additionalProperties": inner}
    sections["data"], sections["network"] = _any_of("dataset", files), _any_of("network", files)
    fidelity = sections["fidelity"]["properties"]
    fidelity["extractor"] = {"enum": list(known("extractor", files))}
    listed = {"type": "array", "uniqueItems": True, "items": {"enum": list(known("metric", files))}}
    fidelity["metrics"] = {"anyOf": [{"const": "all"}, listed]}
    return schema


def _any_of(kind: str, files: Files) -> dict:
    """One of the methods of a kind."""
    return {"oneOf": [_method(kind, name, source) for name, source in known(kind, files).items()]}


def _method(kind: str, name: str, source: MethodSource) -> dict:
    """One method and its parameters."""
    key = key_of(kind)
    required = [key, *(k for k, p in source.parameters.items() if p.required)]
    properties = {key: {"const": name}} | {k: _parameter(p) for k, p in source.parameters.items()}
    properties |= {shared: {"type": "string"} for shared in SHARED.get(kind, ())}
    form = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"title": name, "description": source.summary} | form


def _parameter(parameter: Parameter) -> dict:
    """One parameter, as pydantic describes it."""
    default = {} if parameter.required else {"default": plain(parameter.default)}
    return adapter(parameter.annotation).json_schema() | default


def _objective(files: Files) -> dict:
    """An objective: its components, and their parameters where one that declares them is chosen."""
    properties, rules = {}, []
    users: dict[str, list[tuple[str, str, Parameter]]] = {}  # parameter → the components that have it
    for part in PARTS:
        sources = known(part, files)
        properties[part] = {"oneOf": [{"const": name, "description": s.summary} for name, s in sources.items()]}
        for name, source in sources.items():
            for key, parameter in source.parameters.items():
                users.setdefault(key, []).append((part, name, parameter))
    for key, using in users.items():
        properties[key] = _parameter(using[0][2])
        chosen = [{"required": [part], "properties": {part: {"const": name}}} for part, name, _ in using]
        rules.append({"if": {"required": [key]}, "then": {"anyOf": chosen}})
    form = {"type": "object", "properties": properties, "required": ["target"], "additionalProperties": False}
    return form | {"allOf": rules}
