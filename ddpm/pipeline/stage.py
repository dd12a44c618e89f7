"""What a stage is: one kind of job, and everything that others ask about it. No torch.

`ddpm.pipeline.stages` has all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.pipeline import fingerprints, folders
from ddpm.pipeline.declarations import found_in
from ddpm.pipeline.records import IMPORTS, versions
from ddpm.pipeline.registry import classes, source_of

if TYPE_CHECKING:
    from ddpm.pipeline.grid import Cell, Grid

Job = tuple[str, str]  # stage and name
Root = tuple[str, str]  # module and definition, where a fingerprint of code starts

# For the help of commands.
NETWORK, CELL = "eps/linear/unconditional/seed0", "eps/linear/none/ddim/seed0"

# What says how jobs are run and does not change a result.
EXECUTION = ("device", "jobs_per_gpu", "checkpoint_seconds")

# The rows without a network (`ddpm.baselines`): real training images, with classes in proportion and by chance, test
# images that the autoencoder has encoded and decoded (ceilings), uniform noise (floor), and histograms.
RECONSTRUCTIONS = "reconstructions"
BASELINES = ("real", "real-by-chance", RECONSTRUCTIONS, "noise", "histogram", "class-histogram")


class Stage:
    """One kind of job.

    entry:   the function that computes it: module and name.
    record:  its record's place below the results folder, and `files`: those of its outputs, by the names that others
             read them under; `{name}` stands for the job's name.
    section: the section of the configuration that is its own; empty where there is none.
    wildcard: what a job's name names, in Snakemake's rule; empty where there is one job.
    planned: whether Snakemake runs its jobs.
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
    planned = True
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

    def sources(self, job: dict) -> dict[str, Path]:
        """The user's own files and folders that a job reads, by the names that its record uses."""
        return {}

    def starts(self, job: dict) -> Root:
        """The function that computes this job."""
        return self.entry

    def methods(self, job: dict) -> set[Root]:
        """The classes of a job's methods, which it reaches by their names in the configuration."""
        return set()

    def work(self, job: dict) -> float:
        """What a job's seconds grow with, in no unit: network evaluations where there are any."""
        return 1.0

    def processes(self, job: dict) -> int:
        """How many processes compute one job together, by its job or its configuration."""
        return 1

    def about(self, job: dict) -> dict[str, str]:
        """What a job's function is told beside its job."""
        return {}

    def place(self, name: str) -> str:
        """The record's place below the results folder."""
        return self.record.format(name=name)

    def roots(self, job: dict) -> frozenset[Root]:
        """Where the code of a job starts: the stage's entry, the methods that it names, and every space."""
        own = set(classes("space", job["space"])) if "space" in job else set()
        return frozenset({self.starts(job)} | self.methods(job) | declared("ddpm.spaces", "Space") | own)

    def environment(self, job: dict) -> dict[str, str]:
        """The installed versions of the packages that a job's numbers depend on: of those that its code names."""
        named = fingerprints.packages(self.roots(job))
        return {package: v for package, v in versions().items() if IMPORTS.get(package, package) in named}


def declared(module: str, base: str) -> set[Root]:
    """The classes of all our methods below `base`."""
    return {(inner, cls) for _, inner, cls in found_in(module, base)}


def of_latents(job: dict) -> dict[str, Job]:
    """What a job, or the model in it, reads besides where it works in latents."""
    return {"autoencoder": ("autoencoder", "")} if "autoencoder" in job else {}


def own_files(axis: str, value: dict) -> dict[str, Path]:
    """The user's own files and folders that an axis's value is made of, by the names that records use."""
    reads = source_of(axis, value).attributes["reads"]
    return {of: folders.located(value[parameter]) / file for of, (parameter, file) in reads.items()}


def on_axes(part: dict, trains: bool = False) -> set[Root]:
    """The classes of the axis values and of the network in a job, or in its model; only training uses all that an
    objective is made of."""
    found = {root for axis in ("schedule", "guidance", "sampler") if axis in part for root in classes(axis, part[axis])}
    if "objective" in part:
        found |= {*classes("objective" if trains else "model", part["objective"]), *classes("network", part["network"])}
    return found


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
