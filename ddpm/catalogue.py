"""What methods there are, as their source declares them, and what is wrong with a configuration of them. No torch."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

from ddpm import source, terminal
from ddpm.errors import UserError
from ddpm.limits import conflicts, outside

AXES = {
    "objective": ("objectives", "ddpm.objectives"),
    "schedule": ("schedules", "ddpm.schedules"),
    "guidance": ("guidances", "ddpm.guidance"),
    "sampler": ("samplers", "ddpm.samplers"),
}


class ConfigError(UserError):
    """Mistakes in the configuration: one message of one to three lines each."""

    def __init__(self, messages: list[str]):
        self.messages = messages
        super().__init__("\n".join(messages))


@cache
def known_methods(axis: str) -> dict[str, source.MethodSource]:
    """The methods of an axis by name; an objective's are its targets."""
    module = AXES[axis][1]
    return source.methods(module, "Target" if axis == "objective" else axis.capitalize())


def datasets() -> dict[str, source.MethodSource]:
    """The datasets by name."""
    return source.methods("ddpm.data", "Dataset")


def source_of(axis: str, value: dict) -> source.MethodSource:
    """The source that declares an axis value's parameters: its method's class, or `Objective`."""
    return source.describe(AXES[axis][1], "Objective") if axis == "objective" else known_methods(axis)[value["method"]]


def cast(kind: str, value: object) -> object:
    """The value in its declared type, so that 1 and 1.0 are one job; TypeError where it does not fit."""
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        return [cast(kind.removeprefix("tuple[").split(",")[0], v) for v in value]
    plain = {"int": int, "str": str, "bool": bool}.get(kind)
    if plain is not None and isinstance(value, plain) and not (kind == "int" and isinstance(value, bool)):
        return value
    raise TypeError(kind)


def complete(declared: source.MethodSource, value: dict) -> dict:
    """All parameters of a method: the configured ones, the others at their defaults."""
    named = {k: v for k, v in value.items() if k in ("method", "name")}
    return named | {n: cast(p.type, value.get(n, p.default)) for n, p in declared.parameters.items()}


def mistakes(config: dict) -> Iterator[str]:
    """Cross-checks that the JSON schema cannot express: one message of one to three lines each."""
    for axis, (section, _) in AXES.items():
        key = "target" if axis == "objective" else "method"
        for name, value in config[section].items():
            yield from _of_method(
                f"{section}.{name}", key, value, known_methods(axis), lambda v, a=axis: source_of(a, v)
            )
    yield from _of_ends(config)
    for section, key, known in (("network", "method", source.networks()), ("data", "name", datasets())):
        yield from _of_method(section, key, config[section], known, lambda v, k=key, d=known: d[v[k]])
    if continuous(config):
        yield from _of_points(config)
    batch, processes = config["training"]["batch"], config["training"]["processes"]
    if batch % processes:
        yield f"training.batch: {batch} images cannot be shared evenly by training.processes: {processes}"
    for i, block in enumerate(config["grid"]):
        undefined = [(a, s, n) for a, (s, _) in AXES.items() for n in block[a] if n not in config[s]]
        for axis, section, name in undefined:
            yield f"grid[{i}].{axis}: {name!r} is not defined under {section}; defined are {', '.join(config[section])}"
        if not undefined:
            yield from _of_lengths(f"grid[{i}]", config, block)


def continuous(config: dict) -> bool:
    """Whether the data are points of continuous coordinates instead of images."""
    known = datasets().get(config["data"]["name"])
    return known is not None and known.attributes["levels"] == 0


def _of_points(config: dict) -> Iterator[str]:
    """What only images can be used with."""
    points = f"takes images, and data.name {config['data']['name']!r} gives points"
    if config["network"]["method"] == "unet":
        yield f"network.method: 'unet' {points}: it must be mlp"
    if config.get("fidelity", {}).get("extractor") == "inception":
        yield f"fidelity.extractor: 'inception' {points}: it must be identity or classifier"
    used = {name for block in config["grid"] for name in block["guidance"]}
    for name, value in config["guidances"].items():
        if name in used and value["method"] == "classifier":
            yield f"guidances.{name}.method: the guide of 'classifier' {points}: it must be none or cfg"


def _of_ends(config: dict) -> Iterator[str]:
    """Schedules that do not end in noise, for these data."""
    if (data := datasets().get(config["data"]["name"])) is None:
        return
    for name, value in config["schedules"].items():
        try:
            parameters = complete(source_of("schedule", value), value)
            if mistake := terminal.mistake(value["method"], parameters, data.attributes["std"]):
                yield f"schedules.{name}.{mistake}"
        except (TypeError, KeyError, ValueError, ArithmeticError):
            continue  # reported with the method itself


def _of_lengths(where: str, config: dict, block: dict) -> Iterator[str]:
    """Samplers with more steps than the schedule that they are to run on."""
    for schedule, sampler in product(block["schedule"], block["sampler"]):
        values = ("schedule", config["schedules"][schedule]), ("sampler", config["samplers"][sampler])
        try:
            total, wanted = (complete(source_of(axis, value), value)["steps"] for axis, value in values)
        except (TypeError, KeyError):
            continue  # reported with the method itself
        if wanted > total:
            yield f"{where}: sampler {sampler!r} takes {wanted} steps, but schedule {schedule!r} has T = {total}"


def _of_method(where: str, key: str, value: dict, known: dict, declared: Callable) -> Iterator[str]:
    """What is wrong with one method and its parameters."""
    if value[key] not in known:
        yield f"{where}.{key}: {value[key]!r} is unknown; known are {', '.join(known)}"
        return
    method, found = declared(value), []
    parameters, limits, choices = method.parameters, *(method.attributes.get(k, {}) for k in ("limits", "choices"))
    for name, given in value.items():
        if name not in parameters:
            if name != key:
                found.append(f"{name}: unknown key; known are {', '.join(parameters) or 'none'}")
            continue
        kind = parameters[name].type
        try:
            if mistake := outside(name, cast(kind, given), limits.get(name), choices.get(name)):
                found.append(mistake)
            elif given == [] and parameters[name].default:
                found.append(f"{name}: []; it must name at least one")
        except TypeError:
            hint = " (YAML reads 2e-4 as text: write 2.0e-4)" if kind == "float" and isinstance(given, str) else ""
            found.append(f"{name}: {given!r} is of type {type(given).__name__}; it must be {kind}{hint}")
    yield from (f"{where}.{mistake}" for mistake in found or conflicts(complete(method, value), method.attributes))


def incompatibility(values: dict[str, dict]) -> str:
    """Why these axis values cannot work together, as the methods declare it; empty where they can."""
    declared = {axis: source_of(axis, value) for axis, value in values.items()}
    full = {axis: complete(declared[axis], value) | declared[axis].attributes for axis, value in values.items()}
    for axis in values:
        for other, parameter, refused, reason in declared[axis].attributes.get("incompatible") or ():
            if full[other].get(parameter) == refused:
                return reason
    return ""
