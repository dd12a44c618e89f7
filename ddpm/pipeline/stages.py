"""The graph on one page: every stage, what its jobs are told, what they read and what they leave. No torch.

A stage is one kind of job. `STAGES` holds one object per stage, and everything else asks it: the grid for its jobs, the
layout for its files, Snakemake's rules and the commands for how to run it. A job is named by its stage and its name:
that of the network, the cell or the baseline that it is for; of the stages that stand once, the empty name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.pipeline import cascades
from ddpm.pipeline.aggregates import FiguresStage, PageStage, TableStage
from ddpm.pipeline.averages import SnapshotsStage, kept
from ddpm.pipeline.fingerprints import fingerprint
from ddpm.pipeline.likelihoods import LikelihoodStage, ODELikelihoodStage
from ddpm.pipeline.measures import files_of, metrics
from ddpm.pipeline.records import canonical
from ddpm.pipeline.registry import classes, complete, known, source_of
from ddpm.pipeline.stage import (
    BASELINES,
    CELL,
    NETWORK,
    RECONSTRUCTIONS,
    Aggregate,
    Job,
    Root,
    Stage,
    declared,
    of_latents,
    on_axes,
    own_files,
)

if TYPE_CHECKING:
    from ddpm.pipeline.grid import Cell, Grid

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

    def seen(self, grid: Grid) -> dict:
        """The same as later jobs are told of it: not where the user's own files lie, whose hash is in their inputs."""
        data = self.job(grid)["data"]
        places = [parameter for parameter, _ in source_of("dataset", data).attributes["reads"].values()]
        return {"data": {k: v for k, v in data.items() if k not in places}}

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {}

    def sources(self, job: dict) -> dict[str, Path]:
        return own_files("dataset", job["data"])

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
        return DataStage().seen(grid) | {"classifier": grid.config["classifier"], "threads": grid.config["threads"]}


class AutoencoderStage(Stage):
    """The autoencoder, in whose latents some networks work."""

    name = section = "autoencoder"
    entry = ("ddpm.stages.autoencoder", "train")
    record = "autoencoder/record.json"
    files = {"weights": "autoencoder/weights.safetensors", "loss": "autoencoder/loss.csv"}
    priority = 10  # as of training, which waits for it

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        return "" if grid.in_latents(cell.network) else None

    def job(self, grid: Grid, name: str) -> dict:
        return DataStage().seen(grid) | {"autoencoder": grid.config["autoencoder"], "threads": grid.config["threads"]}

    def work(self, job: dict) -> float:
        return job["autoencoder"]["steps"] * job["autoencoder"]["batch"]


class TrainStage(Stage):
    """One network, which serves every cell of its objective, schedule and kind of labels; one of elsewhere is read."""

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

    def names(self, grid: Grid) -> list[str]:
        return list(grid.networks)

    def job(self, grid: Grid, name: str) -> dict:
        network = grid.networks[name]
        training = dict(grid.config["training"])
        conditional = network.labels == "conditional"
        dropout = training.pop("label_dropout")
        if source_of("network", grid.config["networks"][network.architecture]).attributes["imported"]:
            training = {"steps": 0, "batch": 0, "processes": 1}
        own, trained = grid.config["networks"][network.architecture], grid.trained_as(network).name
        training |= {"ema": own["ema"]} if "ema" in own else {}
        data = DataStage().seen(grid) | grid.autoencoder(grid.in_latents(network.architecture))
        data |= {"of": trained} if trained != name else {}
        data |= {"downsample": network.factor} if network.factor > 1 else {}
        return data | {
            "name": name,
            "objective": grid.axis("objective", network.objective),
            "schedule": grid.axis("schedule", network.schedule),
            "network": grid.trained(network.architecture),
            "training": training | ({"label_dropout": dropout} if conditional else {}),
            "conditional": conditional,
            "seed": network.seed,
            "compute": grid.config["compute"],
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        if kept(job):
            return {"snapshots": ("snapshots", job.get("of", name))}
        return {"data": ("data", "")} | of_latents(job)

    def starts(self, job: dict) -> Root:
        if kept(job):
            return "ddpm.stages.averages", "read"
        imported = source_of("network", job["network"]).attributes["imported"]
        return ("ddpm.stages.imported", "read") if imported else cascades.entry(job) or self.entry

    def sources(self, job: dict) -> dict[str, Path]:
        return own_files("network", job["network"])

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job, trains=True)

    def processes(self, job: dict) -> int:
        return 1 if kept(job) else job["training"]["processes"]

    def work(self, job: dict) -> float:
        return 0 if kept(job) else job["training"]["steps"] * job["training"]["batch"]


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
        guide = grid.guides[name]
        return (DataStage().seen(grid) | grid.autoencoder(guide.latent)) | {
            "name": name,
            "schedule": grid.axis("schedule", guide.schedule),
            "guide": grid.config["guide"],
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {"data": ("data", "")} | of_latents(job)

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job)

    def work(self, job: dict) -> float:
        return job["guide"]["steps"] * job["guide"]["batch"]


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
        beside: dict = {"guide": guide.name} if guide else {}
        for role, other in grid.others(cell).items():
            beside |= {f"{role}_network": other.name, f"{role}_model": grid.model(other.name)}
            beside |= {"augmentation": grid.axis("network", cell.network)["augmentation"]} if role == "base" else {}
        beside |= {"sampling_seed": cell.sampling} if cell.sampling else {}
        return beside | {
            "name": name,
            "network": network,
            "model": grid.model(network),
            "guidance": grid.axis("guidance", cell.guidance),
            "sampler": grid.axis("sampler", cell.sampler),
            "sampling": {k: v for k, v in grid.config["sampling"].items() if k != "seeds"},
            "compute": grid.config["compute"],
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        found = {"data": ("data", ""), "weights": ("train", job["network"])} | of_latents(job["model"])
        found |= {"guide": ("guide", job["guide"])} if "guide" in job else {}
        roles = [role for role in ("guide", "base") if f"{role}_network" in job]
        return found | {f"{role}_weights": ("train", job[f"{role}_network"]) for role in roles}

    def starts(self, job: dict) -> Root:
        return ("ddpm.stages.cascade", "sample") if "base_network" in job else self.entry

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job).union(*(on_axes(of) for part, of in job.items() if part.endswith("model")))

    def work(self, job: dict) -> float:
        return job["sampling"]["images"] * job["sampler"].get("steps", 1)


def external(name: str) -> str:
    """The name under which samples that were made elsewhere are kept, if this is that of a job that measures some:
    `external/NAME`; empty if not."""
    first, *rest = name.split("/")
    return rest[0] if first == "external" and len(rest) == 1 else ""


class ExternalStage(Stage):
    """Samples that were made elsewhere, in a folder or file of the user's own: of no grid, but of `ddpm evaluate`."""

    name = "external"
    entry = ("ddpm.stages.external", "take")
    record = "external/{name}/record.json"
    files = {"images": "external/{name}/samples.safetensors"}
    gpu = False
    planned = False

    def serving(self, grid: Grid, cell: Cell) -> None:
        return None

    def job_of(self, grid: Grid, name: str, source: str) -> dict:
        """The job of the samples that lie at `source`, under this name."""
        images = grid.config["sampling"]["images"]
        own = {"space": grid.own_space} if grid.own_space else {}
        return {"name": name, "source": source, "images": images, "threads": grid.config["threads"]} | own

    def sources(self, job: dict) -> dict[str, Path]:
        return {"source": Path(job["source"])}


class FidelityStage(Stage):
    """The distances of one cell's samples, of a baseline's, or of those made elsewhere, to real images."""

    name = section = "fidelity"
    description = "FID of one cell"
    example = CELL
    entry = ("ddpm.stages.fidelity", "evaluate")
    record = "cells/{name}/fidelity.json"
    called = "cell"

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        return cell.name

    def names(self, grid: Grid) -> list[str]:
        return [*super().names(grid), *grid.baselines]

    def job(self, grid: Grid, name: str) -> dict:
        return {
            "name": name,
            "images": grid.config["sampling"]["images"],
            "fidelity": {k: v for k, v in grid.config["fidelity"].items() if k not in ("metrics", "paired")},
            "metrics": grid.metrics,
            "needs": grid.needs,
            "threads": grid.config["threads"],
        }

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        made = ("external", external(name)) if external(name) else ("sample", name)
        samples = {} if name in BASELINES else {"samples": made}
        extractor = {"extractor": ("classifier", "")} if "classifier" in job["needs"] else {}
        decoded = {"autoencoder": ("autoencoder", "")} if name == RECONSTRUCTIONS else {}
        return {"data": ("data", "")} | samples | decoded | extractor

    def sources(self, job: dict) -> dict[str, Path]:
        path = Path(job["fidelity"].get("weights") or ".")
        return {"weights": path} if path.is_file() else {}  # the extractor says where there is none

    def extractor(self, job: dict) -> Root:
        """The class of the feature extractor."""
        source = known("extractor", tuple(job["fidelity"].get("modules", ())))[job["fidelity"]["extractor"]]
        return source.module, source.name

    def about(self, job: dict) -> dict[str, str]:
        """`code`: the fingerprint of what makes features of stored images;  `versions`: those of its packages."""
        roots = {("ddpm.metrics.evaluator", "Evaluator"), self.extractor(job)} | declared("ddpm.spaces", "Space")
        return {"code": fingerprint(frozenset(roots)), "versions": canonical(self.environment(job))}

    def methods(self, job: dict) -> set[Root]:
        metrics = known("metric", tuple(job["fidelity"].get("modules", ())))
        found = {(metrics[name].module, metrics[name].name) for name in job["metrics"]} | {self.extractor(job)}
        return found | (declared("ddpm.baselines", "Baseline") if job["name"] in BASELINES else set())  # one batch

    def place(self, name: str) -> str:
        if external(name):
            return f"{name}/fidelity.json"
        return f"baselines/{name}/fidelity.json" if name in BASELINES else super().place(name)


class PairedStage(FidelityStage):
    """How sure differences in FID between the cells of one network are, where `fidelity.paired` asks for it."""

    name = "paired"
    entry = ("ddpm.stages.paired", "compare")
    record = "networks/{name}/paired.json"
    wildcard = "network"
    called = description = example = ""

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        if not grid.config.get("fidelity", {}).get("paired"):
            return None
        network = grid.network(cell).name
        return network if len({grid.runs[name].row for name in grid.batches[network]}) > 1 else None

    def names(self, grid: Grid) -> list[str]:
        return Stage.names(self, grid)

    def job(self, grid: Grid, name: str) -> dict:
        declared = metrics(files_of(grid.config["fidelity"]))
        distances = [metric for metric in grid.metrics if declared[metric]["topline"]]
        return super().job(grid, name) | {"metrics": distances, "cells": grid.batches[name]}

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        extractor = {"extractor": ("classifier", "")} if "classifier" in job["needs"] else {}
        return {"data": ("data", "")} | extractor | {cell: ("sample", cell) for cell in job["cells"]}

    def place(self, name: str) -> str:
        return self.record.format(name=name)


# Each after the stages that it reads.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        DataStage(),
        ClassifierStage(),
        AutoencoderStage(),
        SnapshotsStage(),
        TrainStage(),
        GuideStage(),
        LikelihoodStage(),
        ODELikelihoodStage(),
        SampleStage(),
        ExternalStage(),
        FidelityStage(),
        PairedStage(),
        TableStage(),
        FiguresStage(),
        PageStage(),
    )
}
AGGREGATES: dict[str, Aggregate] = {name: stage for name, stage in STAGES.items() if isinstance(stage, Aggregate)}
