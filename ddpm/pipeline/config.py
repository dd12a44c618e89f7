"""Reading and checking a configuration: schema and cross-checks, all mistakes at once. No torch."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ddpm.errors import UserError
from ddpm.pipeline import project
from ddpm.pipeline.checks import ConfigError, mistakes
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.refusals import messages
from ddpm.pipeline.registry import located, readable, settled

SCHEMA = project.find("workflow/schemas/config.schema.yaml")
# More than any configuration: how deep a file may be nested, and how many values it may hold, aliases written out.
DEPTH = 20
VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML as it is meant for a configuration: no deeper than DEPTH, and each key of a mapping once."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = 0
        self.twice: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > DEPTH:
            where = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} deep", problem_mark=where)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if first := seen.get(key.value):
                    self.twice.append(f"line {line}: the key {key.value!r} stands in line {first} already; keep one")
                seen.setdefault(key.value, line)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as e:  # a date that is none, a number of thousands of digits
            raise yaml.MarkedYAMLError(problem=str(e), problem_mark=node.start_mark) from None


def _large(value: object) -> bool:
    """Whether there are more than VALUES in it: aliases may stand for many, or for what they are part of."""
    todo, count = [value], 0
    while todo and count <= VALUES:
        found = todo.pop()
        count += 1
        if isinstance(found, dict | list):
            todo += found.values() if isinstance(found, dict) else found
    return count > VALUES


def merge(base: dict, overlay: dict) -> dict:
    """The overlay laid over the base as Snakemake does it: mappings merge, all else is replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def load(path: str | Path, what: str = "configuration") -> dict:
    """One file's mapping; UserError where it holds none. what: what the file is, for the message."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        layer = loader.get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); it must be a file of YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        where = ""
        if isinstance(e, yaml.MarkedYAMLError) and e.problem_mark:
            where = f", line {e.problem_mark.line + 1}: {e.problem}"
        raise UserError(f"{path}: is no {what} in YAML and UTF-8{where}") from None
    if loader.twice:
        raise UserError("\n".join(f"{path}: {text}" for text in loader.twice))
    if not isinstance(layer, dict):
        raise UserError(f"{path}: holds {type(layer).__name__}; a {what} is a mapping of keys to values")
    if _large(layer):
        raise UserError(f"{path}: holds more than {VALUES} values once its aliases (*) are written out; use fewer")
    return layer


def read(*paths: str | Path) -> dict:
    """One configuration from several files, the later over the earlier."""
    config: dict = {}
    wrong: list[str] = []
    for path in paths:
        try:
            config = merge(config, load(path))
        except UserError as e:
            wrong.append(str(e))
    if wrong:
        raise UserError("\n".join(wrong))
    return config


def prune(config: dict) -> dict:
    """The configuration without the keys that an overlay has set to null: that is how it takes one back."""
    return {k: prune(v) if isinstance(v, dict) else v for k, v in config.items() if v is not None}


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    """Whether it is one that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _floats(config: dict, schema: dict) -> dict:
    """Whole numbers as floats where the schema declares a number, so that 1 and 1.0 are one job."""
    sections = {}
    for name in config.keys() & {"training", "classifier", "autoencoder"}:
        declared = schema["properties"][name]["properties"]
        real = [k for k, v in declared.items() if "number" in v.values() or "#/$defs/positive" in v.values()]
        sections[name] = config[name] | {k: float(config[name][k]) for k in real if k in config[name]}
    return config | sections


def _blank(config: dict, errors: list) -> dict:
    """The configuration with None for what the schema refuses, so that no other check complains of it again."""
    found = copy.deepcopy(config) if errors else config
    for error in errors:
        path = list(error.absolute_path)
        if path and error.validator not in ("additionalProperties", "required"):
            place = found
            for part in path[:-1]:
                place = place[part] if place is not None else None
            if place is not None and "propertyNames" not in error.absolute_schema_path:
                place[path[-1]] = None
    return found


def check(config: dict, *more: Callable[[dict], Iterator[str]]) -> Grid:
    """The configuration's grid; ConfigError with every mistake where there are any.

    more: other checks, such as those of the machine that its jobs are about to run on (ddpm/pipeline/machine.py).
    """
    from jsonschema import Draft202012Validator, validators

    config = prune(config)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
    validator = validators.extend(Draft202012Validator, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    found = [message for e in errors for message in messages(e)]
    rest = _blank(config, errors)
    rest, unreadable = readable(rest)
    rest, found = located(rest), found + unreadable
    found += mistakes(rest, bool(found), [function(rest) for function in more])
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    return Grid(_floats(settled({k: v for k, v in located(config).items() if k != "methods"}), schema))
