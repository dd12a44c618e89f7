"""What methods there are, ours and those in files of the user's own, as their sources declare them. No torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ddpm.errors import UserError
from ddpm.extensions import clash
from ddpm.parameters import cast, plain
from ddpm.pipeline.declarations import MethodSource, Parameter, describe, found_in, methods

# The axes, and the section of the configuration that defines their values.
AXES = {
    "objective": "objectives",
    "schedule": "schedules",
    "guidance": "guidances",
    "sampler": "samplers",
    "network": "networks",
}
# What an objective is made of; the first has no default.
PARTS = ("target", "weighting", "variance", "times", "matching")
# What a name may stand for, the module or package that holds ours, and their base class.
KINDS = {
    "schedule": ("ddpm.schedules", "Schedule"),
    "guidance": ("ddpm.guidance", "Guidance"),
    "sampler": ("ddpm.samplers", "Sampler"),
    "target": ("ddpm.objectives", "Target"),
    "weighting": ("ddpm.objectives", "Weighting"),
    "variance": ("ddpm.objectives", "Variance"),
    "times": ("ddpm.times", "Times"),
    "matching": ("ddpm.matching", "Matching"),
    "network": ("ddpm.networks", "Network"),
    "dataset": ("ddpm.datasets", "Dataset"),
    "space": ("ddpm.spaces", "Space"),
    "metric": ("ddpm.metrics", "Metric"),
    "extractor": ("ddpm.metrics", "Extractor"),
}
# Keys that every value of an axis may have, which are no parameters of its method: the space that a network works in.
SHARED = {"network": ("space",)}
Files = tuple[str, ...]


def known(kind: str, files: Files = ()) -> dict[str, MethodSource]:
    """The methods of one kind by name: ours, and those in files of the user's own."""
    return methods(*KINDS[kind], files)


def files_of(config: dict) -> Files:
    """The files of methods that the configuration names."""
    named = [Path(f) for f in config.get("methods") or () if isinstance(f, str)]
    return tuple((path / "__init__.py" if path.is_dir() else path).as_posix() for path in named)


def readable(config: dict) -> tuple[dict, list[str]]:
    """The configuration without those of its files of methods that cannot be read, and what is wrong with these."""
    good, wrong = [], []
    for file in files_of(config):
        try:
            if not Path(file).is_file():
                raise UserError(f"{file}: no such file; it must be one of Python, or the folder of a package")
            if taken := clash(file):
                raise UserError(f"{file}: its name is that of another module, {taken}; rename it")
            for _, base in KINDS.values():
                for _, module, name in found_in(file, base):
                    _ = describe(module, name).parameters
            good.append(file)
        except UserError as e:
            wrong.append(f"methods: {e}")
    return (config | {"methods": good} if wrong else config), wrong


def parts_of(objective: dict, files: Files) -> dict[str, MethodSource]:
    """The components of an objective."""
    found = {}
    for part in PARTS:
        base = KINDS[part]
        found[part] = known(part, files)[objective.get(part, describe(*base).attributes["default"])]
    return found


@dataclass(frozen=True)
class ObjectiveSource(MethodSource):
    """An objective's source: it names its components, and has the parameters of them all."""

    parts: dict[str, MethodSource] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Part → the name of the component."""
        return {part: source.attributes["method"] for part, source in self.parts.items()}

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        replaced = {name for source in self.parts.values() for name in source.replaces}
        found = {part: Parameter(str, name) for part, name in self.names.items()}
        for source in self.parts.values():
            found |= {k: p for k, p in source.parameters.items() if k not in replaced | found.keys()}
        return found


def composed(objective: dict, files: Files) -> ObjectiveSource:
    """The source of an objective, which its components make up."""
    parts = parts_of(objective, files)
    return _composed(tuple(parts), tuple((source.module, source.name) for source in parts.values()))


@cache
def _composed(names: tuple[str, ...], classes: tuple[tuple[str, str], ...]) -> ObjectiveSource:
    parts = {name: describe(*cls) for name, cls in zip(names, classes, strict=True)}
    pairs = tuple(pair for source in parts.values() for pair in source.requires)
    return ObjectiveSource("ddpm.objectives", "Objective", {}, {"requires": pairs}, parts=parts)


def source_of(axis: str, value: dict) -> MethodSource:
    """The source that declares the parameters of an axis's value, of the network or of the data."""
    files = tuple(value.get("modules", ()))
    return composed(value, files) if axis == "objective" else known(axis, files)[value[key_of(axis)]]


def classes(axis: str, value: dict) -> Iterator[tuple[str, str]]:
    """(module, class) of every method that an axis value of a job names, an objective's components included.

    axis: one of `AXES`, "dataset", or "model": what of an objective has a part in sampling and evaluation.
    """
    files = tuple(value.get("modules", ()))
    if axis == "model":
        parts = parts_of(value, files)
        found = [parts["target"], parts["variance"]]
    else:
        found = _sources(axis, value, files)
    yield from ((source.module, source.name) for source in found)


def _sources(axis: str, value: dict, files: Files) -> list[MethodSource]:
    """What an axis's value, the network or the data are made of: an objective of its components, all else of one
    method."""
    return list(parts_of(value, files).values()) if axis == "objective" else [known(axis, files)[value[key_of(axis)]]]


def _places(sources: Iterable[MethodSource]) -> list[str]:
    """The files of the user's own that declare these methods."""
    return list(dict.fromkeys(file for source in sources for file in source.modules))


def located(config: dict) -> dict:
    """The configuration with `modules`, the files of the user's own that declare it, in every value that needs them."""
    files = files_of(config)
    if not files:
        return config

    def modules(axis: str, value: Any) -> Any:
        try:
            own = _sources(axis, value, files)
        except (AttributeError, LookupError, TypeError):  # a mistake, which the checks report
            return value
        if axis == "dataset":  # and the space that it names
            own += [s for name, s in known("space", files).items() if name == own[0].attributes["space"]["method"]]
        named = _places(own)
        return value | ({"modules": named} if named else {})

    sections = {
        section: {name: modules(axis, value) for name, value in config[section].items()}
        for axis, section in AXES.items()
        if isinstance(config.get(section), dict)
    }
    if isinstance(fidelity := config.get("fidelity"), dict) and (own := _measuring(fidelity, files)):
        sections["fidelity"] = fidelity | {"modules": own}
    single = {s: modules(kind, config[s]) for s, kind in (("network", "network"), ("data", "dataset")) if s in config}
    return config | sections | single


def _measuring(fidelity: dict, files: Files) -> list[str]:
    """The files of the user's own that declare what a section `fidelity` asks for: metrics, and the extractor."""
    metrics, listed = known("metric", files), fidelity.get("metrics", "all")
    asked = [name for name in metrics if listed == "all" or name in (listed or ())]
    extractor = known("extractor", files).get(fidelity.get("extractor", ""))
    return _places([*(metrics[name] for name in asked), *filter(None, [extractor])])


def settled(config: dict) -> dict:
    """The configuration with `network`, named by its method, before what else is under `networks`, and with the name of
    the first of them as `network`, and in every block that names none. A block's `ema` becomes networks of its own: the
    averages of these lengths of what its networks are trained to."""
    networks = {config["network"]["method"]: config["network"]} if "network" in config else {}
    networks |= config.get("networks", {})
    if not networks:
        raise LookupError("reported by the schema")
    first = next(iter(networks))
    blocks = [{"network": [first]} | block for block in config["grid"]]
    for block in blocks:
        if lengths := block.pop("ema", None):
            made = {n: _averages(n, networks[n], lengths) for n in block["network"] if n in networks}
            for averages in made.values():
                networks |= averages
            block["network"] = [average for name in block["network"] for average in made.get(name, (name,))]
    return config | {"network": first, "networks": networks, "grid": blocks}


def _averages(name: str, network: dict, lengths: list[float]) -> dict[str, dict]:
    """The networks that are averages of these lengths of what a network is trained to, by name."""
    return {f"{name}-ema{length}": network | {"of": name, "ema": length} for length in lengths}


def key_of(axis: str) -> str:
    """The key of a value that says which method it is."""
    return {"dataset": "name", "objective": "target"}.get(axis, "method")


def complete(declared: MethodSource, value: dict) -> dict:
    """All parameters of a method, as JSON holds them: the configured ones, the others at their defaults."""
    named = {k: v for k, v in value.items() if k in ("method", "name", "modules")}
    return named | {n: plain(cast(n, p.annotation, value.get(n, p.default))) for n, p in declared.parameters.items()}
