"""Training of one network: stateless draws, EMA, checkpoints that resume bit for bit."""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ddpm import networks, rng, terminal
from ddpm.compute import Computed, fitting, with_last
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.errors import UserError
from ddpm.latents import Latents
from ddpm.networks.network import Network
from ddpm.objectives import Objective
from ddpm.pipeline import parallel
from ddpm.pipeline.checkpoint import Checkpoint
from ddpm.pipeline.parallel import Group
from ddpm.pipeline.run import Outcome, Run
from ddpm.schedules import Schedule
from ddpm.times import Draws

Tensor = torch.Tensor
# The largest training split, in bytes as it is stored, that is kept on the device as a whole.
RESIDENT = 2**30


@torch.no_grad()
def average(averaged: nn.Module, network: nn.Module, n: int, decay: float) -> None:
    """θ_ema ← d θ_ema + (1 − d) θ with the warm-up d = min(decay, (1 + n)/(10 + n)) after n updates; the first copies.

    Without the warm-up, a decay of 0.999 would still hold e^−1 of the initial weights after 1 000 optimiser steps.
    """
    d = min(decay, (1 + n) / (10 + n)) if n else 0.0
    into, current = ([*of.parameters()] for of in (averaged, network))
    torch._foreach_lerp_(into, current, 1 - d)  # type: ignore[arg-type]  # parameters are tensors


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Linear from 0 over `warmup` steps, then constant, or half a cosine down to 0 at `steps`."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = 0.5 * (1 + math.cos(math.pi * step / steps)) if decay == "cosine" else 1.0
    return peak * rise * fall


class Batches:
    """Step → (x0, ε, u, condition), each a function of the network's name and the step alone; u (B,) places the times.

    An epoch is a seeded permutation of the training split; what is left over begins the next batch, so that
    every image is seen equally often. Nothing here has a state to save.

    Images stay as they are stored, in their memory-mapped file, and are encoded batch by batch, so that a split may be
    larger than memory; one of at most RESIDENT bytes is copied to the device first. So are latents, all encoded first.
    Nothing waits for the device: what is drawn on the CPU is copied while it computes.
    """

    def __init__(self, dataset: Data, job: dict, device: torch.device, network: Network):
        stored = dataset.train.images
        self.space, self.device, self.x = dataset.space, device, None
        if isinstance(self.space, Latents) and 4 * len(stored) * math.prod(self.space.shape) <= RESIDENT:
            self.x = self.space.encode(stored).to(device)
        self.resident = stored.nbytes <= RESIDENT and self.x is None
        self.stored = stored.to(device) if self.resident else stored
        self.name = job["name"]
        self.size, self.null = job["training"]["batch"], network.null
        self.dropout = job["training"].get("label_dropout")
        self.condition = Condition(None if self.dropout is None else dataset.train.known.to(device))
        self.key = rng.key("training", self.name)
        self.epoch, self.order = -1, torch.arange(0)  # no epoch's yet

    def _indices(self, step: int) -> Tensor:
        count, wanted = len(self.stored), torch.arange(step * self.size, (step + 1) * self.size)
        chosen = []
        for epoch in range(int(wanted[0]) // count, int(wanted[-1]) // count + 1):
            if epoch != self.epoch:
                self.epoch, self.order = epoch, rng.permutation(count, "order", self.name, epoch)
            inside = wanted[(wanted // count) == epoch] % count
            chosen.append(self.order[inside])
        return torch.cat(chosen)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
        index = self._indices(step)
        there = index.to(self.device, non_blocking=True)
        if self.x is not None:
            x0 = self.x[there]
        else:
            chosen = self.stored[there if self.resident else index]
            x0 = self.space.encode(chosen.to(self.device, non_blocking=True))
        position = torch.arange(self.size)
        eps = rng.normal(self.key, position.to(self.device, non_blocking=True), 2 * step, tuple(x0.shape[1:]))
        u = rng.uniform(self.key, position, 2 * step + 1, (2,))
        # One draw shifts an even grid: each place is uniform on (0, 1), and every batch covers them all, which lowers
        # the gradient's variance (Kingma et al. 2021, appendix I.1).
        spread = (u[0, 0] + position / self.size) % 1
        condition = self.condition[there]
        if self.dropout is not None:
            dropped = (u[:, 1] < self.dropout).to(self.device, non_blocking=True)
            condition = self.null(condition).where(dropped, condition)
        return x0, eps, spread, condition

    def signs(self, step: int, group: Group) -> Tensor:
        """Random signs of x0's shape, for this process's part of the batch."""
        position, shape = torch.arange(self.size, device=self.device), self.space.shape
        signs = 2.0 * (rng.uniform(rng.key("signs", self.name), position, step, shape) < 0.5).float() - 1
        return group.part(signs)


def build(job: dict, dataset: Data) -> Network:
    """The network of a training job, its weights drawn from the job's name."""
    objective = Objective.make(job["objective"])
    torch.manual_seed(rng.key("weights", job["name"]) & (2**63 - 1))
    classes = dataset.classes if job["conditional"] else 0
    return networks.build(job["network"], dataset.shape, objective.variance.heads, classes)


class State:
    """Everything of a training run that its step and its draws do not give: what a checkpoint keeps.

    network θ, its average θ_ema, Adam's moments, what the distribution of times (where there is one) has learned, the
    loss since the last `row`, the precisions that were used, how many images came at once, and the SHA-256 of the files
    beside the checkpoint.
    """

    def __init__(self, network: nn.Module, settings: dict, times: Draws | None, device: str):
        self.network, self.times = network, times
        self.average, self.ema_decay = copy.deepcopy(network).requires_grad_(False), settings["ema_decay"]
        rate = settings["learning_rate"]
        self.optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
        self.total = torch.zeros((), device=device)
        self.rows: list[list[float]] = []
        self.precisions: list[str] = []
        self.at_once: int = settings["batch"]  # images, of as many as memory bears
        self.beside: dict[str, str] = {}

    def pack(self) -> dict[str, Tensor]:
        """All of it as tensors by name; the rows are no tensors, and go beside them."""
        tensors = {"total": self.total} | {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
        return tensors | {f"times.{k}": v for k, v in (self.times.state() if self.times else {}).items()}

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `pack` took."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        state: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.network.parameters())
        for name, value in part("optimiser.").items():
            index, field = name.split(".")
            like = parameters[int(index)]
            # A file keeps no strides, and the fused optimiser goes through memory in the parameter's own order.
            state.setdefault(int(index), {})[field] = (
                torch.empty_like(like, requires_grad=False).copy_(value) if value.shape == like.shape else value
            )
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        if self.times:
            self.times.load(part("times."))
        self.total.copy_(tensors["total"])

    def resume(self, checkpoint: Checkpoint) -> int:
        """Put back what an interrupted job has left, if anything; the first step to do."""
        if (found := checkpoint.load()) is None:
            return 0
        self.unpack(found[0])
        for key in ("rows", "precisions", "at_once", "beside"):
            setattr(self, key, found[1][key])
        return found[1]["at"]

    def keep(self, checkpoint: Checkpoint, done: int) -> None:
        """Leave what `resume` puts back, after `done` steps, where a checkpoint is due."""
        if checkpoint.due():
            kept = {key: getattr(self, key) for key in ("rows", "precisions", "at_once", "beside")}
            checkpoint.save(self.pack(), {"at": done} | kept)

    def update(self, step: int, rate: float, gradient_clip: float) -> None:
        """One step of Adam down the gradient, its norm clipped, and of the average after it; `step` counts from 0."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip)
        self.optimiser.step()
        average(self.average, self.network, step, self.ema_decay)

    def row(self, step: int, settings: dict, rate: float, loss: Tensor) -> bool:
        """After every 200th part of training and the last step, a row of the training curve: the mean loss since the
        last one; False where it is not finite. One look at the device: reading every loss would stall a GPU."""
        self.total += loss
        every, done = max(1, settings["steps"] // 200), step + 1
        if done % every and done < settings["steps"]:
            return True
        mean = float(self.total) / (step % every + 1)
        if math.isfinite(mean):
            self.rows.append([done, done * settings["batch"], rate, mean])
            self.total.zero_()
        return math.isfinite(mean)

    def curve(self) -> str:
        """The training curve as CSV."""
        lines = ["step,images,learning_rate,loss", *(",".join(map(str, row)) for row in self.rows)]
        return "\n".join(lines) + "\n"

    def write(self, run: Run, status: str) -> None:
        """The files that training leaves when it has ended in this status."""
        run.write("weights", self.average.state_dict())
        run.write("loss", self.curve())


def backward(
    optimiser: torch.optim.Optimizer,
    loss: Callable[..., Tensor],
    batch: tuple,
    signs: Callable[[], Tensor],
    weight: Tensor,
    size: int,
) -> Tensor:
    """The losses (B,) of a batch (x0, ε, t, condition), `size` images at a time; the gradient of their weighted mean
    becomes that of the network's weights, whatever an attempt before has left there."""
    found = []
    optimiser.zero_grad(set_to_none=True)
    for start in range(0, len(weight), size):
        piece = slice(start, start + size)
        losses = loss(*(of[piece] for of in batch), signs=lambda piece=piece: signs()[piece])
        ((losses * weight[piece]).sum() / len(weight)).backward()
        found.append(losses.detach())
    return torch.cat(found)


def noisy_schedule(job: dict, dataset: Data) -> Schedule:
    """A job's schedule; UserError where it does not end in noise for these data (`ddpm.terminal`)."""
    schedule = Schedule.make(job["schedule"])
    end = schedule.level(torch.tensor(schedule.steps, dtype=torch.float64))
    if short := terminal.falls_short(float(end), dataset.deviation):
        raised = terminal.RAISED.get(schedule.method, "σ(T) against α(T)")
        raise UserError(f"schedule {job['schedule']['method']} of {job['name']}: {short}: raise its {raised}")
    return schedule


def train(
    run: Run, dataset: Data | None = None, kind: type[Batches] = Batches, keeping: type[State] = State
) -> Outcome | None:
    """The `train` stage: the EMA weights and the training curve.

    A loss that is not finite ends training as `diverged`, with the step: a result, not a crash. With
    `training.processes` above 1 this runs in every one; the first writes. `ddpm.stages.cascade` gives its own batches,
    `ddpm.stages.averages` a state that keeps more.
    """
    # ---- what is trained
    settings, device, group = run.settings, run.device, parallel.join(run.settings["processes"], run.device)
    dataset = dataset or data.read(run.inputs["data"], run.inputs.get("autoencoder"), device)
    schedule, objective = noisy_schedule(run.job, dataset), Objective.make(run.job["objective"])
    network, times = build(run.job, dataset).to(device), objective.times.on(schedule)
    batches, state = kind(dataset, run.job, torch.device(device), network), keeping(network, settings, times, device)
    # ---- what an interrupted job has already
    first = group.in_turn(lambda: state.resume(run.checkpoint))
    group.agree(first, f"{run.checkpoint.path}: first step")
    # ---- Ho et al. 2020, algorithm 1
    steps = settings["steps"]
    computed = Computed(group.wrap(state.network), run.job["compute"], dataset.space, device, steps - first)
    state.precisions = with_last(state.precisions, computed.precision)
    loss = partial(objective.loss, computed, schedule, space=dataset.space)
    status, step = "ok", first - 1
    run.phase("training")
    with run.progress(steps, "step", first, disable=not group.first) as progress:
        for step in range(first, steps):
            # A batch x0 with its noise ε, times t and condition; every process takes its part of them.
            x0, eps, u, condition = batches(step)
            t, weight = times.draw(u)
            x0, eps, at = map(group.part, (x0, eps, t.reshape(-1, *[1] * (x0.ndim - 1))))
            condition = condition.each(group.part)
            signs, weight = partial(batches.signs, step, group), weight.to(x0.device, x0.dtype, non_blocking=True)
            # The loss of every image, and the gradient of their mean with the weights that make the times even.
            attempt = partial(backward, state.optimiser, loss, (x0, eps, at, condition), signs, group.part(weight))
            # Processes must exchange gradients equally often.
            size, least = (state.at_once, 1) if group.size == 1 else (settings["batch"] // group.size,) * 2
            losses, state.at_once = fitting(size, attempt, "training.batch", least, computed.forget)
            times.learn(t, losses := group.whole(losses))
            rate = learning_rate(step, steps, settings["learning_rate"], settings["warmup"], settings["decay"])
            state.update(step, rate, settings["gradient_clip"])
            progress.update()
            if not state.row(step, settings, rate, (losses * weight).mean()):
                status = "diverged"
                break
            if group.first:
                state.keep(run.checkpoint, step + 1)
    if not group.first:
        return None
    # ---- what is kept
    run.phase("writing")
    state.write(run, status)
    return status, {
        "steps": step + 1,
        "images_seen": (step + 1) * settings["batch"],
        "parameters": sum(p.numel() for p in state.network.parameters()),
        "final_loss": state.rows[-1][-1] if state.rows else None,
        "space": dataset.space.spec,
        "classes": dataset.classes,
        "compute": computed.record(state.precisions) | {"images_at_once": state.at_once},
    }
