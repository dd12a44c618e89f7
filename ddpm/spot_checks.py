"""Spot checks of a results folder, whoever made it: `ddpm verify`. Nothing in it is changed.

Hashes show that files are those of their records, not that the records are true: who changes an image can write its
hash anew. So everything that is cheaper than training is computed again and compared. An image depends on its
network's weights, its cell and its index alone, and comes out the same byte for byte in a batch of any size on the same
kind of CPU, and up to what `ddpm.rounding` allows on other hardware; so a few images of every cell stand for all, drawn
by chance, so that nobody knows which before. Of samplers that choose the steps of a batch together, whole batches are
drawn.

Networks and guides are not trained again, but averages of a training's snapshots are taken: whoever puts other weights
in their place and samples, measures and tables with these has made a whole tree of his own, which only `ddpm train …
--again` would tell.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from ddpm import latents, rng, rounding
from ddpm.compute import Computed, has_bfloat16
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.guidance import Guidance
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import changes, read_tensors
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES, external
from ddpm.pipeline.validity import reasons
from ddpm.samplers import Sampler
from ddpm.stages import autoencoder, cascade
from ddpm.stages.sample import computed, draw_labels, load_denoiser, noise, variance

Tensor = torch.Tensor
# If this share of a cell's images is not what its weights draw, one of them is seen with at least this probability.
SHARE, CHANCE = 0.03, 0.95
# What is computed again as a whole, in this order: what is quick first.
AGAIN = (
    "train",
    "fidelity",
    "paired",
    "likelihood",
    "ode_likelihood",
    "data",
    "classifier",
    "table",
    "figures",
    "page",
)
# What is computed in float64 from other results, or not computed: the same on any hardware, and to be so.
EXACT = ("data", "table", "page")
# Relative difference up to which a number that was computed again on the same hardware is the same.
CLOSE = 1e-6
# Looks at the result of one job, by its name.
Look = Callable[[Results, str], Iterator["Finding"]]


@dataclass(frozen=True)
class Finding:
    """What does not hold: the file, and what is found there beside what was computed."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def needed(images: int, share: float = SHARE, chance: float = CHANCE) -> int:
    """The least n so that of n images, drawn without replacement from N, one of the K = ⌈share · N⌉ others is seen with
    probability at least `chance`: 1 − C(N − K, n)/C(N, n), hypergeometric."""
    other, missed, n = math.ceil(share * images), 1.0, 0
    while n < images and missed > 1 - chance:
        missed *= max(0, images - other - n) / (images - n)
        n += 1
    return n


def check(results: Results, seed: int) -> Iterator[Finding]:
    """All that does not hold of the results of a grid; `seed` draws the images that are looked at."""
    sound = []
    for job in results.grid.every:
        found = list(recorded(results, *job))
        yield from found
        if not found and results.record(*job):
            sound.append(job)
    # What is made of a result that does not hold does not hold either: it is not computed.
    looks: dict[str, Look] = {"train": trained, "autoencoder": encoded, "sample": partial(redrawn, seed=seed)}
    for stage, name in sound:
        if stage in looks:
            yield from looks[stage](results, name)
    for stage in AGAIN:
        with tempfile.TemporaryDirectory() as folder:
            for name in (name for of, name in sound if of == stage and not trains(results, of, name)):
                yield from recomputed(results, stage, name, Layout(Path(folder) / "results"))


def trains(results: Results, stage: str, name: str) -> bool:
    """Whether a job trains a network, instead of reading one."""
    return stage == "train" and STAGES[stage].work(results.grid.job(stage, name)[0]) > 0


# ---- records and hashes -------------------------------------------------------------------------------------


def recorded(results: Results, stage: str, name: str) -> Iterator[Finding]:
    """Whether a record is of this job, code and packages, of the inputs that lie there, and its files are its own."""
    place, record = results.layout.record(stage, name), results.record(stage, name)
    if record is None:
        (reason,) = results.reasons(stage, name)
        if stage not in ("figures", "page"):  # which are made after the table, and perhaps not at all
            yield Finding(place, reason.text)
        return
    job, code = results.grid.job(stage, name)
    files = {os.path.relpath(path, place.parent) for path in results.layout.outputs(stage, name)}
    inputs, versions = results.inputs(stage, name), STAGES[stage].environment(job)
    for reason in reasons(place, record, job, code, versions, inputs, files, whole=True):
        yield Finding(place, reason.text)


# ---- networks and images ------------------------------------------------------------------------------------


def trained(results: Results, name: str) -> Iterator[Finding]:
    """Whether what a network's record counts is what its job says and its files hold."""
    record, layout = results.known("train", name), results.layout
    result, settings, place = record["result"], record["job"]["training"], layout.record("train", name)
    loss = layout.output("train", name, "loss").read_text(encoding="utf-8").splitlines()[1:]
    said = {
        "images_seen": result["steps"] * settings["batch"],
        "parameters": sum(p.numel() for p in load_denoiser(layout.result("train", name)).network.parameters()),
        "final_loss": float(loss[-1].split(",")[-1]) if loss else None,
    }
    if record["status"] == "ok":
        said["steps"] = settings["steps"]
    yield from _numbers(place, record, {k: result.get(k) for k in said}, said)


def encoded(results: Results, name: str = "") -> Iterator[Finding]:
    """Whether the autoencoder's numbers, those that its latents are scaled by included, are those of its weights."""
    record, layout = results.known("autoencoder", name), results.layout
    place, path = layout.record("autoencoder", name), layout.output("autoencoder", name)
    torch.set_num_threads(record["job"]["threads"])
    if record["status"] != "ok":
        return
    dataset = data.read(layout.output("data"))
    space = latents.read(path, dataset.space)
    measured = latents.measure(space.network, dataset.space, dataset.train.images)
    yield from _numbers(path, record, read_tensors(path)[1]["measured"], measured)
    said = measured | {
        "shape": list(space.shape),
        "parameters": sum(p.numel() for p in space.network.parameters()),
        "test_error": autoencoder.error(space, dataset.test.images),
    }
    yield from _numbers(place, record, {k: record["result"].get(k) for k in said}, said)


def redrawn(results: Results, cell: str, seed: int) -> Iterator[Finding]:
    """Whether images of a cell, drawn by chance, are what its weights draw, and all labels those that it was given."""
    job, record, path = results.grid.job("sample", cell)[0], results.known("sample", cell), _samples(results, cell)
    torch.set_num_threads(job["threads"])
    images = read_tensors(path)[0]["images"]
    wanted = job["sampling"]["images"] if record["status"] == "ok" else 0
    if record["status"] not in ("ok", "diverged") or len(images) != wanted:
        yield Finding(path, f"{len(images)} images of {cell}, which is {record['status']}; it must be {wanted}")
    elif results.known("train", job["network"])["status"] == "ok":
        yield from _Redrawing(results, cell).findings(seed)
    elif wanted:
        yield Finding(path, f"{wanted} images of {cell}, whose network has diverged")


def _samples(results: Results, cell: str) -> Path:
    return results.layout.output("sample", cell)


class _Redrawing:
    """One cell: what is stored of it, and what its weights draw."""

    def __init__(self, results: Results, cell: str):
        self.cell, self.path, self.place = cell, _samples(results, cell), results.layout.record("sample", cell)
        self.job, self.record = results.grid.job("sample", cell)[0], results.known("sample", cell)
        inputs = results.layout.inputs("sample", cell, self.job)
        tensors, _ = read_tensors(self.path)
        self.images, self.labels = tensors["images"], tensors.get("labels")
        self.dataset = data.read(inputs["data"], inputs.get("autoencoder"))
        self.denoiser = cascade.load(self.job, results.layout.parents("sample", cell, self.job))
        self.sampler = Sampler.make(self.job["sampler"])
        self.count, takes_labels = self.job["sampling"]["images"], self.denoiser.network.classes or "guide" in self.job
        self.given = draw_labels(self.dataset, noise(self.job), self.count) if takes_labels else None
        computed(self.denoiser, self.sampler, self.job["compute"], self.dataset.space, "cpu")
        precision = self.record["result"].get("compute", {}).get("precision")
        if elsewhere(self.record) and precision in ("float32", "bfloat16"):  # as it was, if slowly
            for part in self.denoiser.parts():
                if isinstance(part.call, Computed):
                    part.call.precision = precision

    def draw(self, index: Tensor) -> Tensor:
        """x_0 of the images with these numbers."""
        condition = Condition(self.given)[index]
        *_, x = cascade.chain(self.denoiser, self.sampler, noise(self.job), index, condition, self.dataset.shape)
        return x

    def findings(self, seed: int) -> Iterator[Finding]:
        """What is not as the weights draw it, by the images that `seed` chooses."""
        batches = torch.arange(self.count).split(self.job["sampling"]["batch"])
        if self.record["status"] == "ok" and (others := self._other_labels()):
            yield from others
        elif self.record["status"] == "ok":
            yield from self._other_images(rng.permutation(self.count, "verify", seed, self.cell)[: needed(self.count)])
        elif all(self.draw(index).isfinite().all() for index in batches):
            yield Finding(self.place, f"{self.cell} is diverged, but all its images are finite")

    def _other_labels(self) -> list[Finding]:
        """Whether labels are not those that the cell was given."""
        labels, given = self.labels, self.given if Guidance.make(self.job["guidance"]).steers else None
        if given is None or (labels is not None and torch.equal(labels, given)):
            return []
        first = 0 if labels is None or labels.shape != given.shape else int((labels != given).nonzero()[0])
        said = f"labels of {self.cell} are not those that its network's name draws, image {first} first"
        return [Finding(self.path, said)]

    def _level(self, span: float) -> float:
        """A grey level of the stored images, or 1/255 of the span of points."""
        return span / 255 if self.images.is_floating_point() else 1.0

    def _other_images(self, chosen: Tensor) -> Iterator[Finding]:
        """Whether these images are not what the weights draw, and what the record says of all."""
        parts = (chosen.sort().values,)
        if self.sampler.adaptive:  # whole batches, as they were drawn
            batches = torch.arange(self.count).split(self.record["result"]["compute"]["images_at_once"])
            parts = tuple(batch for batch in batches if torch.isin(batch, chosen).any())
        index, x = torch.cat(parts), torch.cat([self.draw(part) for part in parts])
        drawn, stored = self.dataset.space.decode(x), self.images[index]
        bad, shift = (drawn != stored).flatten(1).any(1), 0.0
        if elsewhere(self.record):
            span = float(self.dataset.train.images.max()) - float(self.dataset.train.images.min())
            bad, shift = rounding.unlike(stored, drawn, span), rounding.shift(stored, drawn, self._level(span))
        if bad.any():
            which, by = index[bad].tolist(), float((drawn.double() - stored.double()).abs().max())
            shown = ", ".join(map(str, which[:8])) + ", …" * (len(which) > 8)
            text = f"{len(which)} of {len(index)} images of {self.cell} are not what its weights draw, by up to {by:g}"
            yield Finding(self.path, f"{text}: {shown}{_elsewhere(self.record)}")
        elif shift:
            text = (
                f"images of {self.cell} are brighter by {shift:.2g} grey levels on average than its weights draw them"
            )
            yield Finding(self.path, f"{text}{_elsewhere(self.record)}")
        said = {
            "images": self.count,
            "steps": self.sampler.steps,
            "spread": variance(self.dataset.space.encode(self.images)) / self.dataset.variance,
        }
        if not self.sampler.adaptive:
            said["nfe"] = round(self.denoiser.evaluated / len(index))
        yield from _numbers(self.place, self.record, {k: self.record["result"].get(k) for k in said}, said)


def elsewhere(record: dict) -> bool:
    """Whether a result was made on other hardware than this: another processor, or one of other instructions."""
    precision = (record["result"].get("compute") or {}).get("precision", "")
    return record["hardware"] != records.hardware("cpu") or ("bfloat16" in precision and not has_bfloat16("cpu"))


def _elsewhere(record: dict) -> str:
    """Where other hardware has been allowed for."""
    here, there = records.hardware("cpu"), record["hardware"]
    return f" (made on {there}: more than rounding on {here} explains)" if elsewhere(record) else ""


# ---- what is computed again as a whole ----------------------------------------------------------------------


def recomputed(results: Results, stage: str, name: str, scratch: Layout) -> Iterator[Finding]:
    """Whether a job's numbers and files come out again, of the very files that it read; `scratch`: where to."""
    record, layout, code = results.known(stage, name), results.layout, results.grid.job(stage, name)[1]
    for parent in _read(results, stage, name):
        _link(layout, scratch, *parent)
    if stage == "page" and (logs := layout.root / "logs").is_dir():
        (scratch.root / "logs").symlink_to(logs.resolve())  # whose ends it shows
    try:
        execute(stage, record["job"], code, scratch)
    except UserError as e:  # such as data that are not here
        yield Finding(layout.record(stage, name), f"cannot be computed again: {e}")
        return
    place, again = layout.record(stage, name), records.read_record(scratch.record(stage, name))
    numbers = ({"status": of["status"]} | of["result"] for of in (record, again))
    yield from _numbers(place, record, *numbers)
    for output in again["outputs"]:
        if record["outputs"].get(output) != again["outputs"][output]:
            theirs, ours = place.parent / output, scratch.record(stage, name).parent / output
            if (
                elsewhere(record)
                and stage not in EXACT
                and output in record["outputs"]
                and rounding.alike(theirs, ours)
            ):
                continue
            text = f"is not what {f'{stage} {name}'.strip()} makes{_first(theirs, ours)}{_elsewhere(record)}"
            yield Finding(theirs, text)


def _read(results: Results, stage: str, name: str) -> list[Job]:
    """The jobs whose results a job reads."""
    if stage not in AGGREGATES:
        return list(results.grid.parents(stage, name).values())
    elsewhere = ((("fidelity", other), ("external", external(other))) for other in results.external)
    return [*results.reads(stage), *chain(*elsewhere)]


def _link(layout: Layout, scratch: Layout, stage: str, name: str) -> None:
    """A job's record and files in another tree, where they are there."""
    place = layout.record(stage, name)
    written = [place.parent / output for output in records.read_record(place)["outputs"]] if place.exists() else []
    for path in (place, *(Path(os.path.normpath(file)) for file in written)):
        link = scratch.root / path.relative_to(layout.root)
        if path.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def _numbers(place: Path, record: dict, found: dict, again: dict) -> Iterator[Finding]:
    """The numbers of a record that are not those that were computed again."""
    same: Callable[[float, float], bool] = partial(math.isclose, rel_tol=CLOSE)
    if elsewhere(record) and record["stage"] not in EXACT:
        same = partial(rounding.close, trained=record["stage"] == "classifier")
    for key, was, now in changes(found, again):
        if not (isinstance(was, int | float) and isinstance(now, int | float) and same(was, now)):
            yield Finding(place, f"result {key} of {record['job'].get('name', '')} is {was}; computed again: {now}")


def _first(found: Path, again: Path) -> str:
    """The first line in which two texts differ; empty of what is no text."""
    if found.suffix not in (".csv", ".md"):
        return ""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (found, again)]
    for number, (was, now) in enumerate(zip(*lines, strict=False), 1):
        if was != now:
            return f": line {number} is {was!r}; computed again: {now!r}"
    return f": it has {len(lines[0])} lines; computed again: {len(lines[1])}"
