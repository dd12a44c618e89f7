"""From noise to images: every sampler is one `step` from x_t to x_s, s < t, on a grid of times."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from ddpm.bound import reverse_log_variance
from ddpm.denoiser import Denoiser
from ddpm.methods import Method
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor


@dataclass(frozen=True)
class Sampler(Method):
    """`steps` is S, the number of steps; the grid of times is independent of the training's T."""

    limits = {"steps": (1, None)}
    steps: int = 50

    def times(self, schedule: Schedule) -> Tensor:
        """T = τ_S > … > τ_0 = 0, evenly spaced and rounded: round(linspace(T, 0, S + 1)), float64."""
        if self.steps > schedule.steps:
            raise ValueError(f"steps: {self.steps} is more than the schedule's T = {schedule.steps}")
        return torch.linspace(schedule.steps, 0, self.steps + 1, dtype=torch.float64).round()

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Callable[[], Tensor]
    ) -> Tensor:
        """x_s from x_t; t and s are scalars, y the labels or None, `noise()` a fresh z ~ N(0, I) of x_t's shape."""
        raise NotImplementedError

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, y: Tensor | None, noise: Callable[[], Tensor]
    ) -> Iterator[Tensor]:
        """x after every step, from x_T = `x`."""
        times = self.times(denoiser.schedule)
        for t, s in pairwise(times):
            x = self.step(denoiser, x, t, s, y, noise)
            yield x


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s = A x̂0 + B x_t + √Σ z, the reverse chain p(x_s | x_t) (000, "Update Rules"; Ho et al. 2020, algorithm 2).

    `variance` is Σ where the network learns none: `small` = β̃, `large` = σ²_ts (β_t at full length). A learned
    variance replaces it. The last step returns the mean: z = 0 at s = 0.
    """

    method = "ancestral"
    choices = {"variance": ("small", "large")}
    variance: str = "small"

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Callable[[], Tensor]
    ) -> Tensor:
        prediction = denoiser(x_t, t, y)
        a, b, _ = like(x_t, *denoiser.schedule.posterior(t, s))
        mean = a * prediction.x0 + b * x_t
        if s == 0:
            return mean
        log_var = reverse_log_variance(denoiser.schedule, x_t, prediction.v, t, s, self.variance == "large")
        return mean + (0.5 * log_var).exp() * noise()


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = α_s x̂0 + √(σ_s² − η² β̃) ε̂ + η √β̃ z (Song, Meng & Ermon 2021, eq. 12; 001, eqs. 4.14 and 4.19).

    `eta` = 0 is deterministic, `eta` = 1 is ancestral sampling with the small variance.
    """

    method = "ddim"
    incompatible = (
        ("objective", "variance", "learned", "DDIM sets its own variance: the learned one would not be used"),
    )
    limits = {"eta": (0, 1)}
    eta: float = 0.0

    def step(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Callable[[], Tensor]
    ) -> Tensor:
        schedule, prediction = denoiser.schedule, denoiser(x_t, t, y)
        var = self.eta**2 * schedule.posterior(t, s)[2]
        alpha, direction, std = like(
            x_t, schedule.alpha(s), (schedule.sigma(s) ** 2 - var).clamp(min=0).sqrt(), var.sqrt()
        )
        x_s = alpha * prediction.x0 + direction * prediction.eps
        return x_s + std * noise() if self.eta > 0 and s > 0 else x_s
