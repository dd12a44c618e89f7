"""What one job costs: start-up, a training step and its parts, network evaluations per second while sampling.

    python benchmarks/parts.py [--configfile OVERLAY ...] [--steps 30] [--imports 3]

Compare two versions by running both on an idle machine, in turn.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from peers import prepare
from torch import nn

from ddpm import rng
from ddpm.compute import Computed
from ddpm.condition import NOTHING, Condition
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.denoiser import Denoiser
from ddpm.objectives import Objective
from ddpm.pipeline import config, parallel
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.running import run_stage
from ddpm.samplers import DDIM
from ddpm.schedules import Schedule
from ddpm.stages import train as training
from ddpm.stages.sample import chain

T = TypeVar("T")


def start_up(repeats: int) -> None:
    """Seconds until a fresh Python has imported what each stage imports, the least of `repeats`."""
    for module in (
        "ddpm",
        "ddpm.pipeline.config",
        "torch",
        "ddpm.stages.train",
        "ddpm.stages.sample",
        "ddpm.stages.fidelity",
        "ddpm.tables.writing",
    ):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            times.append(time.perf_counter() - start)
        print(f"import {module:20} {min(times):6.2f} s")


def stored(grid: Grid) -> Data:
    """The dataset as training reads it."""
    with tempfile.TemporaryDirectory() as folder:
        run_stage("data", *grid.job("data"), folder, "cpu")
        return data.read(Layout(Path(folder)).output("data"))


def computed_as(job: dict, network: nn.Module, dataset: Data) -> Computed:
    """The network in the precision that the job has."""
    return Computed(network, job["compute"], dataset.space, "cpu", calls=1)


def training_step(job: dict, dataset: Data, steps: int, warm: int = 5) -> nn.Module:
    """Milliseconds of a training step as the `train` stage takes it, by part; loss and gradient include the network's
    forward pass, the update clips the gradient and averages the weights."""
    network = training.build(job, dataset)
    batches = training.Batches(dataset, job, torch.device("cpu"), network)
    schedule, objective = Schedule.make(job["schedule"]), Objective.make(job["objective"])
    times, group, settings = objective.times.on(schedule), parallel.join(1, "cpu"), job["training"]
    state, computed = training.State(network, settings, times, "cpu"), computed_as(job, network, dataset)
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, run: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = run()
        spent[part] += time.perf_counter() - start
        return result

    def forward(*inputs: torch.Tensor | Condition) -> torch.Tensor:
        return timed("network", lambda: computed(*inputs))

    loss = partial(objective.loss, forward, schedule, space=dataset.space)
    for step in range(steps + warm):
        if step == warm:
            spent.clear()
        x0, eps, u, condition = timed("draw", lambda: batches(step))
        t, weight = timed("times", lambda: times.draw(u))
        batch = x0, eps, t.reshape(-1, *[1] * (x0.ndim - 1)), condition
        signs, weight = partial(batches.signs, step, group), weight.to(x0.dtype)
        attempt = partial(training.backward, state.optimiser, loss, batch, signs, weight, len(t))
        times.learn(t, timed("loss and gradient", attempt))
        timed("update", partial(state.update, step, settings["learning_rate"], settings["gradient_clip"]))
    inside = spent.pop("network")
    parts = "  ".join(f"{part} {1000 * seconds / steps:.1f}" for part, seconds in spent.items())
    whole = 1000 * sum(spent.values()) / steps
    print(f"training step {whole:6.1f} ms   ({parts}; forward {1000 * inside / steps:.1f})")
    return network


def sampling(job: dict, network: nn.Module, dataset: Data, batch: int, steps: int = 10) -> None:
    """Images × steps per second of DDIM, and what the noise alone costs."""
    denoiser = Denoiser(network.eval(), Objective.make(job["objective"]), Schedule.make(job["schedule"]))
    denoiser.call = computed_as(job, network, dataset)
    index = torch.arange(batch)
    start = time.perf_counter()
    for _ in chain(denoiser, DDIM(steps=steps), job["name"], index, NOTHING, dataset.shape):
        pass
    print(f"sampling      {batch * steps / (time.perf_counter() - start):6.0f} evaluations/s, batch {batch}")
    start = time.perf_counter()
    for draw in range(steps):
        rng.normal(1, index, draw, dataset.shape)
    print(f"noise         {batch * steps / (time.perf_counter() - start):6.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", action="append", default=[], metavar="FILE", help="overlay over config.yaml")
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--imports", type=int, default=3, help="how often each module is imported")
    options = parser.parse_args()
    grid = config.check(config.read("config.yaml", *options.configfile))
    prepare("cpu", grid.config["threads"])
    dataset, (job, _) = stored(grid), grid.job("train", next(iter(grid.networks)))
    start_up(options.imports)
    sampling(job, training_step(job, dataset, options.steps), dataset, grid.config["sampling"]["batch"])


if __name__ == "__main__":
    main()
