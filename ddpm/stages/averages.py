"""Averages of a network's weights of any length, after one training (Karras et al. 2024b, appendix C).

The `snapshots` stage is training as it always is, to the same weights; its state averages them over two more lengths
and keeps snapshots of both. The `train` stage of such a network reads from there: the usual average, or one of another
length, reconstructed.
"""

import torch
from torch import nn

from ddpm.averaging import KEPT, coefficients, decay, moments
from ddpm.pipeline.checkpoint import Checkpoint
from ddpm.pipeline.records import read_tensors, sha256, write_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.stages import cascade
from ddpm.stages import train as training
from ddpm.times import Draws

Tensor = torch.Tensor


@torch.no_grad()
def average(into: list[Tensor], current: list[Tensor], t: int, length: float) -> None:
    """θ̂ ← β(t) θ̂ + (1 − β(t)) θ of every parameter, after step t = 1, 2, …; the first copies."""
    torch._foreach_lerp_(into, current, 1 - decay(t, length))


class Averaged(training.State):
    """That of training with snapshots: for every length in KEPT also the average of every parameter, by its name.

    at: the steps after which a snapshot of both is kept, in a file beside the checkpoint until training ends.
    """

    def __init__(self, network: nn.Module, settings: dict, times: Draws | None, device: str):
        super().__init__(network, settings, times, device)
        self.at = moments(settings["steps"], settings["snapshots"])
        # In the parameters' own memory format, which a file does not keep.
        self.kept = [{name: torch.zeros_like(p.detach()) for name, p in network.named_parameters()} for _ in KEPT]

    def snapshot(self) -> dict[str, Tensor]:
        """Both averages as tensors by name: `0.…` are those of the first length."""
        return {f"{i}.{name}": tensor for i, kept in enumerate(self.kept) for name, tensor in kept.items()}

    def pack(self) -> dict[str, Tensor]:
        return super().pack() | {f"kept.{name}": tensor for name, tensor in self.snapshot().items()}

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        super().unpack(tensors)
        for name, tensor in self.snapshot().items():
            tensor.copy_(tensors[f"kept.{name}"])

    def update(self, step: int, rate: float, gradient_clip: float) -> None:
        super().update(step, rate, gradient_clip)
        for kept, length in zip(self.kept, KEPT, strict=True):
            average([*kept.values()], [*self.network.parameters()], step + 1, length)

    def keep(self, checkpoint: Checkpoint, done: int) -> None:
        if done in self.at:
            path = checkpoint.path.with_name(f"snapshot-{done}.safetensors")
            write_tensors(path, self.snapshot())
            self.beside[path.name] = sha256(path)
        super().keep(checkpoint, done)

    def write(self, run: Run, status: str) -> None:
        """The weights that training always leaves (`average.…`), its curve, and of training that ended well the
        snapshots (`0.1.…`: the first moment's, of the second length)."""
        tensors = {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for k, file in enumerate(self.beside if status == "ok" else []):
            snapshot, _ = read_tensors(run.checkpoint.path.with_name(file))
            tensors |= {f"{k}.{name}": tensor for name, tensor in snapshot.items()}
        run.write("snapshots", tensors, {"loss": self.curve()})


def train(run: Run) -> Outcome | None:
    """The `snapshots` stage."""
    return training.train(run, keeping=Averaged)


def train_base(run: Run) -> Outcome | None:
    """That of the first network of a cascade."""
    return cascade.train_base(run, Averaged)


def train_second(run: Run) -> Outcome | None:
    """That of its second one."""
    return cascade.train_second(run, Averaged)


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
