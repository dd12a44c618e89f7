"""What can be measured of which data, as metrics, extractors and baselines declare it. No torch.

What they may want: of the data that they are `images` or `points`, `discrete` (so that one has a probability) or
with `labels`; and `classifier`, the trained one of clean images, which labelled data have.
"""

from collections.abc import Iterator
from math import prod

from ddpm.pipeline.declarations import methods
from ddpm.pipeline.registry import Files, known


def metrics(files: Files = ()) -> dict[str, dict]:
    """The metrics by name → what their classes declare (`ddpm.metrics.metric`), in the table's order: those whose
    direction is ↓ first. files: those of the user's own."""
    found = {name: m.attributes for name, m in known("metric", files).items()}
    return dict(sorted(found.items(), key=lambda item: item[1]["direction"] != "↓"))


def extractors(files: Files = ()) -> dict[str, dict]:
    """The feature extractors by name → what their classes declare (`ddpm.metrics.extractors`)."""
    return {name: e.attributes for name, e in known("extractor", files).items()}


def baselines() -> dict[str, dict]:
    """The baselines by name → what their classes declare (`ddpm.baselines`)."""
    return {name: b.attributes for name, b in methods("ddpm.baselines", "Baseline").items()}


def toplines() -> dict[str, str]:
    """The toplines, `stratified` and `by chance` → the baseline that is one."""
    return {declared["topline"]: name for name, declared in baselines().items() if declared["real"]}


def files_of(fidelity: dict) -> Files:
    """The files of the user's own that a job's section `fidelity` names."""
    return tuple(fidelity.get("modules", ()))


def chosen(fidelity: dict, there: set[str]) -> list[str]:
    """The metrics that a section `fidelity` asks for, in the table's order: those that it lists, or all that can be had
    of data that give what is `there`."""
    found = possible(metrics(files_of(fidelity)), there)
    listed = fidelity.get("metrics", "all")
    return found if listed == "all" else [name for name in found if name in listed]


def given(dataset: dict) -> set[str]:
    """What a dataset that declares this gives to whoever wants something; `labels`, if it is a parameter, says whether
    there are any."""
    space = known("space", tuple(dataset.get("modules", ())))[dataset["space"]["method"]].attributes
    found = {"images" if space["images"] else "points"}
    found |= {"discrete"} if space["discrete"] else set()
    return found | ({"labels", "classifier"} if dataset.get("labels", dataset["classes"]) else set())


def possible(declared: dict[str, dict], there: set[str]) -> list[str]:
    """Those of what is declared that want no more than is there."""
    return [name for name, attributes in declared.items() if there.issuperset(attributes["wants"])]


def needs(fidelity: dict, there: set[str]) -> list[str]:
    """What has to be made for the metrics that a section `fidelity` asks for and for its extractor: `classifier`, or
    nothing."""
    files = files_of(fidelity)
    asked = [metrics(files)[name] for name in chosen(fidelity, there)] + [extractors(files)[fidelity["extractor"]]]
    return ["classifier"] if any("classifier" in declared["wants"] for declared in asked) else []


def features(config: dict, shape: tuple[int, ...]) -> int:
    """How many features the configured extractor has of images of this shape."""
    counted = extractors(files_of(config["fidelity"]))[config["fidelity"]["extractor"]]["counted"]
    if isinstance(counted, int):
        return counted
    if counted == "coordinates":
        return prod(shape)
    section, key = counted.split(".")
    return config[section][key]


def mistakes(fidelity: dict, name: str, there: set[str], files: Files) -> Iterator[str]:
    """An extractor or metrics that there are not, or that the data named `name` cannot have."""
    declared, listed = metrics(files), fidelity.get("metrics", "all")
    if listed != "all" and not isinstance(listed, list):
        yield f"fidelity.metrics: {listed!r}; it must be all, or a list of some of {', '.join(declared)}"
        return
    if listed != "all":
        yield from (f"fidelity.metrics: {mistake}" for mistake in _of_metrics(listed, declared, name, there))
    extractor = fidelity["extractor"]
    yield from (f"fidelity.extractor: {extractor!r} {why}" for why in _unfit(extractor, extractors(files), name, there))


def _lacking(declared: dict, there: set[str]) -> list[str]:
    """What a metric or extractor wants and is not there."""
    return [want for want in declared["wants"] if want not in there]


def _of_metrics(listed: list[str], declared: dict[str, dict], name: str, there: set[str]) -> Iterator[str]:
    for metric in listed:
        if metric not in declared:
            yield f"{metric!r} is unknown; known are {', '.join(declared)}"
        elif lacking := _lacking(declared[metric], there):
            yield f"{metric!r} wants {' and '.join(lacking)}, which data.name {name!r} does not give"
    if "fid" not in listed:
        yield "'fid' is missing; every table has it, to tell samples from noise"


def _unfit(extractor: str, declared: dict[str, dict], name: str, there: set[str]) -> Iterator[str]:
    if extractor not in declared:
        yield f"is unknown; known are {', '.join(declared)}"
        return
    why = {
        "images": f"takes images, and data.name {name!r} gives points",
        "classifier": f"learns labels, and data.name {name!r} has none",
    }
    lacking, others = _lacking(declared[extractor], there), " or ".join(possible(declared, there))
    yield from (f"{text}: it must be {others}" for want, text in why.items() if want in lacking)
