"""Where results lie: one tree below `results`, names from the configuration, a record beside every result. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddpm.pipeline.records import Result
from ddpm.pipeline.stages import STAGES

# The figures that are drawn as SVG too.
CHARTS = ("comparison", "steps", "guidance", "schedules", "training", "bound", "seconds")
# Those that not every grid has (`Grid.pictures`).
SOME = ("steps", "guidance", "bound", "seconds", "cascade", "neighbours", "scores", "langevin", "trajectories")


@dataclass(frozen=True)
class Layout:
    """The paths of one results folder."""

    root: Path

    def cell(self, name: str) -> Path:
        """The folder of a cell."""
        return self.root / "cells" / name

    def work(self, stage: str, name: str = "") -> Path:
        """The folder of what is only needed while a job runs."""
        return self.root / "work" / stage / name

    def checkpoint(self, stage: str, name: str) -> Path:
        """Where a job keeps what it would go on from."""
        return self.work(stage, name) / "checkpoint.safetensors"

    def inputs(self, stage: str, name: str, job: dict) -> dict[str, Path]:
        """The files that one job reads: the first output of each of its parents, and the user's own folders."""
        found = {of: parent.file for of, parent in self.parents(stage, name, job).items()}
        return found | STAGES[stage].sources(job)

    def parents(self, stage: str, name: str, job: dict) -> dict[str, Result]:
        """The results that one job reads, by the names that its record uses."""
        return {of: self.result(*parent) for of, parent in STAGES[stage].parents(name, job).items()}

    def result(self, stage: str, name: str = "") -> Result:
        """The record and the first output of one job, which has any."""
        return Result(self.record(stage, name), self.output(stage, name))

    def measured(self, batch: str) -> Path:
        """What says that every cell of a batch has its fidelity record: their names and digests."""
        return self.root / "fidelity" / f"{batch}.json"

    def outputs(self, stage: str, name: str = "") -> list[Path]:
        """The files that one job's record describes."""
        return [self.root / file.format(name=name) for file in STAGES[stage].files.values()]

    def output(self, stage: str, name: str = "", file: str = "") -> Path:
        """One of them, by its name in `Stage.files`; the first where none is named."""
        files = STAGES[stage].files
        return self.root / files[file or next(iter(files))].format(name=name)

    def pictures(self, figures: Iterable[str], cells: Iterable[str]) -> list[Path]:
        """The files that the figures' record describes."""
        ends = ((name, end) for name in figures for end in ("png", *["svg"] * (name in CHARTS)))
        found = [self.root / "figures" / f"{name}.{end}" for name, end in ends]
        return found + [self.cell(name) / "samples.png" for name in cells]

    def code(self, fingerprint: str) -> Path:
        """What a fingerprint of code stands for: its functions and classes, and the hash of each."""
        return self.root / "code" / f"{fingerprint}.json"

    def replaced(self, record: Path) -> Path:
        """The folder of what lay at a record's place before."""
        return self.root / "replaced" / record.parent.relative_to(self.root)

    def log(self, stage: str, name: str = "") -> Path:
        """What a job printed when Snakemake ran it; of fidelity, by batch."""
        return self.root / "logs" / stage / f"{name}.log" if name else self.root / "logs" / f"{stage}.log"

    def state(self, stage: str, name: str = "") -> Path:
        """What a job that runs, or has failed, says of itself."""
        return self.work(stage, name) / "state.json"

    def record(self, stage: str, name: str = "") -> Path:
        """The record of one job."""
        return self.root / STAGES[stage].place(name)
