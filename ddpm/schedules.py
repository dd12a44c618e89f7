"""Noise schedules: α(t) and σ(t) with x_t = α(t) x0 + σ(t) ε.

Index 0 is clean data, T is noise. Times and everything that depends on the schedule alone are float64
tensors on the CPU, of any shape; `like` moves the finished coefficients to the images' device and type.
Give times a shape that broadcasts against the images: () for one time, (B, 1, 1, 1) for one per image.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from ddpm import terminal
from ddpm.methods import Method

Tensor = torch.Tensor


# Samplers on VP start at log SNR = −10.2 where a schedule goes further, unless they take more steps than that leaves.
# λ = log α/σ = −5.1 is where Lu et al. 2022 cut off the cosine schedule; `linear` ends at −5.06.
LARGEST_LEVEL = math.exp(5.1)
LARGEST_LOG_SNR = 30.0


def distinct(times: Tensor) -> Tensor:
    """The S + 1 falling times rounded to whole indices, each at least one above the next: float64, the last 0."""
    index = torch.arange(len(times) - 1, -1, -1, dtype=torch.float64)
    return torch.maximum(times.round(), index)


def like(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients in the type and on the device of `x`; a single time stays a CPU scalar."""
    return tuple(c.to(x.dtype) if c.ndim == 0 else c.to(x.device, x.dtype, non_blocking=True) for c in coefficients)


@dataclass(frozen=True)
class Schedule(Method):
    """A pair α(t), σ(t); everything else follows from it.

    `steps` is T, the number of diffusion steps that a network is trained on. α(0) = 1 and σ(0) = 0, so
    the last step of a sampler needs no special case.
    """

    # VP (α² + σ² = 1) or VE (α = 1): what a method that works on one of them only asks for.
    family: ClassVar[str] = ""
    limits = {"steps": (2, 1000000)}
    steps: int = 1000

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t), without unit."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t), in units of the data."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """log SNR(t) = log α²/σ², what every network is conditioned on; +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def condition(self, t: Tensor, x_t: Tensor) -> Tensor:
        """What a network is told of the noise: log SNR(t) for every image of x_t, (B,), within ±`LARGEST_LOG_SNR`.

        t is a scalar or (B, 1, …). A schedule whose α or σ vanishes at an end has an infinite log SNR there.
        """
        log_snr = self.log_snr(t).clamp(-LARGEST_LOG_SNR, LARGEST_LOG_SNR)
        return log_snr.flatten().expand(len(x_t)).to(x_t.device, x_t.dtype)

    def level(self, t: Tensor) -> Tensor:
        """ς(t) = σ/α = SNR^−½, the noise level of x_t/α, in units of the data; 0 at t = 0."""
        return self.sigma(t) / self.alpha(t)

    def time_at(self, level: Tensor) -> Tensor:
        """The time t in [0, T] at which σ/α = `level`: the inverse of `level`; T for larger ones."""
        raise NotImplementedError

    def slope(self, t: Tensor) -> Tensor:
        """d log SNR/dt, negative, per unit of t."""
        raise NotImplementedError

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d ln α/dt of the forward SDE dx = f x dt + g dw (003, "SDE Formulation"), per unit of t."""
        raise NotImplementedError

    def diffusion(self, t: Tensor) -> Tensor:
        """g²(t) = dσ²/dt − 2 f σ² = −σ² d log SNR/dt, per unit of t."""
        return -(self.sigma(t) ** 2) * self.slope(t)

    @property
    def prior_std(self) -> Tensor:
        """The standard deviation of the prior p(x_T) = N(0, prior_std² I): 1 for VP, σ(T) for VE."""
        raise NotImplementedError

    @property
    def start(self) -> Tensor:
        """The time at which samplers start from the prior: T, or a little before it (`VariancePreserving.start`)."""
        return torch.tensor(self.steps, dtype=torch.float64)

    def grid(self, steps: int) -> Tensor:
        """`start` = τ_S > … > τ_0 = 0: the times of a sampler with S = `steps` steps, evenly spaced; float64."""
        raise NotImplementedError

    def _inside(self, t: Tensor) -> Tensor:
        """t as float64; ValueError where it is none of this schedule's times."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.numel() and not (float(t.min()) >= 0 and float(t.max()) <= self.steps):
            raise ValueError(f"time {float(t.min()):g} … {float(t.max()):g}; it must lie in 0 … T = {self.steps}")
        return t

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The forward process in one step: x_t = α x0 + σ ε (000, "Forward process"; 001, eq. 2.9)."""
        alpha, sigma = like(x0, self.alpha(t), self.sigma(t))
        return alpha * x0 + sigma * eps

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_t | x_s) = N(α_ts x_s, σ²_ts) for s < t: returns α_ts = α_t/α_s and σ²_ts = σ_t² − α²_ts σ_s².

        σ²_ts is β_t where s = t − 1 (001, eq. 2.3).
        """
        alpha_ts = self.alpha(t) / self.alpha(s)
        return alpha_ts, self.sigma(t) ** 2 - alpha_ts**2 * self.sigma(s) ** 2

    def posterior(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_s | x_t, x0) = N(A x0 + B x_t, β̃): returns A, B, β̃ (000, µ_q and Σ_q; 003, eq. 8).

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


class VariancePreserving(Schedule):
    """α² + σ² = 1: the noise replaces the signal."""

    family = "VP"

    @property
    def prior_std(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def drift(self, t: Tensor) -> Tensor:
        """½ σ² d log SNR/dt, since d log SNR = 2 d ln α/σ² where α² + σ² = 1."""
        return 0.5 * self.sigma(t) ** 2 * self.slope(t)

    @cached_property
    def start(self) -> Tensor:
        """The last index at which σ/α ≤ `LARGEST_LEVEL`; T where that is no larger, as on `linear` and `vp-sde`.

        Beyond it x_t is the prior to 4e-5 of its variance, but a step from there divides the network's error by α_T,
        which on `cosine` is 5e-5, and a method of second order interpolates over all of σ/α = 164 … 20 291.
        """
        return self.time_at(torch.tensor(LARGEST_LEVEL, dtype=torch.float64)).floor().clamp(min=2)

    def grid(self, steps: int) -> Tensor:
        """round(start · i/S) for i = S … 0, a respaced chain of the T steps (Nichol & Dhariwal 2021, section 4).

        A chain of more steps than there are indices up to `start` takes the last of those beyond it too: S = T is the
        whole chain.
        """
        return distinct(self.start * torch.arange(steps, -1, -1, dtype=torch.float64) / steps)


class Discrete(VariancePreserving):
    """β_1 … β_T as a table, with α² = ᾱ_t = Π_{i ≤ t} (1 − β_i) (Ho et al. 2020; 001, section 2.1).

    Between two indices t ≥ 1, log SNR is linear in t, so that solvers that choose their own times have a
    schedule to follow; at the indices it is exact. Between 0 and 1, where log SNR is infinite, σ² is linear.
    """

    def betas(self) -> Tensor:
        """β_1 … β_T, the variance of the noise that each step adds; float64, shape (T,)."""
        raise NotImplementedError

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """ᾱ_0 … ᾱ_T and log SNR_0 … log SNR_T, its first infinite."""
        log_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas()).cumsum(0)])
        return log_bar.exp(), log_bar - (-torch.expm1(log_bar)).log()

    def _alpha_bar(self, t: Tensor) -> Tensor:
        t = self._inside(t)
        bar, log_snr = self._table
        below = t.long()
        part = t - below
        if not part.any():
            return bar[below]
        above = (below + 1).clamp(max=self.steps)
        inner = torch.sigmoid(torch.lerp(log_snr[below], log_snr[above], part))
        inner = torch.where(below == 0, 1 - part * (1 - bar[1]), inner)
        return torch.where(part == 0, bar[below], inner)

    def alpha(self, t: Tensor) -> Tensor:
        return self._alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._alpha_bar(t)).sqrt()

    def slope(self, t: Tensor) -> Tensor:
        """d log SNR/dt, to the left of t where t is an index: the direction that samplers go."""
        t = self._inside(t)
        above = t.ceil().long()
        log_snr = self._table[1]
        inner = log_snr[above.clamp(min=2)] - log_snr[above.clamp(min=2) - 1]
        # Below 1: σ² = t σ²_1, so d log SNR/dt = −1/(t (1 − t σ²_1)).
        first = -1 / (t * (1 - t * (1 - self._table[0][1])))
        return torch.where(above >= 2, inner, first)

    def time_at(self, level: Tensor) -> Tensor:
        level = torch.as_tensor(level, dtype=torch.float64)
        bar, log_snr = self._table
        wanted = -2 * level.log()
        # log SNR falls with t: the first index whose log SNR is not above the wanted one ends its interval.
        above = torch.searchsorted(-log_snr, -wanted).clamp(1, self.steps)
        start, end = log_snr[above - 1], log_snr[above]
        inner = above - 1 + ((wanted - start) / (end - start)).clamp(0, 1)
        first = level**2 / (1 + level**2) / (1 - bar[1])
        return torch.where(above == 1, first.clamp(max=1), inner)


@dataclass(frozen=True)
class Linear(Discrete):
    """β_t linear in t from `beta_first` to `beta_last`, both times 1000/T (Ho et al. 2020; 001, section 2.1).

    The ends are the paper's, for its T = 1000. With another T they are scaled as Nichol & Dhariwal 2021 scale them, so
    that the chain ends in the same noise: unscaled, T = 100 would leave ᾱ_T = 0.36.
    """

    method = "linear"
    limits = {"beta_first": (1e-8, 0.9999), "beta_last": (1e-8, 0.9999)}
    ordered = (("beta_first", "<=", "beta_last"),)
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def check(self) -> None:
        if mistake := terminal.mistake("linear", vars(self), 0.0):
            raise ValueError(f"linear: {mistake}")

    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        return torch.linspace(scale * self.beta_first, scale * self.beta_last, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(Discrete):
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), β_t clipped (001, eqs. 4.4–4.6).

    `offset` is s; `beta_max` clips β_t = 1 − ᾱ_t/ᾱ_{t−1} (Nichol & Dhariwal 2021).
    """

    method = "cosine"
    limits = {"offset": (0, 1), "beta_max": (1e-8, 0.9999)}
    offset: float = 0.008
    beta_max: float = 0.999

    def betas(self) -> Tensor:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        f = torch.cos((t + self.offset) / (1 + self.offset) * torch.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """The variance-preserving SDE dx = −½ β(u) x du + √β(u) dw, β(u) = β_min + u (β_max − β_min), u = t/T.

    α(u) = exp(−¼ u² (β_max − β_min) − ½ u β_min) (003, "SDE Formulation – Forward Process"; Song et al. 2021,
    eq. 33), exact at every real t in [0, T]. With the defaults it is the limit of the linear schedule for T → ∞.
    """

    method = "vp-sde"
    limits = {"beta_min": (1e-8, None), "beta_max": (1e-8, 1000)}
    ordered = (("beta_min", "<=", "beta_max"),)
    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        u = self._inside(t) / self.steps
        return -0.25 * u**2 * (self.beta_max - self.beta_min) - 0.5 * u * self.beta_min

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def slope(self, t: Tensor) -> Tensor:
        """−β(u)/σ² du/dt."""
        u = self._inside(t) / self.steps
        return -(self.beta_min + u * (self.beta_max - self.beta_min)) / (self.steps * self.sigma(t) ** 2)

    def time_at(self, level: Tensor) -> Tensor:
        """The root of ¼ u² (β_max − β_min) + ½ u β_min = −ln α = ½ ln(1 + level²), in a form that does not cancel."""
        target = 0.5 * torch.as_tensor(level, dtype=torch.float64).square().log1p()
        u = 4 * target / (self.beta_min + (self.beta_min**2 + 4 * (self.beta_max - self.beta_min) * target).sqrt())
        return self.steps * u.clamp(max=1)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """α = 1 and σ from `sigma_min` at t = 1 to `sigma_max` at t = T; between 0 and 1, σ = t sigma_min."""

    family = "VE"
    limits = {"sigma_min": (1e-8, None), "sigma_max": (1e-8, None)}
    ordered = (("sigma_min", "<", "sigma_max"),)
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """σ and dσ/du at u = (t − 1)/(T − 1) in [0, 1]."""
        raise NotImplementedError

    def place(self, sigma: Tensor) -> Tensor:
        """u of a σ: the inverse of `curve`."""
        raise NotImplementedError

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """σ and dσ/dt."""
        t = self._inside(t)
        sigma, rise = self.curve(((t - 1) / (self.steps - 1)).clamp(min=0))
        return torch.where(t >= 1, sigma, t * sigma), torch.where(t > 1, rise / (self.steps - 1), sigma)

    @property
    def prior_std(self) -> Tensor:
        return torch.tensor(self.sigma_max, dtype=torch.float64)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(self._inside(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self._curve(t)[0]

    def slope(self, t: Tensor) -> Tensor:
        """−2 d ln σ/dt."""
        sigma, rise = self._curve(t)
        return -2 * rise / sigma

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(self._inside(t))

    def time_at(self, level: Tensor) -> Tensor:
        level = torch.as_tensor(level, dtype=torch.float64)
        # Rounding may put the last level a little beyond u = 1, where there is no time.
        inner = 1 + (self.steps - 1) * self.place(level.clamp(self.sigma_min, self.sigma_max)).clamp(0, 1)
        return torch.where(level < self.sigma_min, level / self.sigma_min, inner)

    def grid(self, steps: int) -> Tensor:
        """linspace(T, 1, S) and a 0: S levels from sigma_max to sigma_min, then clean data (Karras et al. 2022)."""
        noisy = torch.linspace(self.steps, 1, steps, dtype=torch.float64)
        return torch.cat([noisy, torch.zeros_like(noisy[:1])])


@dataclass(frozen=True)
class Geometric(VarianceExploding):
    """σ = σ_min (σ_max/σ_min)^u, the geometric noise levels of NCSN (001, section 3.3; Song & Ermon 2019)."""

    method = "geometric"

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        ratio = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * (ratio * u).exp()
        return sigma, ratio * sigma

    def place(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Karras(VarianceExploding):
    """σ = (σ_min^{1/ρ} + u (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ, EDM's levels (003, "EDM"; Karras et al. 2022, eq. 5)."""

    method = "karras"
    limits = {"rho": (1, None)}
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._roots()
        root = low + u * (high - low)
        return root**self.rho, self.rho * root ** (self.rho - 1) * (high - low)

    def place(self, sigma: Tensor) -> Tensor:
        low, high = self._roots()
        return (sigma ** (1 / self.rho) - low) / (high - low)
