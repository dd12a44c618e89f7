"""What one job costs: start-up, a training step and its parts, network evaluations per second while sampling.

    python benchmarks/speed.py [--configfile OVERLAY ...]

Compare two versions by running both on an idle machine, in turn.
"""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ddpm import rng
from ddpm.datasets.dataset import Data, Dataset
from ddpm.denoiser import Denoiser
from ddpm.objectives import Objective
from ddpm.pipeline import config
from ddpm.samplers import DDIM
from ddpm.schedules import Schedule
from ddpm.spaces import Space
from ddpm.stages import train as training
from ddpm.stages.sample import chain

T = TypeVar("T")


def start_up() -> None:
    """Seconds until a fresh Python has imported what each stage imports."""
    for module in (
        "ddpm",
        "ddpm.pipeline.config",
        "torch",
        "ddpm.stages.train",
        "ddpm.stages.sample",
        "ddpm.stages.fidelity",
        "ddpm.tables",
    ):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            times.append(time.perf_counter() - start)
        print(f"import {module:15} {min(times):6.2f} s")


def training_step(job: dict, dataset: Data, steps: int = 30, warm: int = 5) -> nn.Module:
    """Milliseconds of a training step, by part."""
    network, batches = training.build(job, dataset), training.Batches(dataset, job, torch.device("cpu"))
    schedule, objective = Schedule.make(job["schedule"]), Objective(**job["objective"])
    average = AveragedModel(network, multi_avg_fn=training.ema(0.999), use_buffers=False)
    optimiser = torch.optim.Adam(network.parameters(), fused=True)
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, run: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = run()
        spent[part] += time.perf_counter() - start
        return result

    for step in range(steps + warm):
        if step == warm:
            spent.clear()
        x0, eps, t, y = timed("draw", lambda step=step: batches(step))
        x_t, log_snr = timed("noise", lambda: (schedule.noisy(x0, eps, t), schedule.log_snr(t).flatten().float()))
        output = timed("forward", lambda: network(x_t, log_snr, y))
        loss = timed("loss", lambda: objective.loss(schedule, output, x0, eps, t, dataset.space).mean())
        optimiser.zero_grad(set_to_none=True)
        timed("backward", loss.backward)
        timed("clip", lambda: nn.utils.clip_grad_norm_(network.parameters(), 1.0))
        timed("optimiser", optimiser.step)
        timed("average", lambda: average.update_parameters(network))
    parts = "  ".join(f"{part} {1000 * seconds / steps:.1f}" for part, seconds in spent.items())
    print(f"training step     {1000 * sum(spent.values()) / steps:6.1f} ms   ({parts})")
    return network


def sampling(job: dict, network: nn.Module, dataset: Data, batch: int, steps: int = 10) -> None:
    """Images × steps per second of DDIM, and what the noise alone costs."""
    denoiser = Denoiser(network.eval(), Objective(**job["objective"]), Schedule.make(job["schedule"]))
    index = torch.arange(batch)
    start = time.perf_counter()
    for _ in chain(denoiser, DDIM(steps=steps), job["name"], index, None, dataset.shape):
        pass
    print(f"sampling          {batch * steps / (time.perf_counter() - start):6.0f} evaluations/s, batch {batch}")
    start = time.perf_counter()
    for draw in range(steps):
        rng.normal(1, index, draw, dataset.shape)
    print(f"noise             {batch * steps / (time.perf_counter() - start):6.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", action="append", default=[])
    grid = config.check(config.read("config.yaml", *parser.parse_args().configfile))
    torch.set_num_threads(grid.config["threads"])
    spec = dict(grid.job("data")[0]["data"])
    source = Dataset.make({"method": spec.pop("name")} | spec)
    train, test = source.load()
    dataset = Data(train, test, Space.fit(source.space, train.images), source.classes)
    job = grid.job("train", next(iter(grid.networks)))[0]
    start_up()
    sampling(job, training_step(job, dataset), dataset, grid.config["sampling"]["batch"])


if __name__ == "__main__":
    main()
