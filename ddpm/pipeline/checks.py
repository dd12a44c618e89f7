"""What is wrong with a configuration of methods, and which of them cannot work together. No torch."""

from collections.abc import Iterable, Iterator
from itertools import chain, product
from typing import Any

from ddpm import terminal
from ddpm.errors import UserError
from ddpm.pipeline import averages, cascades, measures, spaces
from ddpm.pipeline.method_checks import of_files, of_value
from ddpm.pipeline.registry import AXES, complete, files_of, known, settled, source_of


class ConfigError(UserError):
    """Mistakes in the configuration: one message of one to three lines each."""

    def __init__(self, messages: list[str]):
        self.messages = messages
        super().__init__("\n".join(messages))


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
    files = files_of(config)
    yield of_files(files)
    for axis, section in AXES.items():
        for name, value in _held(config, section, dict).items():
            yield of_value(f"{section}.{name}", axis, value, files)
    if "network" in config:
        yield of_value("network", "network", config["network"], files)
    yield _of_networks(config)
    yield _of_data(config)
    yield _of_spaces(config)
    yield _of_points(config)
    yield _of_labels(config)
    yield _of_fidelity(config)
    for name in _held(config, "schedules", dict):
        yield _of_end(config, name)
    yield from of_counts(config, {})
    yield _of_training(config)
    yield averages.mistakes(config)
    yield _of_weights(config)
    yield _of_results(config)
    for i, block in enumerate(_held(config, "grid", list)):
        yield _of_block(f"grid[{i}]", config, block)
    yield _of_guides(config)
    yield _of_pairs(config)


def _held(config: dict, key: str, kind: type[dict] | type[list]) -> Any:
    """What stands under a key of the configuration; nothing where that is not of its kind."""
    found = config.get(key)
    return found if isinstance(found, kind) else kind()


def given(config: dict) -> set[str]:
    """What the data give to whoever wants something (`ddpm.pipeline.measures`); nothing where they are unknown."""
    dataset = known("dataset", tuple(config["data"].get("modules", ()))).get(config["data"]["name"])
    if dataset is None:
        return set()
    defaults = {name: parameter.default for name, parameter in dataset.parameters.items()}
    return measures.given(dataset.attributes | defaults | config["data"])


def continuous(config: dict) -> bool:
    """Whether the data are points of continuous coordinates instead of images."""
    return "points" in given(config)


def networks_of(config: dict) -> Iterator[tuple[str, dict]]:
    """Where a network stands, and what stands there."""
    if "network" in config:
        yield "network", config["network"]
    yield from ((f"networks.{name}", value) for name, value in config.get("networks", {}).items())


def _of_networks(config: dict) -> Iterator[str]:
    """One of two networks that is named as the other."""
    if "network" in config and (name := config["network"]["method"]) in config.get("networks", {}):
        yield f"networks.{name}: `network` is called {name!r} as well, after its method; give this one another name"


def _of_spaces(config: dict) -> Iterator[str]:
    """Networks that do not fit the images, or the space that they name."""
    found, data = list(networks_of(config)), dataset_of(config)
    yield from spaces.mistakes(config, found, data)
    yield from chain(spaces.patches(config, found, data["shape"]), cascades.mistakes(config, found, data))


def _of_points(config: dict) -> Iterator[str]:
    """What only images can be used with."""
    if not continuous(config):
        return
    points = f"takes images, and data.name {config['data']['name']!r} gives points"
    fitting = [name for name, source in known("network", files_of(config)).items() if not source.attributes["images"]]
    for where, value in networks_of(config):
        if spaces.is_latent(value):
            yield f"{where}.space: 'latent' {points}: it must be points"
        if value["method"] not in fitting:
            yield f"{where}.method: {value['method']!r} {points}: it must be {' or '.join(fitting)}"
    for where, value in _guidances(config):
        if value["method"] == "classifier":
            yield f"{where}.method: the guide of 'classifier' {points}: it must be none or cfg"


def _guidances(config: dict) -> Iterator[tuple[str, dict]]:
    """Where a guidance stands that a block names, and what stands there."""
    used = {name for block in config["grid"] for name in block["guidance"]}
    yield from ((f"guidances.{name}", value) for name, value in config["guidances"].items() if name in used)


def _of_labels(config: dict) -> Iterator[str]:
    """What only labelled data can be used with."""
    if (there := given(config)) and "labels" not in there:
        for where, value in _guidances(config):
            attributes = source_of("guidance", value).attributes
            if attributes["guide"] or attributes["labels"] == "conditional":
                takes = f"{value['method']!r} takes labels, and data.name {config['data']['name']!r} has none"
                yield f"{where}.method: {takes}: it must be none"


def _of_fidelity(config: dict) -> Iterator[str]:
    """An extractor or metrics that there are not, or that these data cannot have."""
    if there := given(config):
        yield from measures.mistakes(config["fidelity"], config["data"]["name"], there, files_of(config))


def _of_data(config: dict) -> Iterator[str]:
    files = files_of(config)
    yield from of_value("data", "dataset", config["data"], files)
    if source := known("dataset", files).get(config["data"]["name"]):
        name, spaces = source.attributes["space"]["method"], known("space", files)
        if name not in spaces:
            yield f"data.name: {config['data']['name']!r} has the space {name!r}; known are {', '.join(spaces)}"


def dataset_of(config: dict) -> dict:
    """What the dataset declares, with its parameters: `shape`, `train` and `test` may be None."""
    if any(_of_data(config)):
        raise LookupError("reported with the dataset itself")
    declared = source_of("dataset", config["data"])
    found = declared.attributes | complete(declared, config["data"])
    return found | ({"shape": tuple(found[name] for name in found["form"])} if found["form"] else {})


def _of_end(config: dict, name: str) -> Iterator[str]:
    """A schedule that does not end in noise, for these data; points of another size are known to training alone."""
    if continuous(config) and config["data"].keys() - {"name", "seed", "train", "test"}:
        return
    value = config["schedules"][name]
    parameters = complete(source_of("schedule", value), value)
    if mistake := terminal.mistake(value["method"], parameters, dataset_of(config)["std"]):
        yield f"schedules.{name}.{mistake}"


def of_counts(config: dict, counts: dict[str, int]) -> Iterator[Iterator[str]]:
    """What asks for more images than there are; counts: how many a split holds, where only the data themselves say."""
    asked = [("sampling", "train"), ("likelihood", "test"), ("ode_likelihood", "test")]
    asked += [("sampling", "test")] * any(spaces.is_latent(value) for _, value in networks_of(config))
    for section, split in asked:
        yield _of_count(config, section, split, counts)
    yield _of_features(config, counts)


def _of_count(config: dict, section: str, split: str, counts: dict[str, int]) -> Iterator[str]:
    """More images than the split that they are taken from holds."""
    wanted, there, name = config[section]["images"], (dataset_of(config) | counts)[split], config["data"]["name"]
    if there is not None and wanted > there:
        row = {"train": "the row of real data takes as many", "test": "the row of reconstructions takes as many"}
        of = row[split] if section == "sampling" else "they are taken"
        yield f"{section}.images: {wanted}; {of} from the {split} split of {name!r}: it must be at most {there}"
    if section == "ode_likelihood" and wanted == 1:
        yield "ode_likelihood.images: 1; a standard error takes two: it must be 0 (not measured) or at least 2"


def _of_features(config: dict, counts: dict[str, int]) -> Iterator[str]:
    """No more images than features: a covariance of lower rank, which only looks like a FID."""
    data = dataset_of(config) | counts
    extractor, images = config["fidelity"]["extractor"], config["sampling"]["images"]
    if data["shape"] is None or any(_of_fidelity(config)):
        return
    features = measures.features(config, data["shape"])
    counted = measures.extractors(files_of(config))[extractor]["counted"]
    configured = "." in str(counted)
    key = f"{counted}: " if configured else f"fidelity.extractor: {extractor!r} has "
    splits = [(data[split], split) for split in ("train", "test") if data[split] is not None]
    fewest, split = min(splits, default=(features + 1, ""))
    if fewest <= features:
        cure = "it must be" if configured else "take an extractor of"
        yield (
            f"{key}{features} features; FID needs more images than that, but sampling.images is {images} and the "
            f"{split} split of {config['data']['name']!r} holds {fewest}: {cure} at most {fewest - 1}"
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
    using = [name for name, declared in measures.extractors(files_of(config)).items() if declared["loads"]]
    if weights and extractor not in using:
        users = " or ".join(using)
        yield f"fidelity.weights: {weights!r}; nothing uses it but fidelity.extractor {users}: leave it empty"


# The folders of a clone, which results would mix with.
OWN = (".git", ".snakemake", "benchmarks", "data", "ddpm", "docs", "envs", "profiles", "slurm", "tests", "workflow")


def _of_results(config: dict) -> Iterator[str]:
    results = config["results"]
    if results.split("/")[0] in OWN:
        yield f"results: {results!r} belongs to the project; it must be a folder of its own, such as results/mine"


def _of_block(where: str, config: dict, block: dict) -> Iterator[str]:
    """Names that no section defines, and samplers that do not fit their schedules."""
    config = settled(config)
    undefined = [(a, s, n) for a, s in AXES.items() for n in block.get(a, ()) if n not in config[s]]
    for axis, section, name in undefined:
        yield f"{where}.{axis}: {name!r} is not defined under {section}; defined are {', '.join(config[section])}"
    if not undefined:
        yield from _of_lengths(where, config, block)


def _of_guides(config: dict) -> Iterator[str]:
    """Guidances whose other network is none of the configuration's, or the one that it would guide."""
    config, found = settled(config), dict[str, None]()
    for block in config["grid"]:
        for name in block["guidance"]:
            value = config["guidances"][name]
            if "guide_network" in source_of("guidance", value).parameters:
                by = value.get("guide_network", "")
                if wrong := _wrong_guide(by, block["network"], config["networks"]):
                    found[f"guidances.{name}.guide_network: {by!r} {wrong}"] = None
    yield from found


def _wrong_guide(by: str, guided: list[str], networks: dict[str, dict]) -> str:
    """Why a network cannot guide these ones; empty where it can."""
    if by not in networks:
        return f"is not defined under networks; defined are {', '.join(networks)}"
    if by in guided:
        return "cannot guide itself; it must be another network than those of its blocks"
    if len({cascades.kind(networks[name]) for name in (by, *guided)}) > 1:
        return "is of another space than networks of its blocks; it must be of theirs"
    return ""


def _of_pairs(config: dict) -> Iterator[str]:
    """A grid without any pair that can work."""
    reasons, config = {}, settled(config)
    for block in config["grid"]:
        for row in product(*(block[axis] for axis in AXES)):
            values = {axis: config[section][name] for (axis, section), name in zip(AXES.items(), row, strict=True)}
            if not (reason := incompatibility(values)):
                return
            reasons["/".join(row[:-1])] = reason
    for name, reason in list(reasons.items())[:1]:
        yield f"grid: none of its {len(reasons)} cells can work; {name}: {reason}"


def _of_lengths(where: str, config: dict, block: dict) -> Iterator[str]:
    """Samplers with more sampling steps than their schedule has diffusion steps."""
    for schedule, sampler in product(block["schedule"], block["sampler"]):
        values = ("schedule", config["schedules"][schedule]), ("sampler", config["samplers"][sampler])
        try:
            total, wanted = (complete(source_of(axis, value), value)["steps"] for axis, value in values)
        except (ValueError, KeyError):
            continue  # reported with the method itself
        if wanted > total:
            yield f"{where}: sampler {sampler!r} takes {wanted} sampling steps, schedule {schedule!r} has T = {total}"


def incompatibility(values: dict[str, dict]) -> str:
    """Why these axis values cannot work together, as the methods declare it; empty where they can."""
    declared = {axis: source_of(axis, value) for axis, value in values.items()}
    full = {axis: complete(declared[axis], value) | declared[axis].attributes for axis, value in values.items()}
    for source in declared.values():
        for other, parameter, wanted, reason in source.requires:
            if other in full and full[other].get(parameter) != wanted:
                return reason
    return ""
