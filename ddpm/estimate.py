"""What jobs would take on this machine, before any has run: `ddpm status --estimate`.

A few steps of every kind of job are computed twice, in two lengths, on made-up images: a line through both times, over
the job's work (`Stage.work`), gives the time of the whole job. What networks do takes nearly all time of a grid; the
metrics, the feature extractor and the data are not timed.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from ddpm.datasets.dataset import Dataset
from ddpm.errors import UserError
from ddpm.pipeline import records
from ddpm.pipeline.checks import dataset_of
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, canonical
from ddpm.pipeline.run import execute
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import STAGES
from ddpm.pipeline.status import duration
from ddpm.samplers import Sampler
from ddpm.spaces import Space

STAGES_TIMED = ("train", "snapshots", "guide", "likelihood", "sample")
# Steps of training and of samplers, and images of likelihoods, that are timed.
LENGTHS = 2, 6
# Images that are sampled, and times at which the bound is evaluated, at most.
IMAGES, TIMES = 64, 8
# The keys of a job that name what it reads → the stage that makes it; one of its kind will do.
READS = {
    "sample": {"network": "train", "guide": "guide", "guide_network": "train", "base_network": "train"},
    "likelihood": {"name": "train"},
}


class Estimate:
    """Seconds of jobs by a line through two short ones of their kind; `memory`: MiB of a process that has run them."""

    def __init__(self, grid: Grid, jobs: Iterable[Job]):
        self.grid, self.seconds = grid, dict[Job, float]()
        self._lines: dict[str, tuple[str, float, float]] = {}  # kind → name, seconds at no work, and per work
        self._warm: set[str] = set()
        self.device = "cuda" if grid.config["device"] != "cpu" and torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            self.scratch = Layout(Path(folder) / "results")
            made_up(grid, self.scratch)
            for stage, name in jobs:
                if stage in STAGES_TIMED:
                    self._whole(stage, name)
        self.memory = records.peak_memory_mb()

    def _whole(self, stage: str, name: str) -> None:
        """The seconds of one job, and of what it reads before it."""
        job = self.grid.job(stage, name)[0]
        if "autoencoder" in job.get("model", job):  # which would have to be trained first
            return
        if ("sampler" in job and Sampler.make(job["sampler"]).adaptive) or not STAGES[stage].work(job):
            return  # a sampler that chooses its steps; a network that is not trained
        # Averaging takes little of the time that training does.
        like = ("train", self.grid.snapshots[name]) if stage == "snapshots" else (stage, name)
        _, start, rate = self._line(*like)
        self.seconds[stage, name] = start + rate * STAGES[stage].work(job)

    def _line(self, stage: str, name: str) -> tuple[str, float, float]:
        job = self.grid.job(stage, name)[0]
        like = {}
        if stage in READS:
            like = {key: self._line(of, job[key])[0] for key, of in READS[stage].items() if key in job}
        kind = canonical([stage, like, self._kind(stage, job)])
        if kind not in self._lines:
            short = [shortened(stage, job | like, length) for length in LENGTHS]
            if stage not in self._warm:  # its modules are loaded, and torch has chosen its kernels
                self._timed(stage, short[0])
                self._warm.add(stage)
            (less, more), (few, many) = (self._timed(stage, s) for s in short), (STAGES[stage].work(s) for s in short)
            rate = max(0.0, more - less) / max(1.0, many - few)
            self._lines[kind] = name, max(0.0, less - rate * few), rate
        return self._lines[kind]

    def _kind(self, stage: str, job: dict) -> list:
        """What the time of a job depends on besides its work: jobs of one kind are timed once."""
        if stage == "train":
            parts = {k: job["objective"].get(k) for k in ("variance", "matching")}
            return [job["network"], job.get("downsample"), job["conditional"], parts]
        if stage == "likelihood":
            return [job["model"]["network"], job["model"]["objective"].get("variance")]
        return [job.get("guidance"), {k: v for k, v in job.get("sampler", {}).items() if k != "steps"}]

    def _timed(self, stage: str, job: dict) -> float:
        # On a CPU its own time, so that other programs do not count.
        clock, threads = (time.process_time, job["threads"]) if self.device == "cpu" else (time.perf_counter, 1)
        start = clock()
        with redirect_stderr(StringIO()):  # progress bars
            execute(stage, job, "0" * 16, self.scratch, self.device)
        return (clock() - start) / threads


def shortened(stage: str, job: dict, length: int) -> dict:
    """The same job, of so many steps, or of four times as many images."""
    if stage == "train" and not job["training"]["steps"]:  # a network of elsewhere is read
        return job
    if stage == "train":
        few = {"steps": length, "warmup": min(length, job["training"]["warmup"]), "processes": 1}
        return job | {"training": {k: v for k, v in job["training"].items() if k != "snapshots"} | few}
    if stage == "guide":
        return job | {"guide": job["guide"] | {"steps": length}}
    if stage == "likelihood":
        settings = job["likelihood"]
        return job | {"likelihood": settings | {"images": 4 * length, "times": min(TIMES, settings["times"])}}
    images = {"images": min(IMAGES, job["sampling"]["images"])}
    return job | {"sampling": job["sampling"] | images, "sampler": job["sampler"] | {"steps": length}}


def made_up(grid: Grid, layout: Layout) -> None:
    """A data set of the shape, grey levels and classes of the grid's, of noise, as the `data` stage would store it."""
    job, code = grid.job("data")
    said = dataset_of(grid.config)
    if said["shape"] is None:
        raise UserError(f"data.name: {grid.config['data']['name']!r}: the images' shape is known once they are read")
    spec = dict(job["data"])
    dataset = Dataset.make({"method": spec.pop("name")} | spec)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(256, *said["shape"], generator=generator), torch.arange(256) % max(1, dataset.classes)
    if "levels" in dataset.space:
        images = (torch.rand(images.shape, generator=generator) * int(str(dataset.space["levels"]))).to(torch.uint8)
    split = {"images": images} | ({"labels": labels} if dataset.classes else {})
    tensors = {f"{of}_{name}": t.clone() for of in ("train", "test") for name, t in split.items()}
    about = {"space": Space.fit(dataset.space, images).spec, "classes": dataset.classes}
    recorder = Recorder("data", job, code, {})
    records.write_tensors(layout.output("data"), tensors, about)
    recorder.finish(layout.record("data"), layout.outputs("data"))


def lines(grid: Grid, jobs: Iterable[Job]) -> Iterator[str]:
    """The estimate of these jobs as text."""
    jobs = list(jobs)
    found = Estimate(grid, jobs)
    total = duration(sum(found.seconds.values()))
    yield f"estimated by a few steps on {found.device}: {total} of computing, one job after another"
    for stage in STAGES_TIMED:
        own = [found.seconds[job] for job in jobs if job[0] == stage and job in found.seconds]
        if own:
            yield f"  {stage:<10} {len(own):>4}  {duration(sum(own))}, {duration(max(own))} at most"
    rest = [stage for stage, name in jobs if (stage, name) not in found.seconds]
    counts = ", ".join(f"{rest.count(stage)} {stage}" for stage in dict.fromkeys(rest))
    yield f"  not timed: {counts or 'none'}; every job loads its packages besides, some seconds"
    yield f"  memory: about {found.memory:.0f} MiB of a job that trains"
