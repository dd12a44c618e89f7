"""What methods there are, as their source declares them, and what is wrong with a configuration of them. No torch."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, product

from ddpm import terminal
from ddpm.errors import UserError
from ddpm.limits import conflicts, outside
from ddpm.pipeline import fingerprints, measures

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
def known_methods(axis: str) -> dict[str, fingerprints.MethodSource]:
    """The methods of an axis by name; an objective's are its targets."""
    module = AXES[axis][1]
    return fingerprints.methods(module, "Target" if axis == "objective" else axis.capitalize())


def datasets() -> dict[str, fingerprints.MethodSource]:
    """The datasets by name."""
    return fingerprints.methods("ddpm.datasets", "Dataset")


def source_of(axis: str, value: dict) -> fingerprints.MethodSource:
    """The source that declares an axis value's parameters: its method's class, or `Objective`."""
    return (
        fingerprints.describe(AXES[axis][1], "Objective")
        if axis == "objective"
        else known_methods(axis)[value["method"]]
    )


def cast(kind: str, value: object) -> object:
    """The value in its declared type, so that 1 and 1.0 are one job; TypeError where it does not fit."""
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise TypeError(kind) from None
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        inner = kind.removeprefix("tuple[").removesuffix("]")
        kinds = [inner.removesuffix(", ...")] * len(value) if inner.endswith(", ...") else inner.split(", ")
        if len(kinds) != len(value):
            raise TypeError(kind)
        return [cast(k, v) for k, v in zip(kinds, value, strict=True)]
    plain = {"int": int, "str": str, "bool": bool}.get(kind)
    if plain is not None and isinstance(value, plain) and not (kind == "int" and isinstance(value, bool)):
        return value
    raise TypeError(kind)


def _in_words(kind: str) -> str:
    """A declared type as YAML has it: `tuple[tuple[float, float], ...]` is `a list of [float, float]`."""
    if not kind.startswith("tuple["):
        return kind
    inner = kind.removeprefix("tuple[").removesuffix("]")
    return f"a list of {_in_words(inner.removesuffix(', ...'))}" if inner.endswith(", ...") else f"[{inner}]"


def complete(declared: fingerprints.MethodSource, value: dict) -> dict:
    """All parameters of a method: the configured ones, the others at their defaults."""
    named = {k: v for k, v in value.items() if k in ("method", "name")}
    return named | {n: cast(p.type, value.get(n, p.default)) for n, p in declared.parameters.items()}


def mistakes(config: dict, malformed: bool = False, more: Iterable[Iterator[str]] = ()) -> Iterator[str]:
    """Cross-checks that the JSON schema cannot express: one message of one to three lines each.

    malformed: the schema has found mistakes of its own. A check that fails on another one's mistake adds nothing.
    more: other checks.
    """
    for check in chain(_checks(config), more):
        try:
            for mistake in check:
                malformed = True
                yield mistake
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            if not malformed:
                raise


def _checks(config: dict) -> Iterator[Iterator[str]]:
    """Every check by itself."""
    for axis, (section, _) in AXES.items():
        key = "target" if axis == "objective" else "method"
        methods = config.get(section)
        for name, value in methods.items() if isinstance(methods, dict) else ():
            known = known_methods(axis)
            yield _of_method(f"{section}.{name}", key, value, known, lambda v, a=axis: source_of(a, v))
    known = fingerprints.networks()
    yield _of_method("network", "method", config.get("network"), known, lambda v, d=known: d[v["method"]])
    yield _of_data(config)
    yield _of_points(config)
    yield _of_labels(config)
    yield _of_extractor(config)
    schedules = config.get("schedules")
    for name in schedules if isinstance(schedules, dict) else ():
        yield _of_end(config, name)
    for section, half in (("sampling", "train"), ("likelihood", "test"), ("ode_likelihood", "test")):
        yield _of_count(config, section, half)
    yield _of_features(config)
    yield _of_training(config)
    yield _of_weights(config)
    yield _of_results(config)
    blocks = config.get("grid")
    for i, block in enumerate(blocks) if isinstance(blocks, list) else ():
        yield _of_block(f"grid[{i}]", config, block)
    yield _of_pairs(config)


def given(config: dict) -> set[str]:
    """What the data give to who requires something (`ddpm.pipeline.measures`); nothing where they are unknown."""
    known = datasets().get(config["data"]["name"])
    return set() if known is None else measures.given(known.attributes)


def continuous(config: dict) -> bool:
    """Whether the data are points of continuous coordinates instead of images."""
    return "points" in given(config)


def _of_points(config: dict) -> Iterator[str]:
    """What only images can be used with."""
    if not continuous(config):
        return
    points = f"takes images, and data.name {config['data']['name']!r} gives points"
    if config["network"]["method"] == "unet":
        yield f"network.method: 'unet' {points}: it must be mlp"
    used = {name for block in config["grid"] for name in block["guidance"]}
    for name, value in config["guidances"].items():
        if name in used and value["method"] == "classifier":
            yield f"guidances.{name}.method: the guide of 'classifier' {points}: it must be none or cfg"


def _of_labels(config: dict) -> Iterator[str]:
    """What only labelled data can be used with."""
    if (there := given(config)) and "labels" not in there:
        used = {name for block in config["grid"] for name in block["guidance"]}
        for name, value in config["guidances"].items():
            attributes = source_of("guidance", value).attributes
            if name in used and (attributes["guide"] or attributes["labels"] == "conditional"):
                takes = f"{value['method']!r} takes labels, and data.name {config['data']['name']!r} has none"
                yield f"guidances.{name}.method: {takes}: it must be none"


def _of_extractor(config: dict) -> Iterator[str]:
    """An extractor that these data cannot have."""
    if there := given(config):
        yield from measures.mistakes(config["fidelity"]["extractor"], config["data"]["name"], there)


def _of_data(config: dict) -> Iterator[str]:
    yield from _of_method("data", "name", config["data"], datasets(), lambda v: datasets()[v["name"]])


def _dataset(config: dict) -> dict:
    """What the dataset declares, with its parameters: `shape`, `train` and `test` may be None."""
    if any(_of_data(config)):
        raise LookupError("reported with the dataset itself")
    declared = datasets()[config["data"]["name"]]
    return declared.attributes | complete(declared, config["data"])


def _of_end(config: dict, name: str) -> Iterator[str]:
    """A schedule that does not end in noise, for these data; points of another size are known to training alone."""
    if continuous(config) and config["data"].keys() - {"name", "seed", "train", "test"}:
        return
    value = config["schedules"][name]
    parameters = complete(source_of("schedule", value), value)
    if mistake := terminal.mistake(value["method"], parameters, _dataset(config)["std"]):
        yield f"schedules.{name}.{mistake}"


def _of_count(config: dict, section: str, half: str) -> Iterator[str]:
    """More images than the half that they are taken from holds."""
    wanted, there, name = config[section]["images"], _dataset(config)[half], config["data"]["name"]
    if there is not None and wanted > there:
        of = "the row of real data takes as many" if section == "sampling" else "they are taken"
        yield f"{section}.images: {wanted}; {of} from the {half} half of {name!r}: it must be at most {there}"
    if section == "ode_likelihood" and wanted == 1:
        yield "ode_likelihood.images: 1; a standard error takes two: it must be 0 (not measured) or at least 2"


def _of_features(config: dict) -> Iterator[str]:
    """No more images than features: a covariance of lower rank, which only looks like a FID."""
    data, extractor, images = _dataset(config), config["fidelity"]["extractor"], config["sampling"]["images"]
    if data["shape"] is None or any(_of_extractor(config)):
        return
    features, counted = measures.features(extractor, data["shape"], config), measures.extractors()[extractor]["counted"]
    configured = "." in str(counted)
    key = f"{counted}: " if configured else f"fidelity.extractor: {extractor!r} has "
    halves = [(data[half], half) for half in ("train", "test") if data[half] is not None]
    fewest, half = min(halves, default=(features + 1, ""))
    if fewest <= features:
        cure = "it must be" if configured else "take an extractor of"
        yield (
            f"{key}{features} features; FID needs more images than that, but sampling.images is {images} and the "
            f"{half} half of {config['data']['name']!r} holds {fewest}: {cure} at most {fewest - 1}"
        )
    elif images <= features:
        yield (
            f"sampling.images: {images}; FID needs more images than features, and fidelity.extractor {extractor!r} has "
            f"{features}: it must be at least {features + 1}"
        )


def _of_training(config: dict) -> Iterator[str]:
    training = config["training"]
    if training["batch"] % training["processes"]:
        yield (
            f"training.batch: {training['batch']} images cannot be shared evenly by training.processes: "
            f"{training['processes']}"
        )
    if training["warmup"] > training["steps"]:
        yield f"training.warmup: {training['warmup']}; it must be at most training.steps, {training['steps']}"


def _of_weights(config: dict) -> Iterator[str]:
    weights, extractor = config["fidelity"]["weights"], config["fidelity"]["extractor"]
    if weights and extractor != "inception":
        yield f"fidelity.weights: {weights!r}; nothing uses it but fidelity.extractor inception: leave it empty"


# The folders of a clone, which results would mix with.
OWN = (".git", ".snakemake", "benchmarks", "data", "ddpm", "docs", "envs", "profiles", "slurm", "tests", "workflow")


def _of_results(config: dict) -> Iterator[str]:
    results = config["results"]
    if results.split("/")[0] in OWN:
        yield f"results: {results!r} belongs to the project; it must be a folder of its own, such as results/mine"


def _of_block(where: str, config: dict, block: dict) -> Iterator[str]:
    """Names that no section defines, and samplers that do not fit their schedules."""
    undefined = [(a, s, n) for a, (s, _) in AXES.items() for n in block[a] if n not in config[s]]
    for axis, section, name in undefined:
        yield f"{where}.{axis}: {name!r} is not defined under {section}; defined are {', '.join(config[section])}"
    if not undefined:
        yield from _of_lengths(where, config, block)


def _of_pairs(config: dict) -> Iterator[str]:
    """A grid without any pair that can work."""
    reasons = {}
    for block in config["grid"]:
        for row in product(*(block[axis] for axis in AXES)):
            values = {axis: config[section][name] for (axis, (section, _)), name in zip(AXES.items(), row, strict=True)}
            if not (reason := incompatibility(values)):
                return
            reasons["/".join(row)] = reason
    for name, reason in list(reasons.items())[:1]:
        yield f"grid: none of its {len(reasons)} cells can work; {name}: {reason}"


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
    if value[key] is None:  # reported by the schema
        return
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
            found.append(f"{name}: {given!r} is of type {type(given).__name__}; it must be {_in_words(kind)}{hint}")
    if not found:
        found += conflicts(complete(method, value), method.attributes, value)
    yield from (f"{where}.{mistake}" for mistake in found)


def incompatibility(values: dict[str, dict]) -> str:
    """Why these axis values cannot work together, as the methods declare it; empty where they can."""
    declared = {axis: source_of(axis, value) for axis, value in values.items()}
    full = {axis: complete(declared[axis], value) | declared[axis].attributes for axis, value in values.items()}
    for axis in values:
        for other, parameter, wanted, reason in declared[axis].attributes.get("requires") or ():
            if full[other].get(parameter) != wanted:
                return reason
    return ""
