"""What the network predicts and how its error is weighted.

Every target is y = p x0 + q ε. With D = α q − σ p one inversion serves them all:

    x̂0 = (q x_t − σ y) / D,    ε̂ = (α y − p x_t) / D,    ‖Δy‖² = (D/σ)² ‖Δx0‖².

The network's raw output is the target, with no hidden rescaling, so that differences between
parameterisations can show.
"""

import math
from dataclasses import dataclass

import torch

from ddpm import bound
from ddpm.methods import Method
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor


class Target(Method):
    """y = p x0 + q ε; coefficients are float64, of the shape of `t`."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q at time t."""
        raise NotImplementedError

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of ‖y − ŷ‖² in the simplified loss (000, "Simplified losses"): 1 unless stated."""
        return torch.ones_like(t, dtype=torch.float64)

    def of(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target y of a clean image and its noise."""
        p, q = like(x0, *self.coefficients(schedule, t))
        return p * x0 + q * eps

    def invert(self, schedule: Schedule, y: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x̂0 and ε̂ from a (predicted) target y at x_t."""
        p, q = self.coefficients(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        d = alpha * q - sigma * p
        x_from_x, x_from_y, e_from_y, e_from_x = like(x_t, q / d, -sigma / d, alpha / d, -p / d)
        return x_from_x * x_t + x_from_y * y, e_from_y * y + e_from_x * x_t

    def gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(D/σ)², by which an error in y exceeds the error in x0: ‖Δy‖² = gain ‖Δx0‖²."""
        p, q = self.coefficients(schedule, t)
        return (schedule.alpha(t) * q / schedule.sigma(t) - p) ** 2


class CleanImage(Target):
    """y = x0 (000, "Clean image prediction")."""

    method = "x0"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return one, 0 * one


class Noise(Target):
    """y = ε (000, "Noise prediction"; Ho et al. 2020)."""

    method = "eps"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return 0 * one, one


class Score(Target):
    """y = ∇ log q(x_t | x0) = −ε/σ (000, "Score prediction"; 003, eq. 33)."""

    method = "score"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(t)
        return 0 * sigma, -1 / sigma

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """1 − ᾱ_t = σ² (000, "Simplified losses")."""
        return schedule.sigma(t) ** 2


class Velocity(Target):
    """y = v = α ε − σ x0 (Salimans & Ho 2022)."""

    method = "v"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return -schedule.sigma(t), schedule.alpha(t)


class PosteriorMean(Target):
    """y = µ̃(x_t, x0), the mean of q(x_{t−1} | x_t, x0): p = A + B α, q = B σ (000, L_µ; Ho et al. 2020)."""

    method = "mu"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b, _ = schedule.posterior(t, t - 1)
        return a + b * schedule.alpha(t), b * schedule.sigma(t)


@dataclass(frozen=True)
class Objective(Method):
    """A target, the weighting of its loss, and whether the reverse variance is learned with it.

    target:     one of the classes above, by its name.
    weighting:  `simple`, the documents' simplified losses, or `vlb`, the exact variational bound
                KL_t = ½ (SNR_{t−1} − SNR_t) ‖x0 − x̂0‖² with fixed small variance, in bits/dim and summed
                over t ≥ 2 as the table reports it, and at t = 1 document 000's ‖x0 − x̂0‖²/2σ² in place of
                the discretised decoder (000, "Unified loss framework").
    variance:   `fixed`, or `learned`: a second head v with log Σ = v log β_t + (1 − v) log β̃_t
                (001, eq. 4.1), trained by L = L_simple + λ L_vlb (001, eq. 4.2) with the mean's gradient
                stopped in L_vlb.
    vlb_weight: λ, where L_vlb is summed over t = 1 … T and measured in bits/dim. 0.001 is the value of
                Nichol & Dhariwal 2021; the poster prints 1000 without a unit.
    """

    choices = {"weighting": ("simple", "vlb"), "variance": ("fixed", "learned")}
    limits = {"vlb_weight": (0, None)}
    target: str
    weighting: str = "simple"
    variance: str = "fixed"
    vlb_weight: float = 0.001

    def check(self) -> None:
        Target.make({"method": self.target})

    @property
    def parameterisation(self) -> Target:
        return Target.make({"method": self.target})

    @property
    def learns_variance(self) -> bool:
        return self.variance == "learned"

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output as target and, where learned, v in [0, 1] mapped from the head's [−1, 1]."""
        if not self.learns_variance:
            return output, None
        y, v = output.chunk(2, dim=1)
        return y, (v + 1) / 2

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """w(t) in w ‖y − ŷ‖², float64, of the shape of t."""
        target = self.parameterisation
        if self.weighting == "simple":
            return target.simple_weight(schedule, t)
        # A²/2β̃ is ½ (SNR_{t−1} − SNR_t), and at t = 1 document 000's first term with the clipped variance.
        a, _, _ = schedule.posterior(t, t - 1)
        log_small, _ = schedule.log_variances(t, t - 1)
        kl_per_x0 = a**2 / (2 * log_small.exp())
        return schedule.steps / math.log(2) * kl_per_x0 / target.gain(schedule, t)

    def loss(self, schedule: Schedule, output: Tensor, x0: Tensor, eps: Tensor, t: Tensor, levels: int) -> Tensor:
        """The training loss of every image, shape (B,): a mean over its dimensions.

        t has shape (B, 1, 1, 1), integers 1 … T; `levels` is the number of grey levels of the data.
        """
        y_hat, v = self.split(output)
        target = self.parameterisation
        error = (y_hat - target.of(schedule, x0, eps, t)).square()
        (weight,) = like(x0, self.weight(schedule, t))
        loss = (weight * error).flatten(1).mean(1)
        if v is None:
            return loss
        x_t = schedule.noisy(x0, eps, t)
        x0_hat, _ = target.invert(schedule, y_hat.detach(), x_t, t)
        term = bound.vlb_term(schedule, x0, x_t, x0_hat, v, t, levels)
        return loss + self.vlb_weight * schedule.steps / math.log(2) * term
