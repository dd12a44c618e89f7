"""From noise to images: every sampler is one `step` from x_t to x_s, s < t, on a grid of times."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch

from ddpm import probability_flow
from ddpm.bound import reverse_log_variance
from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.methods import Method, Requirement
from ddpm.parameters import Count, Fraction, Interval, NonNegative, Tolerance, Unbounded
from ddpm.schedules import Schedule, distinct, like

Tensor = torch.Tensor
Noise = Callable[[], Tensor]
# Of Langevin dynamics, in units of the data squared.
StepSize = Annotated[float, Interval(ge=1e-12)]


@dataclass(frozen=True)
class Sampler(Method):
    """`steps` is S, the number of steps; the grid of times is independent of the training's T.

    `spacing` of the times: `uniform` (the schedule's own `grid`), `quadratic`, τ_i = start (i/S)², rounded (Song, Meng
    & Ermon 2021, appendix D.2), or `karras`, σ/α = (ς_1^{1/7} + u (ς_start^{1/7} − ς_1^{1/7}))^7 with S even steps in u
    from 1 to 0, and then 0 (Karras et al. 2022, eq. 5). The schedule's `start` is T, or a little before it.

    The last step, to clean data, is x̂0 = E[x0 | x_t] (Tweedie's formula) in every sampler but Langevin dynamics.
    """

    requires: ClassVar[tuple[Requirement, ...]] = (
        ("objective", "variance", "fixed", "this sampler sets its own variance: the learned one would not be used"),
    )
    steps: Count = 50
    spacing: Literal["uniform", "quadratic", "karras"] = "uniform"

    def times(self, schedule: Schedule) -> Tensor:
        """start = τ_S > … > τ_0 = 0, float64, shape (S + 1,). ValueError where τ_S has no signal at all, α = 0."""
        if self.steps > schedule.steps:
            raise ValueError(f"steps: {self.steps} is more than the schedule's T = {schedule.steps}")
        times = self._spaced(schedule)
        if schedule.alpha(times[0]) == 0:
            raise ValueError(
                f"steps: {self.steps}; as many whole times reach to t = {times[0]:g}, where x_t holds no data to step "
                f"from: it must be at most {schedule.last:g}"
            )
        return times

    def _spaced(self, schedule: Schedule) -> Tensor:
        if self.spacing == "quadratic":
            index = torch.arange(self.steps, -1, -1, dtype=torch.float64)
            return distinct(schedule.start * index**2 / self.steps**2)
        if self.spacing == "karras":
            one = torch.ones((), dtype=torch.float64)
            first, last = (schedule.level(t) ** (1 / 7) for t in (one, schedule.start))
            u = torch.linspace(1, 0, self.steps, dtype=torch.float64)
            inner = schedule.time_at((first + u * (last - first)) ** 7)
            inner[-1], inner[0] = 1, schedule.start  # exactly, however the powers are rounded
            return torch.cat([inner, torch.zeros_like(inner[:1])])
        return schedule.grid(self.steps)

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """x_s from x_t; t and s are scalars, `noise()` gives a fresh z ~ N(0, I) of x_t's shape."""
        raise NotImplementedError

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        """x after every step, from x_T = `x`."""
        for t, s in pairwise(self.times(denoiser.schedule)):
            x = self.step(denoiser, x, t, s, condition, noise)
            yield x


# ---- chains -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s = A x̂0 + B x_t + √Σ z, the reverse chain p(x_s | x_t) (000, "Update Rules"; Ho et al. 2020, algorithm 2).

    `variance` is Σ where the network learns none: `small` = β̃, or `large` = σ²_ts (β_t at full length; σ̂² of 001's
    figure 4.2). A learned variance replaces it. The last step returns the mean: z = 0 at s = 0.
    """

    method = "ancestral"
    requires = ()
    steps: Count = 100
    variance: Literal["small", "large"] = "small"

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        prediction = denoiser(x_t, t, condition)
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
    eta: Fraction = 0.0

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        schedule, prediction = denoiser.schedule, denoiser(x_t, t, condition)
        var = self.eta**2 * schedule.posterior(t, s)[2]
        alpha, direction, std = like(
            x_t, schedule.alpha(s), (schedule.sigma(s) ** 2 - var).clamp(min=0).sqrt(), var.sqrt()
        )
        x_s = alpha * prediction.x0 + direction * prediction.eps
        return x_s + std * noise() if self.eta > 0 and s > 0 else x_s


# ---- Langevin dynamics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainLangevin(Sampler):
    """x ← x + ε/2 s_θ(x) + √ε z at the smallest noise level, S times (001, eq. 3.15).

    `step_size` is ε, in units of the data squared; with 4 (c² + σ²) or more, where c² is the data's variance in its
    narrowest direction, x grows without bound. It keeps to the modes that it starts near (001, figure 3.2).
    """

    method = "plain-langevin"
    uses = {"spacing": ""}
    step_size: StepSize = 2e-5

    def times(self, schedule: Schedule) -> Tensor:
        """t = 1, S + 1 times."""
        return torch.ones(self.steps + 1, dtype=torch.float64)

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        size = torch.tensor(self.step_size, dtype=torch.float64)
        from_eps, std = like(x_t, -0.5 * size / denoiser.schedule.sigma(t), size.sqrt())
        return x_t + from_eps * denoiser(x_t, t, condition).eps + std * noise()


@dataclass(frozen=True)
class Langevin(Sampler):
    """Annealed Langevin dynamics (001, algorithm 3; Song & Ermon 2019): at every level σ_i, `corrections` times

        x ← x + α_i/2 s_θ(x, σ_i) + √α_i z,    α_i = ε σ_i²/σ_L².

    `steps` is the number of levels L, `step_size` is ε, in units of the data squared, σ_L the smallest level. The
    defaults are those of Song & Ermon for σ_L = 0.01; with ε ≥ 4 σ_L² x may grow without bound.
    """

    method = "langevin"
    requires = (
        ("objective", "variance", "fixed", "this sampler sets its own variance: the learned one would not be used"),
        ("schedule", "family", "VE", "annealed Langevin dynamics walks through levels with α = 1 (VE schedules)"),
    )
    corrections: Count = 100
    step_size: StepSize = 2e-5

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        sigma, smallest = denoiser.schedule.sigma(t), denoiser.schedule.sigma(torch.ones_like(t))
        size = self.step_size * (sigma / smallest) ** 2
        from_eps, std = like(x_t, -0.5 * size / sigma, size.sqrt())
        for _ in range(self.corrections):
            x_t = x_t + from_eps * denoiser(x_t, t, condition).eps + std * noise()
        return x_t


# ---- the reverse SDE ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """The reverse SDE dx = [f x − g² ∇ log p] dt + g dw̄ (003, "SDE Formulation - Backward Process"), by Euler's method:

        x_s = x_t − (t − s) [f x_t − g² s_θ(x_t)] + g √(t − s) z,

    f and g² taken at t. The last step is x̂0: Euler's, where all of σ is one step, would turn σ ε into −σ ε on VE.
    """

    method = "euler-maruyama"

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        schedule, h = denoiser.schedule, t - s
        f, g2 = schedule.drift(t), schedule.diffusion(t)
        from_x, from_eps, std = like(x_t, 1 - h * f, -h * g2 / schedule.sigma(t), (h * g2).sqrt())
        prediction = denoiser(x_t, t, condition)
        return prediction.x0 if s == 0 else from_x * x_t + from_eps * prediction.eps + std * noise()


@dataclass(frozen=True)
class PredictorCorrector(EulerMaruyama):
    """A step of the reverse SDE, then `corrections` Langevin steps at its end (Song et al. 2021, section 4.2):

        x ← x + ε s_θ(x) + √(2ε) z,    ε = 2 (α_ts r σ_s)².

    `snr` is r, the signal-to-noise ratio of a correction. This is Song et al.'s corrector for noise alone: they set
    ε = 2 (α_ts r ‖z‖/‖s_θ(x)‖)², and ‖z‖/‖s_θ‖ is σ_s where x_s is noise, but the larger √(α_s² c² + σ_s²) on Gaussian
    data of standard deviation c. At low noise theirs moves x further: c/σ_s times at r σ_s ≪ c. It is not used here,
    because an image's own norms tie its step to where it lies, which widens the law however many steps are taken (on
    exact Gaussians by 9 % in 64 dimensions, to tenfold in 2), and a batch's mean norms would tie an image to the
    others of its batch.
    """

    method = "predictor-corrector"
    corrections: Count = 1
    snr: NonNegative = 0.16

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        x = super().step(denoiser, x_t, t, s, condition, noise)
        if s == 0:
            return x
        sigma = denoiser.schedule.sigma(s)
        size = 2 * (denoiser.schedule.transition(t, s)[0] * self.snr * sigma) ** 2
        from_eps, std = like(x, -size / sigma, (2 * size).sqrt())
        for _ in range(self.corrections):
            x = x + from_eps * denoiser(x, s, condition).eps + std * noise()
        return x


# ---- the probability-flow ODE -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EulerODE(Sampler):
    """The probability-flow ODE dx = [f x − ½ g² ∇ log p] dt (003, "SDE Formulation - Backward Process"; 004, section
    12.3.2), by Euler's method in t:

        x_s = x_t − (t − s) [f x_t − ½ g² s_θ(x_t)].

    DDIM with η = 0 is Euler's method for the same equation in σ/α, d(x/α)/d(σ/α) = ε̂. In t it needs more steps where
    σ grows by orders of magnitude: on VE, 50 steps lose 60 % of the variance of Gaussian data, 250 lose 16 %. On `flow`
    without a shift both are the step of rectified flow, x_s = x_t + (s − t)/T (ε̂ − x̂0).
    """

    method = "ode-euler"
    steps: Count = 250

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        schedule, h = denoiser.schedule, t - s
        from_x, from_eps = 1 - h * schedule.drift(t), -0.5 * h * schedule.diffusion(t) / schedule.sigma(t)
        from_x, from_eps = like(x_t, from_x, from_eps)
        prediction = denoiser(x_t, t, condition)
        return prediction.x0 if s == 0 else from_x * x_t + from_eps * prediction.eps


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method, of second order: an Euler step from t to s, then again with the mean of the slopes at both ends.

    On VE, EDM's sampler (003, "EDM"; Karras et al. 2022, algorithm 2): d(x/α)/dς = ε̂ with ς = σ/α. On all others, whose
    z = x/r, r = √(α² + σ²), turns from noise to data by the angle φ = arctan ς, in that angle (Salimans & Ho 2022,
    appendix D, where r = 1):

        z_s = cos(φ_t − φ_s) z_t − sin(φ_t − φ_s) d,    d = cos φ_t ε̂ − sin φ_t x̂0,

    of which d is the slope dz/dφ at t, and the mean of what it is by x̂0 and ε̂ at t and at s. One step covers any angle:
    from noise (ς = 160 at the start of `cosine`) to ς = 5 the mean of ε̂ at both ends, times the 155 that ς falls by,
    would miss x by more than its size; the mean of d errs by no more than x̂0 does. The last step, to s = 0, is x̂0.

    Before a step, `churn` (S_churn) raises ς_t by the factor 1 + min(S_churn/S, √2 − 1) where it lies between
    `churn_min` and `churn_max`, with noise of standard deviation `churn_noise` (S_noise); never above the first ς.
    """

    method = "heun"
    ordered = (("churn_min", "<=", "churn_max"),)
    uses = {"churn_min": "churn", "churn_max": "churn", "churn_noise": "churn"}
    churn: NonNegative = 0.0
    churn_min: NonNegative = 0.0
    churn_max: Annotated[Unbounded, Interval(ge=0)] = math.inf
    churn_noise: NonNegative = 1.0

    def raised(self, schedule: Schedule, x_t: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x at the raised noise level, and its time."""
        level = schedule.level(t)
        if not (self.churn > 0 and self.churn_min <= level <= self.churn_max):
            return x_t, t
        higher = schedule.time_at(level * (1 + min(self.churn / self.steps, 2**0.5 - 1)))
        higher = torch.minimum(higher, torch.maximum(schedule.start, t))
        alpha, extra = schedule.alpha(higher), (schedule.level(higher) ** 2 - level**2).clamp(min=0).sqrt()
        grow, std = like(x_t, alpha / schedule.alpha(t), alpha * self.churn_noise * extra)
        return grow * x_t + std * noise(), higher

    @staticmethod
    def coordinate(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b, from_x, from_d: x_s = from_x x_t + from_d d with d = a ε̂ − b x̂0, exact for constant x̂0 and ε̂.

        In the angle, with a = α_t = r_t cos φ_t and b = σ_t = r_t sin φ_t, both factors are r_s/r_t times the cosine or
        sine of the difference, over r_t where d is.
        """
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
        if schedule.family == "VE":
            return torch.ones_like(t), torch.zeros_like(t), torch.ones_like(t), sigma_s - sigma_t
        square = schedule.square(t)
        from_x, from_d = alpha_s * alpha_t + sigma_s * sigma_t, sigma_s * alpha_t - alpha_s * sigma_t
        return alpha_t, sigma_t, from_x / square, from_d / square

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        x_t, t = self.raised(denoiser.schedule, x_t, t, noise)
        now = denoiser(x_t, t, condition)
        if s == 0:
            return now.x0
        a, b, from_x, from_d = like(x_t, *self.coordinate(denoiser.schedule, t, s))
        slope = a * now.eps - b * now.x0
        then = denoiser(from_x * x_t + from_d * slope, s, condition)
        return from_x * x_t + from_d * (slope + a * then.eps - b * then.x0) / 2


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), the exponential integrator of second order in x̂0:

        x_s = σ_s/σ_t x_t − α_s (e^{−h} − 1) D,    D = x̂0 + (x̂0 − x̂0′)/(2r),    h = λ_s − λ_t,    r = h′/h,

    with λ = log(α/σ), and x̂0′ and h′ of the step before. The first step and the last, to σ = 0, have D = x̂0.
    """

    method = "dpm-solver++"

    @staticmethod
    def advance(schedule: Schedule, x_t: Tensor, d: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s; −α_s (e^{−h} − 1) = α_s − α_t σ_s/σ_t stays finite at σ_s = 0."""
        ratio = schedule.sigma(s) / schedule.sigma(t)
        from_x, from_d = like(x_t, ratio, schedule.alpha(s) - ratio * schedule.alpha(t))
        return from_x * x_t + from_d * d

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        schedule = denoiser.schedule
        before: tuple[Tensor, Tensor] | None = None  # x̂0 and h of the step before
        for t, s in pairwise(self.times(schedule)):
            x0, h = denoiser(x, t, condition).x0, 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
            d = x0
            if before is not None and s > 0:
                x0_before, h_before = before
                (share,) = like(x, 0.5 * h / h_before)
                d = x0 + share * (x0 - x0_before)
            x = self.advance(schedule, x, d, t, s)
            before = x0, h
            yield x


@dataclass(frozen=True)
class AdaptiveODE(Sampler):
    """The probability-flow ODE by Dormand and Prince's adaptive method of order 5, then x̂0 at t = 1
    (`ddpm.probability_flow`).

    `steps` counts the times at which the solution is reported; the solver takes as many as `rtol` and `atol` ask for,
    judging the errors of one batch together.
    """

    method = "ode-adaptive"
    uses = {"spacing": ""}
    steps: Annotated[int, Interval(ge=2)] = 10
    rtol: Tolerance = 1e-4
    atol: Tolerance = 1e-4

    def times(self, schedule: Schedule) -> Tensor:
        """linspace(start, 1, S) and a 0."""
        noisy = torch.linspace(float(schedule.start), 1, self.steps, dtype=torch.float64)
        return torch.cat([noisy, torch.zeros_like(noisy[:1])])

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        times = self.times(denoiser.schedule)
        x_1 = x
        for x_1 in probability_flow.solve(denoiser, x, times[:-1], condition, self.rtol, self.atol):
            yield x_1
        yield denoiser(x_1, times[-2], condition).x0
