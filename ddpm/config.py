"""Reading and checking a configuration: schema and cross-checks, all mistakes at once. No torch."""

import difflib
import math
from collections.abc import Iterator
from pathlib import Path

import yaml

from ddpm.errors import UserError
from ddpm.grid import ConfigError, Grid

SCHEMA = Path(__file__).parent.parent / "workflow" / "schemas" / "config.schema.yaml"


def merge(base: dict, overlay: dict) -> dict:
    """The overlay laid over the base as Snakemake does it: mappings merge, all else is replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def read(*paths: str | Path) -> dict:
    """One configuration from several files, the later over the earlier."""
    config: dict = {}
    for path in paths:
        try:
            layer = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such configuration file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            mark = getattr(e, "problem_mark", None)
            where = f", line {mark.line + 1}: {e.problem}" if mark else ""
            raise UserError(f"{path}: is no YAML in UTF-8{where}") from None
        if not isinstance(layer, dict):
            raise UserError(f"{path}: holds {type(layer).__name__}; a configuration is a mapping of keys to values")
        config = merge(config, layer)
    return config


def prune(config: dict) -> dict:
    """The configuration without the keys that an overlay has set to null: that is how it takes one back."""
    return {k: prune(v) if isinstance(v, dict) else v for k, v in config.items() if v is not None}


def _messages(error: object) -> Iterator[str]:
    """One line for every mistake behind one violation of the schema: where, what was found, what would be right."""
    where = ""
    for part in error.absolute_path:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    prefix = f"{where}: " if where else ""
    rule, value, found = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for extra in (k for k in found if k not in known):
            close = difflib.get_close_matches(str(extra), known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
            yield f"{where}.{extra}: unknown key{hint}" if where else f"{extra}: unknown key{hint}"
    elif rule == "required":
        for missing in (k for k in value if k not in found):
            yield f"{prefix}the key {missing!r} is missing"
    elif rule == "type" and isinstance(found, float) and value == "number":
        yield f"{prefix}{found}; it must be a finite number"
    elif rule == "type":
        hint = " (YAML reads 2e-4 as text: write 2.0e-4)" if value == "number" and isinstance(found, str) else ""
        yield f"{prefix}{found!r} is of type {type(found).__name__}; it must be {value}{hint}"
    elif rule == "enum":
        yield f"{prefix}{found!r}; it must be one of {', '.join(map(str, value))}"
    elif rule == "pattern" and where == "results":
        yield f"{prefix}{found!r}; it must be a folder below this one, such as results/mine"
    elif rule == "pattern":
        hint = "it takes 1 to 64 letters, digits, '.', '_', '-', the first of them a letter or digit"
        yield f"{prefix}{found!r} cannot be part of a path; {hint}"
    else:
        yield f"{prefix}{error.message}"


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _floats(config: dict, schema: dict) -> dict:
    """Whole numbers as floats where the schema declares a number, so that 1 and 1.0 are one job."""
    sections = {}
    for name in ("training", "classifier"):
        declared = schema["properties"][name]["properties"]
        real = {k for k, v in declared.items() if v.get("type") == "number" or v.get("$ref") == "#/$defs/positive"}
        sections[name] = {k: float(v) if k in real else v for k, v in config[name].items()}
    return config | sections


def check(config: dict) -> Grid:
    """The configuration's grid; ConfigError with every mistake where there are any."""
    from jsonschema import Draft202012Validator, validators

    config = prune(config)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
    validator = validators.extend(Draft202012Validator, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise ConfigError(list(dict.fromkeys(m for e in errors for m in _messages(e))))
    return Grid(_floats(config, schema))
