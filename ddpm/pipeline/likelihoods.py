"""The stages of both likelihoods, of one network each. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm.pipeline.stage import NETWORK, Job, Root, Stage, on_axes

if TYPE_CHECKING:
    from ddpm.pipeline.grid import Cell, Grid


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
        return grid.network(cell).name if grid.is_bounded(cell) else None

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
