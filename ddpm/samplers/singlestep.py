"""Samplers whose step from x_t to x_s asks for x_t alone: chains, Langevin dynamics, the reverse SDE and the ODE."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch

from ddpm import probability_flow
from ddpm.bound import reverse_log_variance
from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.parameters import Count, Fraction, Interval, NonNegative, Positive, Tolerance, Unbounded
from ddpm.samplers.sampler import Noise, Sampler, karras_times
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor
# Of Langevin dynamics, in units of the data squared.
StepSize = Annotated[float, Interval(ge=1e-12)]


# ---- chains -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ancestral(Sampler):
    """x_s = A x̂0 + B x_t + √Σ z, the reverse chain p(x_s | x_t) (Ho et al. 2020, algorithm 2; 000, "Update Rules").

    A and B are those of q(x_s | x_t, x0), `Schedule.posterior`. `variance` is Σ where the network learns none: `small`
    = β̃, or `large` = σ²_ts (β_t at full length; σ̂² of Song, Meng & Ermon 2021, table 1). A learned variance replaces
    it. The last step returns the mean: z = 0 at s = 0.
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
    """x ← x + ε/2 s_θ(x) + √ε z at the smallest noise level, S times (Sedykh 2024, 001, eq. 3.15).

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
    """Annealed Langevin dynamics (Song & Ermon 2019; 001, algorithm 3): at every noise level σ_i, `corrections` times

        x ← x + α_i/2 s_θ(x, σ_i) + √α_i z,    α_i = ε σ_i²/σ_L².

    `steps` is the number of noise levels L, `step_size` is ε, in units of the data squared, σ_L the smallest.
    The defaults are those of Song & Ermon for σ_L = 0.01; with ε ≥ 4 σ_L² x may grow without bound.
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
    """The reverse SDE dx = [f x − g² ∇ log p] dt + g dw̄ (Song et al. 2021, eq. 6; 003), by Euler's method:

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
    because an image's own norms tie its step to where it lies, which widens the distribution however many steps are
    taken (on exact Gaussians by 9 % in 64 dimensions, to tenfold in 2), and a batch's mean norms would tie an image to
    the others of its batch.
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
    """The probability-flow ODE dx = [f x − ½ g² ∇ log p] dt (Shariatian & Conforti 2025, 003, "SDE Formulation -
    Backward Process"; Chen & Yi, 004, section 12.3.2), by Euler's method in t:

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


def noisier(schedule: Schedule, x_t: Tensor, t: Tensor, higher: Tensor, noise: Noise, scale: float = 1.0) -> Tensor:
    """x at the time `higher` ≥ t by the forward process: x/α and noise of the variance scale² (ς_higher² − ς_t²)."""
    alpha = schedule.alpha(higher)
    extra = (schedule.level(higher) ** 2 - schedule.level(t) ** 2).clamp(min=0).sqrt()
    grow, std = like(x_t, alpha / schedule.alpha(t), alpha * scale * extra)
    return grow * x_t + std * noise()


def coordinate(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, from_x, from_d: x_s = from_x x_t + from_d d with d = a ε̂ − b x̂0, exact for constant x̂0 and ε̂ (`Heun`).

    In the angle, with a = α_t = r_t cos φ_t and b = σ_t = r_t sin φ_t, both factors are r_s/r_t times the cosine or
    sine of the difference, over r_t where d is.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    if schedule.family == "VE":
        return torch.ones_like(t), torch.zeros_like(t), torch.ones_like(t), sigma_s - sigma_t
    square = schedule.square(t)
    from_x, from_d = alpha_s * alpha_t + sigma_s * sigma_t, sigma_s * alpha_t - alpha_s * sigma_t
    return alpha_t, sigma_t, from_x / square, from_d / square


def heun(denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """x_s by Heun's method (`Heun`); x̂0 at s = 0."""
    now = denoiser(x_t, t, condition)
    if s == 0:
        return now.x0
    a, b, from_x, from_d = like(x_t, *coordinate(denoiser.schedule, t, s))
    slope = a * now.eps - b * now.x0
    then = denoiser(from_x * x_t + from_d * slope, s, condition)
    return from_x * x_t + from_d * (slope + a * then.eps - b * then.x0) / 2


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method, of second order: an Euler step from t to s, then again with the mean of the slopes at both ends.

    On VE, EDM's sampler (Karras et al. 2022, algorithm 2; 003, "EDM"): d(x/α)/dς = ε̂ with ς = σ/α. On all others, whose
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
        return noisier(schedule, x_t, t, higher, noise, self.churn_noise), higher

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        x_t, t = self.raised(denoiser.schedule, x_t, t, noise)
        return heun(denoiser, x_t, t, s, condition)


@dataclass(frozen=True)
class Restart(Sampler):
    """Heun's method, and at σ/α = `level_min`, `restarts` (K) times, back to `level_max` by the forward process, from
    where `restart_steps` Heun steps, at `karras_times`, lead down again (Xu et al. 2023, algorithm 1).

    The noise of the way up shrinks the errors of earlier steps; the way down, an ODE's, adds few. Of the S + 1 times,
    the one next to `level_min` is put there. With S = 18, K = 4 and three steps, there are 35 + 24 evaluations.
    """

    method = "restart"
    ordered = (("level_min", "<", "level_max"),)
    steps: Annotated[int, Interval(ge=2)] = 18
    restarts: Count = 4
    restart_steps: Count = 3
    level_min: Positive = 0.06
    level_max: Positive = 0.3

    def times(self, schedule: Schedule) -> Tensor:
        """The times of the spacing, the one next to `level_min` in log σ/α, the first and 0 aside, put there."""
        times, low = super().times(schedule), self.low(schedule)
        if low >= times[0]:
            top = float(schedule.level(times[0]))
            raise ValueError(f"level_min: {self.level_min:g}; it must be below {top:g}, the σ/α where samples begin")
        distance = (schedule.level(times[1:-1]) / self.level_min).log().abs()
        return times.index_fill(0, 1 + distance.argmin(), float(low))

    def low(self, schedule: Schedule) -> Tensor:
        """The time of `level_min`."""
        return schedule.time_at(torch.tensor(self.level_min, dtype=torch.float64))

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        schedule, times = denoiser.schedule, self.times(denoiser.schedule)
        high = torch.minimum(schedule.time_at(torch.tensor(self.level_max, dtype=torch.float64)), times[0])
        low = self.low(schedule)
        again = karras_times(schedule, high, low, self.restart_steps + 1)
        for t, s in pairwise(times):
            x = heun(denoiser, x, t, s, condition)
            for _ in range(self.restarts if s == low else 0):
                x = noisier(schedule, x, low, high, noise)
                for after, before in pairwise(again):
                    x = heun(denoiser, x, after, before, condition)
            yield x


@dataclass(frozen=True)
class AdaptiveODE(Sampler):
    """The probability-flow ODE by Dormand and Prince's adaptive method of order 5, then x̂0 at t = 1
    (`ddpm.probability_flow`).

    `steps` counts the times at which the solution is reported; the solver takes as many as `rtol` and `atol` ask for,
    judging the errors of one batch together.
    """

    method = "ode-adaptive"
    requires = (
        ("objective", "variance", "fixed", "this sampler sets its own variance: the learned one would not be used"),
        ("guidance", "continuous", True, "an adaptive solver cannot bound its error where guidance jumps with time"),
    )
    uses = {"spacing": ""}
    adaptive = True
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
