"""The graph on one page: every stage, what its jobs are told, what they read and what they leave. No torch.

A stage is one kind of job. `STAGES` holds one object per stage, and everything else asks it: the grid for its jobs, the
layout for its files, Snakemake's rules and the commands for how to run it. A job is named by its stage and its name:
that of the network, the cell or the baseline that it is for; of the stages that stand once, the empty name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ddpm.pipeline import fingerprints
from ddpm.pipeline.declarations import found_in
from ddpm.pipeline.records import IMPORTS, versions
from ddpm.pipeline.registry import classes, complete, source_of

if TYPE_CHECKING:
    from ddpm.pipeline.grid import Cell, Grid

Job = tuple[str, str]  # stage and name
Root = tuple[str, str]  # module and definition, where a fingerprint of code starts

# For the help of commands.
NETWORK, CELL = "eps/linear/unconditional/seed0", "eps/linear/none/ddim/seed0"

# What says how jobs are run and does not change a result.
EXECUTION = ("device", "jobs_per_gpu", "checkpoint_seconds")

# The rows without a network (`ddpm.baselines`): real training images, with classes in proportion and by chance
# (ceilings), uniform noise (floor), and histograms.
BASELINES = ("real", "real-by-chance", "noise", "histogram", "class-histogram")


class Stage:
    """One kind of job.

    entry:   the function that computes it: module and name.
    record:  its record's place below the results folder, and `files`: those of its outputs, by the names that others
             read them under; `{name}` stands for the job's name.
    section: the section of the configuration that is its own; empty where there is none.
    wildcard: what a job's name names, in Snakemake's rule; empty where there is one job.
    gpu:     whether it computes on a GPU where there is one.
    priority: that of its jobs among those that may start.
    called:  what a user calls its jobs, where there is a command `ddpm STAGE NAME` for one of them; `description` and
             `example` are what its help says.
    """

    name = ""
    entry: Root = ("", "")
    record = ""
    files: dict[str, str] = {}
    section = ""
    wildcard = ""
    gpu = True
    priority = 0
    called = ""
    description = ""
    example = ""

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        """The job that a cell's row of the table comes from, by name; None where it needs none."""
        return ""

    def names(self, grid: Grid) -> list[str]:
        """The jobs of a grid, by name."""
        found = dict.fromkeys(self.serving(grid, cell) for cell in grid.runs.values())
        return [name for name in found if name is not None]

    def job(self, grid: Grid, name: str) -> dict:
        """Everything that a job's result depends on, but its code and what it reads."""
        raise NotImplementedError

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        """What a job reads, by the names that its record uses → the job that makes it: the first of its files."""
        return {"data": ("data", "")}

    def methods(self, job: dict) -> set[Root]:
        """The classes of a job's methods, which it reaches by their names in the configuration."""
        return set()

    def work(self, job: dict) -> float:
        """What a job's seconds grow with, in no unit: network evaluations where there are any."""
        return 1.0

    def processes(self, job: dict) -> int:
        """How many processes compute one job together, by its job or its configuration."""
        return 1

    def place(self, name: str) -> str:
        """The record's place below the results folder."""
        return self.record.format(name=name)

    def roots(self, job: dict) -> frozenset[Root]:
        """Where the code of a job starts: the stage's entry, the methods that it names, and every space."""
        return frozenset({self.entry} | self.methods(job) | declared("ddpm.spaces", "Space"))

    def environment(self, job: dict) -> dict[str, str]:
        """The installed versions of the packages that a job's numbers depend on: of those that its code names."""
        named = fingerprints.packages(self.roots(job))
        return {package: v for package, v in versions().items() if IMPORTS.get(package, package) in named}


def declared(module: str, base: str, names: Iterable[str] | None = None) -> set[Root]:
    """The classes of the methods below `base` that are of these names, or all of them."""
    return {(inner, cls) for name, inner, cls in found_in(module, base) if names is None or name in names}


def on_axes(part: dict, trains: bool = False) -> set[Root]:
    """The classes of the axis values and of the network in a job, or in its model; only training uses all that an
    objective is made of."""
    found = {root for axis in ("schedule", "guidance", "sampler") if axis in part for root in classes(axis, part[axis])}
    if "objective" in part:
        found |= {*classes("objective" if trains else "model", part["objective"]), *classes("network", part["network"])}
    return found


# ---- data and models ----------------------------------------------------------------------------------------


class DataStage(Stage):
    """The dataset, loaded, checked and stored as one file."""

    name = "data"
    entry = ("ddpm.stages.data", "prepare")
    record = "data/record.json"
    files = {"images": "data/images.safetensors"}
    section = "data"
    gpu = False

    def job(self, grid: Grid, name: str = "") -> dict:
        data = grid.config["data"]
        return {"data": complete(source_of("dataset", data), data)}

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {}

    def methods(self, job: dict) -> set[Root]:
        return set(classes("dataset", job["data"]))


class ClassifierStage(Stage):
    """The feature extractor: a classifier of the training split."""

    name = "classifier"
    entry = ("ddpm.stages.classifier", "train")
    record = "classifier/record.json"
    files = {"weights": "classifier/weights.safetensors"}
    section = "classifier"
    gpu = False

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        return "" if self.name in grid.needs else None

    def job(self, grid: Grid, name: str) -> dict:
        return DataStage().job(grid) | {"classifier": grid.config["classifier"], "threads": grid.config["threads"]}


class TrainStage(Stage):
    """One network, which serves every cell of its objective, schedule and kind of labels."""

    name = "train"
    entry = ("ddpm.stages.train", "train")
    record = "networks/{name}/record.json"
    files = {"weights": "networks/{name}/weights.safetensors", "loss": "networks/{name}/loss.csv"}
    section = "training"
    wildcard = called = "network"
    priority = 10  # everything else waits for it
    description = "train one network"
    example = NETWORK

    def serving(self, grid: Grid, cell: Cell) -> str:
        return grid.network(cell).name

    def job(self, grid: Grid, name: str) -> dict:
        network = grid.networks[name]
        training = dict(grid.config["training"])
        conditional = network.labels == "conditional"
        dropout = training.pop("label_dropout")
        return DataStage().job(grid) | {
            "name": name,
            "objective": grid.axis("objective", network.objective),
            "schedule": grid.axis("schedule", network.schedule),
            "network": grid.axis("network", network.architecture),
            "training": training | ({"label_dropout": dropout} if conditional else {}),
            "conditional": conditional,
            "seed": network.seed,
            "threads": grid.config["threads"],
        }

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job, trains=True)

    def processes(self, job: dict) -> int:
        return job["training"]["processes"]

    def work(self, job: dict) -> float:
        return job["training"]["steps"] * job["training"]["batch"]


class GuideStage(Stage):
    """A classifier of the noisy images of one schedule, which classifier guidance follows."""

    name = "guide"
    entry = ("ddpm.stages.guide", "train")
    record = "guides/{name}/record.json"
    files = {"weights": "guides/{name}/weights.safetensors"}
    section = wildcard = "guide"

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        guide = grid.guide(cell)
        return guide.name if guide else None

    def job(self, grid: Grid, name: str) -> dict:
        return DataStage().job(grid) | {
            "name": name,
            "schedule": grid.axis("schedule", grid.guides[name].schedule),
            "guide": grid.config["guide"],
            "threads": grid.config["threads"],
        }

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job)


# ---- samples and measures -----------------------------------------------------------------------------------


class SampleStage(Stage):
    """The samples of one cell."""

    name = "sample"
    description = "sample one cell"
    example = CELL
    entry = ("ddpm.stages.sample", "sample")
    record = "cells/{name}/samples.json"
    files = {"images": "cells/{name}/samples.safetensors"}
    section = "sampling"
    wildcard = called = "cell"

    def serving(self, grid: Grid, cell: Cell) -> str:
        return cell.name

    def job(self, grid: Grid, name: str) -> dict:
        cell = grid.runs[name]
        network, guide = grid.network(cell).name, grid.guide(cell)
        return ({"guide": guide.name} if guide else {}) | {
            "name": name,
            "network": network,
            "model": grid.model(network),
            "guidance": grid.axis("guidance", cell.guidance),
            "sampler": grid.axis("sampler", cell.sampler),
            "sampling": grid.config["sampling"],
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        found = {"data": ("data", ""), "weights": ("train", job["network"])}
        return found | ({"guide": ("guide", job["guide"])} if "guide" in job else {})

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job) | on_axes(job["model"])

    def work(self, job: dict) -> float:
        return job["sampling"]["images"] * job["sampler"].get("steps", 1)


class FidelityStage(Stage):
    """The distances of one cell's samples, or of a baseline's, to real images."""

    name = section = "fidelity"
    description = "FID of one cell"
    example = CELL
    entry = ("ddpm.stages.fidelity", "evaluate")
    record = "cells/{name}/fidelity.json"
    called = "cell"

    def serving(self, grid: Grid, cell: Cell) -> str:
        return cell.name

    def names(self, grid: Grid) -> list[str]:
        return [*super().names(grid), *grid.baselines]

    def job(self, grid: Grid, name: str) -> dict:
        return {
            "name": name,
            "images": grid.config["sampling"]["images"],
            "fidelity": grid.config["fidelity"],
            "metrics": grid.metrics,
            "needs": grid.needs,
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        samples = {} if name in BASELINES else {"samples": ("sample", name)}
        extractor = {"extractor": ("classifier", "")} if "classifier" in job["needs"] else {}
        return {"data": ("data", "")} | samples | extractor

    def methods(self, job: dict) -> set[Root]:
        found = declared("ddpm.metrics", "Metric", job["metrics"])
        found |= declared("ddpm.metrics", "Extractor", [job["fidelity"]["extractor"]])
        # All baselines, because they are one batch.
        return found | (declared("ddpm.baselines", "Baseline") if job["name"] in BASELINES else set())

    def processes(self, job: dict) -> int:
        """How many processes compute one job together, by its job or its configuration."""
        return 1

    def place(self, name: str) -> str:
        return f"baselines/{name}/fidelity.json" if name in BASELINES else super().place(name)


class LikelihoodStage(Stage):
    """The variational bound of one network on test images."""

    name = section = "likelihood"
    description = "bits/dim of one network"
    example = NETWORK
    entry = ("ddpm.stages.likelihood", "evaluate")
    record = "networks/{name}/likelihood.json"
    files = {"terms": "networks/{name}/terms.csv", "images": "networks/{name}/likelihood.csv"}
    wildcard = "network"
    called = "network without labels"

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        return None if grid.is_guided(cell) else grid.network(cell).name

    def job(self, grid: Grid, name: str) -> dict:
        return {
            "name": name,
            "model": grid.model(name),
            "seed": grid.networks[name].seed,
            self.section: grid.config[self.section],
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {"data": ("data", ""), "weights": ("train", name)}

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job["model"])

    def work(self, job: dict) -> float:
        return job[self.section]["images"] * job[self.section].get("times", 1)


class ODELikelihoodStage(LikelihoodStage):
    """The likelihood of one network's probability flow on test images, where the configuration asks for any."""

    name = section = "ode_likelihood"
    entry = ("ddpm.stages.ode_likelihood", "evaluate")
    record = "networks/{name}/ode-likelihood.json"
    files = {"images": "networks/{name}/ode-likelihood.csv"}
    called = ""
    description = ""
    example = ""

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        return super().serving(grid, cell) if grid.config.get("ode_likelihood", {}).get("images") else None


# ---- aggregates ---------------------------------------------------------------------------------------------


class Aggregate(Stage):
    """What is made of all records of a grid: those of the stages `reads`.

    unused: the keys of the configuration that it does not depend on, or not but through the records.
    """

    reads: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    gpu = False

    def job(self, grid: Grid, name: str = "") -> dict:
        return {"config": {k: v for k, v in grid.used.items() if k not in ("results", *EXECUTION, *self.unused)}}

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {}


class TableStage(Aggregate):
    """The tables. Of both likelihoods it reads what every test image costs as well (`ddpm.tables.paired`)."""

    name = "table"
    entry = ("ddpm.tables", "write")
    record = "table.json"
    files = {
        "table": "table.csv",
        "reading": "table.md",
        "published": "published.md",
        "differences": "differences.csv",
        "costs": "costs.csv",
    }
    reads = ("data", "classifier", "train", "guide", "likelihood", "ode_likelihood", "sample", "fidelity")

    def roots(self, job: dict) -> frozenset[Root]:
        return frozenset({self.entry})  # records and numbers alone: no space


class FiguresStage(Aggregate):
    """The pictures; they are as many as the grid has (`Layout.pictures`)."""

    name = "figures"
    entry = ("ddpm.figures", "write")
    record = "figures/record.json"
    reads = ("data", "train", "guide", "sample", "fidelity")
    unused = ("likelihood", "ode_likelihood", "fidelity", "classifier")


# Each after the stages that it reads.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        DataStage(),
        ClassifierStage(),
        TrainStage(),
        GuideStage(),
        LikelihoodStage(),
        ODELikelihoodStage(),
        SampleStage(),
        FidelityStage(),
        TableStage(),
        FiguresStage(),
    )
}
AGGREGATES: dict[str, Aggregate] = {name: stage for name, stage in STAGES.items() if isinstance(stage, Aggregate)}
