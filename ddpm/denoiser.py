"""Network + objective + schedule: (x_t, t, condition) → x̂0, ε̂ and, if learned, the variance fraction v."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ddpm.condition import NOTHING, Condition
from ddpm.networks.network import Network
from ddpm.objectives import Objective
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor


@dataclass(frozen=True)
class Prediction:
    """x̂0 and ε̂ at x_t, of its shape; v in [0, 1] (of its shape) where the variance is learned, else None."""

    x0: Tensor
    eps: Tensor
    v: Tensor | None


class Denoiser:
    """E[x0 | x_t] as a function of (x_t, t, condition); t is one time, a float64 scalar on the CPU, or (B, 1, 1, 1).

    Guidance and exact denoisers override `predict`. x̂0 is clipped to the data's range [−1, 1] here and
    nowhere else (`clip=False` for unbounded data), and ε̂ = (x_t − α x̂0)/σ is derived from the clipped x̂0.
    """

    # Network evaluations per call and image, at most.
    evaluations = 1

    def __init__(self, network: Network, objective: Objective, schedule: Schedule, clip: bool = True):
        self.network, self.objective, self.schedule, self.clip = network, objective, schedule.keeping(), clip
        self.call: Callable[[Tensor, Tensor, Condition], Tensor] = network  # how it is computed (`ddpm.compute`)
        self.evaluated = 0  # network evaluations so far, summed over images

    def parts(self) -> list["Denoiser"]:
        """The denoisers of single networks that this one is made of."""
        return [self]

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """x̂0 before clipping, and v or None."""
        output, v = self.objective.outputs(self.call, self.schedule, x_t, t, condition)
        x0, _ = self.objective.target.invert(self.schedule, output, x_t, t)
        return x0, v

    def evaluations_at(self, t: Tensor) -> int:
        """Network evaluations per image of a call at these times."""
        return self.evaluations

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition = NOTHING) -> Prediction:
        x0, v = self.predict(x_t, t, condition)
        self.evaluated += self.evaluations_at(t) * len(x_t)
        if self.clip:
            x0 = x0.clamp(-1, 1)
        alpha, inverse_sigma = like(x_t, self.schedule.alpha(t), 1 / self.schedule.sigma(t))
        return Prediction(x0, (x_t - alpha * x0) * inverse_sigma, v)
