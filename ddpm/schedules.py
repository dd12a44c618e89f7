"""Noise schedules: α(t) and σ(t) with x_t = α(t) x0 + σ(t) ε.

A new one needs no more than the two (`ddpm.forward.Schedule`); these have closed forms of what follows from them.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch

from ddpm import terminal
from ddpm.forward import Schedule, distinct
from ddpm.forward import like as like
from ddpm.parameters import Fraction, Interval, Positive

Tensor = torch.Tensor
# Of one step of a discrete schedule.
Beta = Annotated[float, Interval(ge=1e-8, le=0.9999)]
# Of the sigmoid schedule: e³⁰⁰, at a temperature of 0.1, is a number.
Logit = Annotated[float, Interval(ge=-30, le=30)]


class VariancePreserving(Schedule):
    """α² + σ² = 1: the noise replaces the signal."""

    family = "VP"

    @property
    def prior_std(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def noise_std(self, t: Tensor) -> Tensor:
        """1, that of data of unit variance and noise together."""
        return self.prior_std

    def square(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def drift(self, t: Tensor) -> Tensor:
        """½ σ² d log SNR/dt, since d log SNR = 2 d ln α/σ² where α² + σ² = 1."""
        return 0.5 * self.sigma(t) ** 2 * self.slope(t)

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
    ordered = (("beta_first", "<=", "beta_last"),)
    beta_first: Beta = 1e-4
    beta_last: Beta = 0.02

    def check(self) -> None:
        if mistake := terminal.mistake("linear", vars(self), 0.0):
            raise ValueError(f"linear: {mistake}")

    def betas(self) -> Tensor:
        scale = 1000 / self.steps
        return torch.linspace(scale * self.beta_first, scale * self.beta_last, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(Discrete):
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), β_t clipped (Sedykh 2024, 001, eqs. 4.4–4.6).

    `offset` is s; `beta_max` clips β_t = 1 − ᾱ_t/ᾱ_{t−1} (Nichol & Dhariwal 2021).
    """

    method = "cosine"
    offset: Fraction = 0.008
    beta_max: Beta = 0.999

    def betas(self) -> Tensor:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        f = torch.cos((t + self.offset) / (1 + self.offset) * torch.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """The variance-preserving SDE dx = −½ β(u) x du + √β(u) dw, β(u) = β_min + u (β_max − β_min), u = t/T.

    α(u) = exp(−¼ u² (β_max − β_min) − ½ u β_min) (Song et al. 2021, eq. 33; 003, "SDE Formulation – Forward
    Process"), exact at every real t in [0, T]. With the defaults it is the limit of the linear schedule for T → ∞.
    """

    method = "vp-sde"
    ordered = (("beta_min", "<=", "beta_max"),)
    beta_min: Positive = 0.1
    beta_max: Annotated[float, Interval(ge=1e-8, le=1000)] = 20.0

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
        level = torch.as_tensor(level, dtype=torch.float64)
        target = (0.5 * level.square().log1p()).clamp(max=1e6)  # far beyond T, and a number
        u = 4 * target / (self.beta_min + (self.beta_min**2 + 4 * (self.beta_max - self.beta_min) * target).sqrt())
        return self.steps * u.clamp(max=1)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """α = 1 and σ from `sigma_min` at t = 1 to `sigma_max` at t = T; between 0 and 1, σ = t sigma_min."""

    family = "VE"
    ordered = (("sigma_min", "<", "sigma_max"),)
    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0

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

    @property
    def start(self) -> Tensor:
        """T, whose σ_max is a parameter."""
        return torch.tensor(self.steps, dtype=torch.float64)

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


@dataclass(frozen=True)
class Geometric(VarianceExploding):
    """σ = σ_min (σ_max/σ_min)^u, the geometric noise levels of NCSN (Song & Ermon 2019; 001, section 3.3)."""

    method = "geometric"

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        ratio = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * (ratio * u).exp()
        return sigma, ratio * sigma

    def place(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Karras(VarianceExploding):
    """σ = (σ_min^{1/ρ} + u (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ, the noise levels of Karras et al. 2022, eq. 5 (003)."""

    method = "karras"
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Annotated[float, Interval(ge=1)] = 7.0

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._roots()
        root = low + u * (high - low)
        return root**self.rho, self.rho * root ** (self.rho - 1) * (high - low)

    def place(self, sigma: Tensor) -> Tensor:
        low, high = self._roots()
        return (sigma ** (1 / self.rho) - low) / (high - low)


# ---- continuous schedules that end in noise alone ---------------------------------------------------------------


@dataclass(frozen=True)
class Shifted(Schedule):
    """α = a/‖(a, s)‖ and σ = s/‖(a, s)‖ of a curve a(u), s(u), u = t/T, to noise alone, a(1) = 0, at every real t.

    `shift` multiplies every noise level σ/α, so that it adds −2 ln `shift` to log SNR: the more pixels an image has,
    the more noise it takes to hide it. Hoogeboom et al. 2023 shift by d/64 for d × d pixels, Esser et al. 2024 by
    √(m/n) for m pixels instead of n, and to scale x0 by b (Chen 2023) is to shift by 1/b.
    """

    shift: Positive = 1.0

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """a(u) and s(u), neither negative, of which s/a is the unshifted σ/α."""
        raise NotImplementedError

    def place(self, level: Tensor) -> Tensor:
        """u of an unshifted σ/α, which may be infinite: the inverse of s/a."""
        raise NotImplementedError

    def size(self, a: Tensor, s: Tensor) -> Tensor:
        """‖(a, s)‖: the Euclidean norm, so that α² + σ² = 1."""
        return torch.hypot(a, s)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, s = self.curve(self._inside(t) / self.steps)
        size = self.size(a, self.shift * s)
        return a / size, self.shift * s / size

    def alpha(self, t: Tensor) -> Tensor:
        return self._scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self._scales(t)[1]

    def time_at(self, level: Tensor) -> Tensor:
        return self.steps * self.place(torch.as_tensor(level, dtype=torch.float64) / self.shift).clamp(0, 1)

    def grid(self, steps: int) -> Tensor:
        """start · i/S for i = S … 0: evenly spaced, and not rounded."""
        return self.start * torch.arange(steps, -1, -1, dtype=torch.float64) / steps


@dataclass(frozen=True)
class Flow(Shifted):
    """α = 1 − u, σ = u: the straight paths of flow matching and rectified flow (Lipman et al. 2023; Liu et al. 2023,
    eq. 1), where dx/du = ε − x0, the target `flow`.

    With `shift` k, u is replaced by k u/(1 + (k − 1) u) (Esser et al. 2024, eq. 23).
    """

    method = "flow"

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - u, u

    def place(self, level: Tensor) -> Tensor:
        return 1 / (1 + 1 / level)

    def size(self, a: Tensor, s: Tensor) -> Tensor:
        """a + s, so that α + σ = 1."""
        return a + s


@dataclass(frozen=True)
class ShiftedCosine(Shifted, VariancePreserving):
    """σ/α = k tan(π u/2), k = `shift`: the cosine schedule in continuous time, moved along log SNR (Hoogeboom et al.
    2023, "Adjusting Noise Schedules")."""

    method = "shifted-cosine"

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin((1 - u) * torch.pi / 2), torch.sin(u * torch.pi / 2)

    def place(self, level: Tensor) -> Tensor:
        return level.atan() * 2 / torch.pi


@dataclass(frozen=True)
class Sigmoid(Shifted, VariancePreserving):
    """α² = (S(b) − S(x))/(S(b) − S(a)), S(x) = 1/(1 + e^{−x}), with x linear in u, from a = `logit_first`/τ at 0 to
    b = `logit_last`/τ at 1; τ is `temperature` (Jabri et al. 2023; Chen 2023).

    With S(x) − S(a) = sinh((x − a)/2)/(2 cosh(x/2) cosh(a/2)), in which nothing cancels,

        σ²/α² = sinh((x − a)/2) cosh(b/2)/(sinh((b − x)/2) cosh(a/2)).
    """

    method = "sigmoid"
    ordered = (("logit_first", "<", "logit_last"),)
    logit_first: Logit = -3.0
    logit_last: Logit = 3.0
    temperature: Annotated[float, Interval(ge=0.1)] = 1.0

    def _ends(self) -> tuple[float, float]:
        return self.logit_first / self.temperature, self.logit_last / self.temperature

    def curve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._ends()
        half = (b - a) / 2
        left, passed = torch.sinh((1 - u) * half), torch.sinh(u * half)
        return (left * math.cosh(a / 2)).sqrt(), (passed * math.cosh(b / 2)).sqrt()

    def place(self, level: Tensor) -> Tensor:
        """2 h u = ln (1 + R eʰ)/(1 + R e⁻ʰ), h = (b − a)/2, where the level gives R = sinh(h u)/sinh(h (1 − u))."""
        a, b = self._ends()
        half = (b - a) / 2
        ratio = (level**2 * (math.cosh(a / 2) / math.cosh(b / 2))).clamp(max=1e150)  # far beyond T, and a number
        return ((ratio * math.exp(half)).log1p() - (ratio * math.exp(-half)).log1p()) / (2 * half)
