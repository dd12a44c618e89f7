"""What can be measured of which data, as metrics, extractors and baselines declare it. No torch.

What they may want: of the data that they are `images` or `points`, `discrete` (so that one has a probability) or
with `labels`; and `classifier`, the trained one of clean images, which labelled data have.
"""

from collections.abc import Iterator
from math import prod

from ddpm.pipeline.declarations import methods


def metrics() -> dict[str, dict]:
    """The metrics by name → what their classes declare (`ddpm.metrics.metric`), in the table's order: those whose
    direction is ↓ first."""
    found = {name: m.attributes for name, m in methods("ddpm.metrics", "Metric").items()}
    return dict(sorted(found.items(), key=lambda item: item[1]["direction"] != "↓"))


def extractors() -> dict[str, dict]:
    """The feature extractors by name → what their classes declare (`ddpm.metrics.extractors`)."""
    return {name: e.attributes for name, e in methods("ddpm.metrics", "Extractor").items()}


def baselines() -> dict[str, dict]:
    """The baselines by name → what their classes declare (`ddpm.baselines`)."""
    return {name: b.attributes for name, b in methods("ddpm.baselines", "Baseline").items()}


def toplines() -> dict[str, str]:
    """The toplines, `stratified` and `by chance` → the baseline that is one."""
    return {declared["topline"]: name for name, declared in baselines().items() if declared["real"]}


def shown(*places: str) -> list[str]:
    """The metrics that are shown in one of these places, in the table's order."""
    return [name for name, declared in metrics().items() if declared["shown"] in places]


def toplined() -> dict[str, str]:
    """The metrics that real images have a topline of → their titles."""
    return {name: declared["title"] for name, declared in metrics().items() if declared["topline"]}


def given(dataset: dict) -> set[str]:
    """What a dataset that declares this gives to whoever wants something."""
    space = methods("ddpm.spaces", "Space")[dataset["space"]["method"]].attributes
    found = {"images" if space["images"] else "points"}
    found |= {"discrete"} if space["discrete"] else set()
    return found | ({"labels", "classifier"} if dataset["classes"] else set())


def possible(declared: dict[str, dict], there: set[str]) -> list[str]:
    """Those of what is declared that want no more than is there."""
    return [name for name, attributes in declared.items() if there.issuperset(attributes["wants"])]


def needs(extractor: str, there: set[str]) -> list[str]:
    """What has to be made for the metrics that are possible, and for the extractor: `classifier`, or nothing."""
    asked = [metrics()[name] for name in possible(metrics(), there)] + [extractors()[extractor]]
    return ["classifier"] if any("classifier" in declared["wants"] for declared in asked) else []


def features(extractor: str, shape: tuple[int, ...], config: dict) -> int:
    """How many features an extractor has of images of this shape."""
    counted = extractors()[extractor]["counted"]
    if isinstance(counted, int):
        return counted
    if counted == "coordinates":
        return prod(shape)
    section, key = counted.split(".")
    return config[section][key]


def mistakes(extractor: str, name: str, there: set[str]) -> Iterator[str]:
    """An extractor that the data named `name` cannot have."""
    lacking = set(extractors()[extractor]["wants"]) - there
    others, where = " or ".join(possible(extractors(), there)), f"fidelity.extractor: {extractor!r}"
    if "images" in lacking:
        yield f"{where} takes images, and data.name {name!r} gives points: it must be {others}"
    if "classifier" in lacking:
        yield f"{where} learns labels, and data.name {name!r} has none: it must be {others}"
