"""The forward process x_t = α(t) x0 + σ(t) ε of any noise schedule α(t), σ(t).

A schedule is these two functions; slopes, levels, grids and the reverse process follow from them, and a closed form
replaces what has one. Index 0 is clean data, T is noise. Times and everything that depends on the schedule alone are
float64 tensors on the CPU, of any shape; `like` moves the finished coefficients to the images' device and type.
Give times a shape that broadcasts against the images: () for one time, (B, 1, 1, 1) for one per image.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Annotated, ClassVar, Self

import torch

from ddpm import calculus
from ddpm.methods import Method
from ddpm.parameters import Interval

Tensor = torch.Tensor


# Samplers start at log SNR = −10.2 where a schedule goes further, unless they take more steps than that leaves.
# λ = log α/σ = −5.1 is where Lu et al. 2022a cut off the cosine schedule; `linear` ends at −5.06.
LARGEST_LEVEL = math.exp(5.1)
LARGEST_LOG_SNR = 30.0
# Of α(0) = 1. Below, x_t counts as noise alone: x0 = (x_t − σ ε)/α would be ε's error, 3 000 000 times enlarged.
SMALLEST_ALPHA = math.exp(-LARGEST_LOG_SNR / 2)


def distinct(times: Tensor) -> Tensor:
    """The S + 1 falling times rounded to whole indices, each at least one above the next: float64, the last 0."""
    index = torch.arange(len(times) - 1, -1, -1, dtype=torch.float64)
    return torch.maximum(times.round(), index)


def like(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients in the type and on the device of `x`; a single time stays a CPU scalar."""
    return tuple(c.to(x.dtype) if c.ndim == 0 else c.to(x.device, x.dtype, non_blocking=True) for c in coefficients)


def kept(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function of t, which keeps what it gave for single times."""
    found: dict[float, Tensor] = {}

    @wraps(function)
    def known(t: Tensor) -> Tensor:
        if t.ndim or t.requires_grad:
            return function(t)
        if (at := float(t)) not in found:
            found[at] = function(t)
        return found[at]

    return known


@dataclass(frozen=True)
class Schedule(Method):
    """A pair α(t), σ(t) of float64 times in [0, T]; everything else follows from it.

    `steps` is T, the number of diffusion steps that a network is trained on. α(0) = 1 and σ(0) = 0, so that the last
    step of a sampler needs no special case; σ/α rises with t. α(T) may be 0, as in flow matching, α = 1 − t/T and
    σ = t/T (Lipman et al. 2023): log SNR(T) = −∞, and f, g² and the slope are infinite there. x_T then says nothing of
    x0, and what cannot be said at such a time is nowhere asked for: see `lost`.
    """

    # VP (α² + σ² = 1), VE (α = 1) or none: what a method that works on one of them only asks for.
    family: ClassVar[str] = ""
    steps: Annotated[int, Interval(ge=2, le=1000000)] = 1000

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t), without unit."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t), in units of the data."""
        raise NotImplementedError

    def keeping(self) -> Self:
        """The same schedule, which computes α and σ of a single time once: samplers need them some thirty times in a
        step, and again for every batch."""
        same = copy(self)
        vars(same).update(alpha=kept(self.alpha), sigma=kept(self.sigma))
        return same

    def square(self, t: Tensor) -> Tensor:
        """α² + σ², the variance of x_t for data of unit variance."""
        return self.alpha(t) ** 2 + self.sigma(t) ** 2

    def log_snr(self, t: Tensor) -> Tensor:
        """log SNR(t) = log α²/σ², what every network is conditioned on; +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def log_snr_for(self, t: Tensor, x_t: Tensor) -> Tensor:
        """What a network is told of the noise: log SNR(t) for every image of x_t, (B,), within ±`LARGEST_LOG_SNR`.

        t is a scalar or (B, 1, …). A schedule whose α or σ vanishes at an end has an infinite log SNR there.
        """
        log_snr = self.log_snr(t).clamp(-LARGEST_LOG_SNR, LARGEST_LOG_SNR)
        return log_snr.flatten().expand(len(x_t)).to(x_t.device, x_t.dtype, non_blocking=True)

    def level(self, t: Tensor) -> Tensor:
        """ς(t) = σ/α = SNR^−½, the noise level of x_t/α, in units of the data; 0 at t = 0."""
        return self.sigma(t) / self.alpha(t)

    def time_at(self, level: Tensor) -> Tensor:
        """The time t in [0, T] at which σ/α = `level`: the inverse of `level`; T for larger ones."""
        return calculus.inverse(self.level, torch.as_tensor(level, dtype=torch.float64), self.steps)

    def _rate(self, name: str, t: Tensor) -> Tensor:
        """dα/dt or dσ/dt."""
        return calculus.derivative(getattr(self, name), self._inside(t), f"{type(self).__name__}.{name}")

    def slope(self, t: Tensor) -> Tensor:
        """d log SNR/dt = 2 (d ln α/dt − d ln σ/dt), negative, per unit of t; to the left of t."""
        return 2 * (self._rate("alpha", t) / self.alpha(t) - self._rate("sigma", t) / self.sigma(t))

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d ln α/dt of the forward SDE dx = f x dt + g dw, per unit of t (Shariatian & Conforti 2025, 003)."""
        return self._rate("alpha", t) / self.alpha(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g²(t) = dσ²/dt − 2 f σ² = −σ² d log SNR/dt, per unit of t."""
        return -(self.sigma(t) ** 2) * self.slope(t)

    @property
    def prior_std(self) -> Tensor:
        """The standard deviation of the prior p(x_T) = N(0, prior_std² I): σ(T), for VP 1."""
        return self.sigma(torch.tensor(self.steps, dtype=torch.float64))

    def noise_std(self, t: Tensor) -> Tensor:
        """The standard deviation of x_t where it starts as noise at t ≤ T instead: σ(t), that of the prior at T."""
        return self.prior_std if float(t) == self.steps else self.sigma(t)

    def lost(self, t: Tensor) -> Tensor:
        """Where x_t is noise alone: α(t) < `SMALLEST_ALPHA`.

        x̂0 does not follow from ε̂ there (`ddpm.objectives.Target.blind`). Training and the bound go on to T; no density
        is carried from there (`last`), and no sampler steps from α = 0 (`start`), where f, g² and ln σ/α are infinite.
        """
        return self.alpha(t) < SMALLEST_ALPHA

    def _finite(self, t: Tensor) -> Tensor:
        """t; ValueError where log SNR(t) = −∞."""
        if self.alpha(t) == 0:
            raise ValueError(
                f"steps: {self.steps}; x_t holds no data from t = {t:g} on, too soon to start there: raise steps"
            )
        return t

    @cached_property
    def last(self) -> Tensor:
        """The last index, of 2 … T, that is not `lost`: T, or T − 1 where α(T) = 0. ValueError as in `start`."""
        index = torch.arange(1, self.steps + 1, dtype=torch.float64)
        return self._finite((~self.lost(index)).sum().double().clamp(min=2))

    @cached_property
    def start(self) -> Tensor:
        """The last index at which σ/α ≤ `LARGEST_LEVEL`, where samplers start from noise; T where that is no larger.

        Beyond it x_t is noise to 4e-5 of its variance, but a step from there divides the network's error by α_T, which
        on `cosine` is 5e-5, and a method of second order interpolates over all of σ/α = 164 … 20 291. ValueError where
        T is so small that t = 2 has an infinite log SNR.
        """
        return self._finite(self.time_at(torch.tensor(LARGEST_LEVEL, dtype=torch.float64)).floor().clamp(min=2))

    def grid(self, steps: int) -> Tensor:
        """linspace(start, 1, S) and a 0: the times of a sampler with S = `steps` steps, evenly spaced; float64.

        Between 1 and `start`, where a network was trained. On VE, S levels from sigma_max to sigma_min, then clean data
        (Karras et al. 2022).
        """
        noisy = torch.linspace(float(self.start), 1, steps, dtype=torch.float64)
        return torch.cat([noisy, torch.zeros_like(noisy[:1])])

    def _inside(self, t: Tensor) -> Tensor:
        """t as float64; ValueError where it is none of this schedule's times."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.numel() and not (float(t.detach().min()) >= 0 and float(t.detach().max()) <= self.steps):
            raise ValueError(f"time {float(t.min()):g} … {float(t.max()):g}; it must lie in 0 … T = {self.steps}")
        return t

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The forward process in one step: x_t = α x0 + σ ε (Ho et al. 2020, eq. 4; 001, eq. 2.9)."""
        alpha, sigma = like(x0, self.alpha(t), self.sigma(t))
        return alpha * x0 + sigma * eps

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_t | x_s) = N(α_ts x_s, σ²_ts) for s < t: returns α_ts = α_t/α_s and σ²_ts = σ_t² − α²_ts σ_s².

        σ²_ts is β_t where s = t − 1 (Sedykh 2024, 001, eq. 2.3).
        """
        alpha_ts = self.alpha(t) / self.alpha(s)
        return alpha_ts, self.sigma(t) ** 2 - alpha_ts**2 * self.sigma(s) ** 2

    def posterior(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_s | x_t, x0) = N(A x0 + B x_t, β̃): returns A, B, β̃ (Ho et al. 2020, eqs. 6 and 7; 003, eq. 8).

        A = α_s σ²_ts / σ_t²,  B = α_ts σ_s² / σ_t²,  β̃ = σ²_ts σ_s² / σ_t².
        """
        alpha_ts, var_ts = self.transition(t, s)
        var_t, var_s = self.sigma(t) ** 2, self.sigma(s) ** 2
        return self.alpha(s) * var_ts / var_t, alpha_ts * var_s / var_t, var_ts * var_s / var_t

    def log_variances(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """log β̃ and log σ²_ts, the smallest and the largest sensible log-variance of p(x_s | x_t).

        β̃ vanishes at s = 0; below s = 1 it counts as at least β̃ of the step 2 → 1, so that the decoder p(x0 | x1)
        has a width (Nichol & Dhariwal 2021, section 3.1).
        """
        _, var_ts = self.transition(t, s)
        one = torch.ones((), dtype=torch.float64)
        floor, small = self.posterior(2 * one, one)[2], self.posterior(t, s)[2]
        return torch.where(s < 1, torch.maximum(small, floor), small).log(), var_ts.log()
