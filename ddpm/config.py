"""Reading and checking a configuration: schema and cross-checks, all mistakes at once. No torch."""

import difflib
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
        except yaml.YAMLError as e:
            raise UserError(f"{path}: is no YAML: {e}") from None
        if not isinstance(layer, dict):
            raise UserError(f"{path}: holds {type(layer).__name__}; a configuration is a mapping of keys to values")
        config = merge(config, layer)
    return config


def prune(config: dict) -> dict:
    """The configuration without the keys that an overlay has set to null: that is how it takes one back."""
    return {k: prune(v) if isinstance(v, dict) else v for k, v in config.items() if v is not None}


def _message(error: object) -> str:
    """One line for one violation of the schema: where, what was found, what would be right."""
    where = ""
    for part in error.absolute_path:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    prefix = f"{where}: " if where else ""
    rule, value, found = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        extra = next(k for k in found if k not in known)
        close = difflib.get_close_matches(str(extra), known, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
        return f"{where}.{extra}: unknown key{hint}" if where else f"{extra}: unknown key{hint}"
    if rule == "required":
        missing = next(k for k in value if k not in found)
        return f"{prefix}the key {missing!r} is missing"
    if rule == "type":
        hint = " (YAML reads 2e-4 as text: write 2.0e-4)" if value == "number" and isinstance(found, str) else ""
        return f"{prefix}{found!r} is of type {type(found).__name__}; it must be {value}{hint}"
    if rule == "enum":
        return f"{prefix}{found!r}; it must be one of {', '.join(map(str, value))}"
    if rule in ("pattern", "propertyNames") or "pattern" in str(error.schema_path):
        return (
            f"{prefix}{found!r} cannot be part of a path; letters, digits, '.', '_', '-' can, a letter or digit first"
        )
    return f"{prefix}{error.message}"


def check(config: dict) -> Grid:
    """The configuration's grid; ConfigError with every mistake where there are any."""
    from jsonschema import Draft202012Validator

    config = prune(config)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise ConfigError([_message(e) for e in errors])
    return Grid(config)
