"""What is wrong with a configuration of methods, and which of them cannot work together. No torch."""

from collections.abc import Iterable, Iterator
from itertools import chain, product

from ddpm import terminal
from ddpm.errors import UserError
from ddpm.parameters import cast, conflicts, unmet, unused
from ddpm.pipeline import averages, cascades, measures, spaces
from ddpm.pipeline.declarations import MethodSource, describe, found_in
from ddpm.pipeline.registry import (
    AXES,
    KINDS,
    PARTS,
    SHARED,
    Files,
    complete,
    composed,
    files_of,
    key_of,
    known,
    parts_of,
    settled,
    source_of,
)


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
    yield _of_files(files)
    for axis, section in AXES.items():
        values = config.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            where = f"{section}.{name}"
            yield _of_objective(where, value, files) if axis == "objective" else _of_method(where, axis, value, files)
    if "network" in config:
        yield _of_method("network", "network", config["network"], files)
    yield _of_networks(config)
    yield _of_data(config)
    yield _of_spaces(config)
    yield _of_points(config)
    yield _of_labels(config)
    yield _of_fidelity(config)
    schedules = config.get("schedules")
    for name in schedules if isinstance(schedules, dict) else ():
        yield _of_end(config, name)
    yield from of_counts(config, {})
    yield _of_training(config)
    yield averages.mistakes(config)
    yield _of_weights(config)
    yield _of_results(config)
    blocks = config.get("grid")
    for i, block in enumerate(blocks) if isinstance(blocks, list) else ():
        yield _of_block(f"grid[{i}]", config, block)
    yield _of_guides(config)
    yield _of_pairs(config)


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


def _of_fidelity(config: dict) -> Iterator[str]:
    """An extractor or metrics that there are not, or that these data cannot have."""
    if there := given(config):
        yield from measures.mistakes(config["fidelity"], config["data"]["name"], there, files_of(config))


def _of_data(config: dict) -> Iterator[str]:
    files = files_of(config)
    yield from _of_method("data", "dataset", config["data"], files)
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
    config = settled(config)
    networks, found = config["networks"], dict[str, None]()
    for block in config["grid"]:
        for name in block["guidance"]:
            value = config["guidances"][name]
            if "guide_network" not in source_of("guidance", value).parameters:
                continue
            by, where = value.get("guide_network", ""), f"guidances.{name}.guide_network"
            if by not in networks:
                found[f"{where}: {by!r} is not defined under networks; defined are {', '.join(networks)}"] = None
            elif by in block["network"]:
                found[f"{where}: {by!r} cannot guide itself; it must be another network than those of its blocks"] = (
                    None
                )
            elif len({cascades.kind(networks[n]) for n in (by, *block["network"])}) > 1:
                found[f"{where}: {by!r} is of another space than networks of its blocks; it must be of theirs"] = None
    yield from found


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


def _of_files(files: Files) -> Iterator[str]:
    """Files of methods that are not there, cannot be read, or declare no method, or one of a name that is taken."""
    if not files:
        return
    places = {(kind, name): source.place for kind in KINDS for name, source in known(kind).items()}
    for file in files:
        found = 0
        for kind, (_, base) in KINDS.items():
            for name, module, cls in found_in(file, base):
                place, found = describe(module, cls).place, found + 1
                if (taken := places.setdefault((kind, name), place)) != place:
                    yield f"methods: the {kind} {name!r} stands in {taken} and in {place}; give one another name"
        if not found:
            yield f"methods: {file} declares no method; one is a class below {', '.join(b for _, b in KINDS.values())}"


def _of_method(where: str, axis: str, value: dict, files: Files) -> Iterator[str]:
    """What is wrong with one method and its parameters."""
    key, choices = key_of(axis), known(axis, files)
    if value[key] is None:  # reported by the schema
        return
    if value[key] not in choices:
        yield f"{where}.{key}: {value[key]!r} is unknown; known are {', '.join(choices)}"
        return
    method = choices[value[key]]
    given = {k: v for k, v in value.items() if k not in (key, "modules", *SHARED.get(axis, ()))}
    found = []
    for name in (n for n in given if n not in method.parameters):
        others = [other for other, source in choices.items() if name in source.parameters]
        have = f"{others[0]} and others have" if len(others) > 1 else f"{''.join(others)} has"
        hint = f" of {value[key]} ({have} it; null takes back what an earlier file says)"
        found.append(f"{name}: unknown key{hint if others else ''}; known are {', '.join(method.parameters) or 'none'}")
    yield from (f"{where}.{mistake}" for mistake in _of_parameters(method, given, found))


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


def _of_objective(where: str, value: dict, files: Files) -> Iterator[str]:
    """What is wrong with an objective: its components, parameters that none of them has, and their values."""
    if value["target"] is None:  # reported by the schema
        return
    everything = {part: known(part, files) for part in PARTS}
    unknown = [p for p in PARTS if p in value and not (isinstance(value[p], str) and value[p] in everything[p])]
    for part in unknown:
        yield f"{where}.{part}: {value[part]!r} is unknown; known are {', '.join(everything[part])}"
    if unknown:
        return
    parts = parts_of(value, files)
    names = {part: source.attributes["method"] for part, source in parts.items()}
    source, found = composed(value, files), []
    for name in (n for n in value if n not in source.parameters and n != "modules"):
        users = {f"{part} {n}": s for part in PARTS for n, s in everything[part].items() if name in s.parameters}
        if not users:
            found.append(f"{name}: unknown key; known are {', '.join(source.parameters)}")
            continue
        try:
            shown = cast(name, next(iter(users.values())).parameters[name].annotation, value[name])
        except ValueError as e:
            found.append(str(e))
            continue
        replacing = [
            f"{part} {names[part]}" for part in PARTS if name in (parts[part].attributes.get("replaces") or ())
        ]
        found.append(unused(name, shown, ", or ".join(users), " and ".join(replacing)))
    needs = {part: source.attributes.get("needs") or {} for part, source in parts.items()}
    found += unmet(names, needs)
    yield from (
        f"{where}.{m}" for m in _of_parameters(source, {k: v for k, v in value.items() if k != "modules"}, found)
    )


def incompatibility(values: dict[str, dict]) -> str:
    """Why these axis values cannot work together, as the methods declare it; empty where they can."""
    declared = {axis: source_of(axis, value) for axis, value in values.items()}
    full = {axis: complete(declared[axis], value) | declared[axis].attributes for axis, value in values.items()}
    for axis in values:
        for other, parameter, wanted, reason in declared[axis].attributes.get("requires") or ():
            if other in full and full[other].get(parameter) != wanted:
                return reason
    return ""
