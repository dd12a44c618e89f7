"""Training of one network: stateless draws, EMA, checkpoints that resume bit for bit."""

import csv
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ddpm import networks, rng, terminal
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.errors import UserError
from ddpm.objectives import Objective
from ddpm.pipeline import parallel
from ddpm.pipeline.checkpoint import SECONDS, Checkpoint
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.parallel import Group
from ddpm.pipeline.records import Recorder, atomic, write_tensors
from ddpm.schedules import Schedule
from ddpm.times import Times

Tensor = torch.Tensor


def ema(decay: float) -> Callable:
    """θ_ema ← d θ_ema + (1 − d) θ with the warm-up d = min(decay, (1 + n)/(10 + n)) after n updates.

    The first update copies the weights. Without the warm-up, a decay of 0.999 would still hold e^−1 of the initial
    weights after 1 000 steps.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n: Tensor) -> None:
        d = min(decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - d)

    return update


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Linear from 0 over `warmup` steps, then constant, or half a cosine down to 0 at `steps`."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = 0.5 * (1 + math.cos(math.pi * step / steps)) if decay == "cosine" else 1.0
    return peak * rise * fall


class Batches:
    """Step → (x0, ε, u, y), each a function of the network's name and the step alone; u (B,) places the times.

    An epoch is a seeded permutation of the training half; what is left over begins the next batch, so that
    every image is seen equally often. Nothing here has a state to save.
    """

    def __init__(self, dataset: Data, job: dict, device: torch.device):
        self.images = dataset.scale(dataset.train.images).to(device)
        self.labels = dataset.train.labels.to(device)
        self.name = job["name"]
        self.size, self.null = job["training"]["batch"], dataset.classes
        self.dropout = job["training"].get("label_dropout")
        self.key = rng.key("training", self.name)
        self.epoch, self.order = -1, None

    def _indices(self, step: int) -> Tensor:
        count, wanted = len(self.images), torch.arange(step * self.size, (step + 1) * self.size)
        chosen = []
        for epoch in range(int(wanted[0]) // count, int(wanted[-1]) // count + 1):
            if epoch != self.epoch:
                self.epoch, self.order = epoch, rng.permutation(count, "order", self.name, epoch)
            inside = wanted[(wanted // count) == epoch] % count
            chosen.append(self.order[inside])
        return torch.cat(chosen)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        index = self._indices(step).to(self.images.device)
        x0 = self.images[index]
        position = torch.arange(self.size)
        eps = rng.normal(self.key, position.to(x0.device), 2 * step, tuple(x0.shape[1:]))
        u = rng.uniform(self.key, position, 2 * step + 1, (2,))
        # One draw shifts an even grid: each place is uniform on (0, 1), and every batch covers them all, which lowers
        # the gradient's variance (Kingma et al. 2021, appendix I.1).
        spread = (u[0, 0] + position / self.size) % 1
        if self.dropout is None:
            return x0, eps, spread, None
        dropped = (u[:, 1] < self.dropout).to(x0.device)
        return x0, eps, spread, torch.where(dropped, self.null, self.labels[index])

    def signs(self, step: int, group: Group) -> Tensor:
        """Random signs of x0's shape, for this process's part of the batch."""
        position, shape = torch.arange(self.size, device=self.images.device), tuple(self.images.shape[1:])
        signs = 2.0 * (rng.uniform(rng.key("signs", self.name), position, step, shape) < 0.5).float() - 1
        return group.part(signs)


def build(job: dict, dataset: Data) -> nn.Module:
    """The network of a training job, its weights drawn from the job's name."""
    objective = Objective(**job["objective"])
    torch.manual_seed(rng.key("weights", job["name"]) & (2**63 - 1))
    heads = 2 if objective.learns_variance else 1
    return networks.build(job["network"], dataset.shape, heads, dataset.classes if job["conditional"] else 0)


def pack(
    network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, times: Times, total: Tensor
) -> dict[str, Tensor]:
    """Everything of a training run that its step and its draws do not give, as tensors by name."""
    tensors = {"total": total} | {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    return tensors | {f"times.{k}": v for k, v in times.state().items()}


def unpack(
    tensors: dict[str, Tensor],
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    times: Times,
    total: Tensor,
) -> None:
    """Put back what `pack` took."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network.load_state_dict(part("network."))
    average.load_state_dict(part("average."))
    state: dict[int, dict[str, Tensor]] = {}
    parameters = list(network.parameters())
    for name, value in part("optimiser.").items():
        index, field = name.split(".")
        like = parameters[int(index)]
        # A file keeps no strides, and the fused optimiser goes through memory in the parameter's own order.
        state.setdefault(int(index), {})[field] = (
            torch.empty_like(like, requires_grad=False).copy_(value) if value.shape == like.shape else value
        )
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    times.load(part("times."))
    total.copy_(tensors["total"])


def train(job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS) -> None:
    """The `train` stage: the EMA weights, the training curve and their record.

    A loss that is not finite ends training as `diverged`, with the step: a result, not a crash. With
    `training.processes` above 1 this runs in every one of them; the first writes.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    settings = job["training"]
    group = parallel.join(settings["processes"], device)
    recorder = Recorder("train", job, code, layout.inputs("train"), device)
    dataset = data.read(layout.data)
    schedule, objective = Schedule.make(job["schedule"]), Objective(**job["objective"])
    end, std = (
        float(schedule.level(torch.tensor(schedule.steps))),
        float(dataset.scale(dataset.train.images).var(0).mean().sqrt()),
    )
    if short := terminal.falls_short(end, std):
        raised = terminal.RAISED.get(schedule.method, "sigma_max")
        raise UserError(f"schedule {job['schedule']['method']} of {job['name']}: {short}: raise its {raised}")
    network = build(job, dataset).to(device)
    average = AveragedModel(network, multi_avg_fn=ema(settings["ema_decay"]), use_buffers=False)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.99), fused=True)
    batches, times = Batches(dataset, job, torch.device(device)), Times.of(objective, schedule)
    total, first, rows = torch.zeros((), device=device), 0, []
    checkpoint = Checkpoint(layout.checkpoint("train", job["name"]), recorder, checkpoint_seconds)
    if found := checkpoint.load():
        unpack(found[0], network, average, optimiser, times, total)
        first, rows = found[1]["at"], found[1]["rows"]
    group.agree(first, f"{checkpoint.path}: first step")
    together = group.wrap(network)
    steps, every = settings["steps"], max(1, settings["steps"] // 200)
    status, step = "ok", first - 1
    recorder.phase("training")
    progress = {"initial": first, "total": steps, "desc": job["name"], "unit": "step"}
    for step in tqdm(range(first, steps), disable=not group.first, **progress):
        x0, eps, u, y = batches(step)
        t, weight = times.draw(u)
        x0, eps, at, y = map(group.part, (x0, eps, t.reshape(-1, *[1] * (x0.ndim - 1)), y))
        rate = learning_rate(step, steps, settings["learning_rate"], settings["warmup"], settings["decay"])
        for parameters in optimiser.param_groups:
            parameters["lr"] = rate
        signs = partial(batches.signs, step, group)
        losses = objective.loss(together, schedule, x0, eps, at, y, dataset.levels, signs)
        weight = weight.to(losses.device, losses.dtype)
        loss = (losses * group.part(weight)).mean()
        losses = group.whole(losses)
        times.learn(t, losses)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings["gradient_clip"])
        optimiser.step()
        average.update_parameters(network)
        total += (losses * weight).mean()
        if (step + 1) % every == 0 or step + 1 == steps:
            # One look at the device per row: reading every loss would stall a GPU.
            mean = float(total) / ((step % every) + 1)
            if not math.isfinite(mean):
                status = "diverged"
                break
            rows.append([step + 1, (step + 1) * settings["batch"], rate, mean])
            total.zero_()
        if group.first and checkpoint.due():
            checkpoint.save(pack(network, average, optimiser, times, total), {"at": step + 1, "rows": rows})
    if not group.first:
        return
    recorder.phase("writing")
    weights, log = layout.weights(job["name"]), layout.loss(job["name"])
    write_tensors(weights, average.module.state_dict())
    with atomic(log) as temporary, temporary.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["step", "images", "learning_rate", "loss"])
        writer.writerows(rows)
    recorder.finish(
        layout.record("train", job["name"]),
        [weights, log],
        status,
        steps=step + 1,
        images_seen=(step + 1) * settings["batch"],
        parameters=sum(p.numel() for p in network.parameters()),
        final_loss=rows[-1][-1] if rows else None,
        levels=dataset.levels,
        classes=dataset.classes,
        shape=list(dataset.shape),
    )
    checkpoint.remove()
