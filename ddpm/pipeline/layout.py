"""Where results lie: one tree below `results`, names from the configuration, a record beside every result. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddpm.pipeline.grid import BASELINES, parents


@dataclass(frozen=True)
class Layout:
    """The paths of one results folder."""

    root: Path

    @property
    def data(self) -> Path:
        """The stored dataset."""
        return self.root / "data" / "images.safetensors"

    @property
    def classifier(self) -> Path:
        """The feature extractor's weights."""
        return self.root / "classifier" / "weights.safetensors"

    def network(self, name: str) -> Path:
        """The folder of a trained network."""
        return self.root / "networks" / name

    def weights(self, name: str) -> Path:
        """A network's EMA weights."""
        return self.network(name) / "weights.safetensors"

    def loss(self, name: str) -> Path:
        """A network's training curve."""
        return self.network(name) / "loss.csv"

    def terms(self, name: str) -> Path:
        """A network's variational bound, term by term."""
        return self.network(name) / "terms.csv"

    def images(self, stage: str, name: str) -> Path:
        """What every test image costs under a network: `stage` is likelihood or ode_likelihood."""
        return self.record(stage, name).with_suffix(".csv")

    def cell(self, name: str) -> Path:
        """The folder of a cell."""
        return self.root / "cells" / name

    def samples(self, name: str) -> Path:
        """A cell's images."""
        return self.cell(name) / "samples.safetensors"

    def work(self, stage: str, name: str = "") -> Path:
        """The folder of what is only needed while a job runs."""
        return self.root / "work" / stage / name

    def checkpoint(self, stage: str, name: str) -> Path:
        """Where a job keeps what it would go on from."""
        return self.work(stage, name) / "checkpoint.safetensors"

    def guide(self, name: str) -> Path:
        """The weights of a classifier of noisy images."""
        return self.root / "guides" / name / "weights.safetensors"

    def inputs(self, stage: str, name: str = "", job: dict | None = None) -> dict[str, Path]:
        """The files that one job reads: the first output of each of its parents."""
        return {of: self.outputs(*parent)[0] for of, parent in parents(stage, name, job).items()}

    def measured(self, batch: str) -> Path:
        """What says that every cell of a batch has its fidelity record: their names and digests."""
        return self.root / "fidelity" / f"{batch}.json"

    def outputs(self, stage: str, name: str = "") -> list[Path]:
        """The files that one job's record describes."""
        match stage:
            case "data":
                return [self.data]
            case "classifier":
                return [self.classifier]
            case "train":
                return [self.weights(name), self.loss(name)]
            case "guide":
                return [self.guide(name)]
            case "likelihood":
                return [self.terms(name), self.images(stage, name)]
            case "ode_likelihood":
                return [self.images(stage, name)]
            case "sample":
                return [self.samples(name)]
            case "table":
                files = ("table.csv", "table.md", "published.md", "differences.csv", "costs.csv")
                return [self.root / file for file in files]
        return []

    def pictures(self, figures: Iterable[str], cells: Iterable[str]) -> list[Path]:
        """The files that the figures' record describes."""
        found = [self.root / "figures" / f"{name}.png" for name in figures]
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
        """The record of one job; `name` is the network's, the cell's or the baseline's."""
        match stage:
            case "data" | "classifier":
                return self.root / stage / "record.json"
            case "train":
                return self.network(name) / "record.json"
            case "likelihood":
                return self.network(name) / "likelihood.json"
            case "ode_likelihood":
                return self.network(name) / "ode-likelihood.json"
            case "guide":
                return self.guide(name).parent / "record.json"
            case "sample":
                return self.cell(name) / "samples.json"
            case "table":
                return self.root / "table.json"
            case "figures":
                return self.root / "figures" / "record.json"
            case "fidelity":
                return (self.root / "baselines" / name if name in BASELINES else self.cell(name)) / "fidelity.json"
        raise ValueError(f"{stage}: no such stage")
