"""Lengths of the weights' average in a configuration: `ema` of a block, `training.snapshots`. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ddpm.averaging import KEPT, coefficients
from ddpm.pipeline import cascades
from ddpm.pipeline.registry import settled, source_of
from ddpm.pipeline.stage import Job, Root, Stage, of_latents, on_axes

if TYPE_CHECKING:
    from ddpm.pipeline.grid import Cell, Grid

# The most by which a reconstructed profile may miss the one that it stands for, relative to its norm.
ERROR = 0.1


def kept(job: dict) -> bool:
    """Whether a network's training, by its job or by the configuration, keeps snapshots."""
    return "snapshots" in job["training"]


def mistakes(config: dict) -> Iterator[str]:
    """Snapshots that there are not, or too few, for the lengths that blocks ask for."""
    training, networks = config["training"], settled(config)["networks"]
    count, steps = training.get("snapshots"), training["steps"]
    if count and count > steps:
        yield f"training.snapshots: {count}; it must be at most training.steps, {steps}"
        return
    for i, block in enumerate(config["grid"]):
        if "ema" not in block:
            continue
        where = f"grid[{i}].ema"
        if not count:
            yield f"{where}: training keeps no snapshots; training.snapshots must be a number of them, such as 16"
            continue
        for name in block.get("network", [settled(config)["network"]]):
            for length in block["ema"]:
                if (made := f"{name}-ema{length}") in config.get("networks", {}):
                    yield f"networks.{made}: {where} calls an average of {name!r} so; give this one another name"
            if name in networks and source_of("network", networks[name]).attributes["imported"]:
                yield f"{where}: {name!r} was trained elsewhere, and kept no snapshots; it must be a network of ours"
        for length in block["ema"]:
            if (error := coefficients(steps, count, length)[1]) > ERROR:
                yield (
                    f"{where}: {length} cannot be told from {count} snapshots of {' and '.join(map(str, KEPT))}: its "
                    f"profile is missed by {error:.0%}, it must be at most {ERROR:.0%}; raise training.snapshots"
                )


class SnapshotsStage(Stage):
    """The training of one network that keeps snapshots, from which `train` reads every average of its weights."""

    name = "snapshots"
    entry = ("ddpm.stages.averages", "train")
    record = "networks/{name}/snapshots.json"
    files = {"snapshots": "networks/{name}/snapshots.safetensors"}
    section = "training"
    wildcard = "network"
    priority = 10  # as of training, which waits for it

    def serving(self, grid: Grid, cell: Cell) -> str | None:
        network = grid.network(cell)
        return grid.trained_as(network).name if kept(grid.job("train", network.name)[0]) else None

    def names(self, grid: Grid) -> list[str]:
        return list(grid.snapshots)

    def job(self, grid: Grid, name: str) -> dict:
        job = grid.job("train", grid.snapshots[name])[0]
        training = {k: v for k, v in job["training"].items() if k != "ema"}
        return {k: v for k, v in job.items() if k != "of"} | {"name": name, "training": training}

    def parents(self, name: str, job: dict) -> dict[str, Job]:
        return {"data": ("data", "")} | of_latents(job)

    def starts(self, job: dict) -> Root:
        return self.entry[0], (cascades.entry(job) or self.entry)[1]

    def methods(self, job: dict) -> set[Root]:
        return on_axes(job, trains=True)

    def processes(self, job: dict) -> int:
        return job["training"]["processes"]

    def work(self, job: dict) -> float:
        return job["training"]["steps"] * job["training"]["batch"]
