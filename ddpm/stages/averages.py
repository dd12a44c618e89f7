"""Averages of a network's weights of any length, after one training (Karras et al. 2024, appendix C).

The `snapshots` stage is training as it always is, to the same weights; beside it, it averages them over two lengths and
keeps snapshots of both. The `train` stage of such a network reads from there: the usual average, or one of another
length, reconstructed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from torch import distributed
from torch.optim.optimizer import register_optimizer_step_post_hook

from ddpm.averaging import KEPT, coefficients, decay, moments
from ddpm.datasets import dataset as data
from ddpm.pipeline.checkpoint import Checkpoint
from ddpm.pipeline.records import read_tensors, write_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.stages import train as training

Tensor = torch.Tensor


@torch.no_grad()
def average(into: list[Tensor], current: list[Tensor], t: int, length: float) -> None:
    """θ̂ ← β(t) θ̂ + (1 − β(t)) θ of every parameter, after step t = 1, 2, …; the first copies."""
    torch._foreach_lerp_(into, current, 1 - decay(t, length))


class Averages:
    """Both averages of what an optimiser trains, and the snapshots, each in a file of its own below `folder` until
    training ends: a checkpoint holds the averages alone.

    steps: those that are done;  values: by length, the average of every parameter.
    """

    def __init__(self, at: list[int], folder: Path):
        self.at, self.folder, self.steps = at, folder, 0
        self.values: list[list[Tensor]] = []
        self.loaded: dict[str, Tensor] = {}

    def file(self, t: int) -> Path:
        """The snapshot after step t."""
        return self.folder / f"snapshot-{t}.safetensors"

    @contextmanager
    def following(self) -> Iterator[None]:
        """After every step of an optimiser in here, average."""
        hook = register_optimizer_step_post_hook(lambda optimiser, *_: self.update(optimiser))
        try:
            yield
        finally:
            hook.remove()

    def update(self, optimiser: torch.optim.Optimizer) -> None:
        """The averages after another step, and their snapshot where one is due."""
        parameters = [p.detach() for group in optimiser.param_groups for p in group["params"]]
        if not self.values:
            # In the parameters' own memory format, which a file does not keep.
            self.values = [[torch.zeros_like(p) for p in parameters] for _ in KEPT]
            for name, tensor in self.loaded.items():
                self.values[int(name.split(".")[1])][int(name.split(".")[2])].copy_(tensor)
        self.steps += 1
        for into, length in zip(self.values, KEPT, strict=True):
            average(into, parameters, self.steps, length)
        first = not distributed.is_initialized() or distributed.get_rank() == 0
        if self.steps in self.at and first:
            write_tensors(self.file(self.steps), self.pack())

    def pack(self) -> dict[str, Tensor]:
        """Both averages as tensors by name."""
        return {f"kept.{i}.{j}": t for i, values in enumerate(self.values) for j, t in enumerate(values)}


class Beside(Checkpoint):
    """The checkpoint of training, with the averages of so far in it; it goes together with its snapshots."""

    def __init__(self, of: Checkpoint, averages: Averages):
        vars(self).update(vars(of))
        self.averages = averages

    def load(self) -> tuple[dict, dict] | None:
        found, files = super().load(), self.averages.file
        if found is None or not all(files(t).exists() for t in self.averages.at if t <= found[1]["at"]):
            for path in self.averages.folder.glob("snapshot-*"):
                path.unlink(missing_ok=True)
            return None
        self.averages.steps = found[1]["at"]
        self.averages.loaded = {name: found[0].pop(name) for name in list(found[0]) if name.startswith("kept.")}
        return found

    def save(self, tensors: dict, state: dict) -> None:
        super().save(tensors | self.averages.pack(), state)

    def remove(self) -> None:
        super().remove()
        for t in self.averages.at:
            self.averages.file(t).unlink(missing_ok=True)


class Held(Run):
    """A run whose outputs are held in memory, instead of written, by their names."""

    held: dict[str, str | dict]

    def write(self, file: str, content: str | dict, about: dict[str, object] | None = None) -> None:
        self.held[file] = content


def train(run: Run) -> Outcome | None:
    """The `snapshots` stage: the weights that training always leaves (`average.…`), its curve, and the snapshots
    (`0.1.…`: the first moment's, of the second length in KEPT)."""
    at = moments(run.settings["steps"], run.settings["snapshots"])
    averages = Averages(at, run.checkpoint.path.parent)
    inside = Held(**{field.name: getattr(run, field.name) for field in fields(run) if field.init})
    inside.held = {}
    inside.checkpoint = run.checkpoint = Beside(run.checkpoint, averages)
    with averages.following():
        outcome = training.train(inside)
    if outcome is None:
        return None
    weights = inside.held["weights"]
    assert isinstance(weights, dict)
    dataset = data.read(run.inputs["data"], run.inputs.get("autoencoder"))
    names = [name for name, _ in training.build(run.job, dataset).named_parameters()]
    tensors = {f"average.{name}": tensor for name, tensor in weights.items()}
    for k, t in enumerate(at if outcome[0] == "ok" else []):
        for name, tensor in read_tensors(averages.file(t))[0].items():
            _, i, j = name.split(".")
            tensors[f"{k}.{i}.{names[int(j)]}"] = tensor
    run.write("snapshots", tensors, {"loss": inside.held["loss"]})
    return outcome


def usual(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that training always leaves, of what `train` keeps."""
    return {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}


def reconstruct(tensors: dict[str, Tensor], steps: int, count: int, length: float) -> tuple[dict[str, Tensor], float]:
    """The weights averaged over `length`, σ_rel, and by how much its profile is missed, relative to its own norm."""
    found, error = coefficients(steps, count, length)
    each = dict(zip(((k, i) for k in range(count) for i in range(len(KEPT))), found, strict=True))
    weights = usual(tensors)
    for name in weights:
        if f"0.0.{name}" in tensors:  # a parameter
            summed = torch.zeros_like(weights[name], dtype=torch.float64)
            for (k, i), c in each.items():
                summed += c * tensors[f"{k}.{i}.{name}"]
            weights[name] = summed.to(weights[name].dtype)
    return weights, error


def read(run: Run) -> Outcome:
    """The `train` stage of a network whose training kept snapshots: the usual average of its weights, or that of the
    length `training.ema`, and the curve of its training."""
    record, settings = run.parent("snapshots"), run.settings
    tensors, about = read_tensors(run.inputs["snapshots"])
    weights, result = usual(tensors), record["result"]
    if "ema" in settings and record["status"] == "ok":
        kept = settings["steps"], settings["snapshots"]
        weights, result["profile_error"] = reconstruct(tensors, *kept, settings["ema"])
    run.write("weights", weights)
    run.write("loss", about["loss"])
    return record["status"], result
