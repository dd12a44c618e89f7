"""Ancestral sampling and DDIM on data whose reverse process is known exactly."""

import math
import re
from collections.abc import Callable
from itertools import count, pairwise

import numpy as np
import pytest
import torch
from oracles import (
    EVERY,
    SCHEDULES,
    GaussianDenoiser,
    MixtureDenoiser,
    alpha_bar,
    betas,
    grid,
    last,
    make_objective,
    noises,
    randn,
    start,
    time,
)
from scipy import stats

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.samplers import DDIM, Ancestral, Heun, Sampler
from ddpm.schedules import VPSDE

Tensor = torch.Tensor
NAMES = list(SCHEDULES)
MEAN, STD = 0.3, 0.5
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
# Wide enough that clipping x̂0 to [−1, 1] matters.
WIDE = (0.4, 0.9)


def affine_map(sampler: Sampler, denoiser: Denoiser) -> tuple[float, np.ndarray]:
    """x_0 = offset + c · (x_T, z_1, …, z_{S−1}), read off by one unit impulse per image; exact for affine samplers."""
    x = torch.zeros(sampler.steps + 1, 1, 1, 1, dtype=torch.float64)
    x[1] = 1
    calls = count(2)

    def impulse() -> Tensor:
        z = torch.zeros_like(x)
        z[next(calls)] = 1
        return z

    x0 = last(sampler, denoiser, x, impulse).flatten().numpy()
    assert next(calls) in (2, sampler.steps + 1), "noise at every step but the last, or at none"
    return float(x0[0]), x0[1:] - x0[0]


def recursion(name: str, times: list[int], variance: Callable[[float, float], float]) -> tuple[float, float]:
    """Mean and variance of x_0 of x_s = A E[x0 | x_t] + B x_t + √Σ z for N(MEAN, STD²), step by step from N(0, 1)."""
    bar, mean, var = alpha_bar(name), 0.0, 1.0
    for t, s in pairwise(times):
        now, then = bar[t], bar[s]
        beta = 1 - now / then
        tilde = beta * (1 - then) / (1 - now)
        a, b = math.sqrt(then) * beta / (1 - now), math.sqrt(now / then) * (1 - then) / (1 - now)
        gain = math.sqrt(now) * STD**2 / (now * STD**2 + 1 - now)
        mean = a * (MEAN + gain * (mean - math.sqrt(now) * MEAN)) + b * mean
        var = (a * gain + b) ** 2 * var + (variance(tilde, beta) if s > 0 else 0)
    return mean, var


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [1, 30, 400, 999])
def test_oracles(name: str, t: int) -> None:
    """E[x0 | x_t] and q(x_t) by numerical integration over x0, and Tweedie's formula (000, "Score prediction")."""
    schedule, bar = SCHEDULES[name](), alpha_bar(name)[t]
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    x0 = np.linspace(-4, 4, 400_001)
    prior = sum(w * stats.norm.pdf(x0, m, c) for w, m, c in zip(WEIGHTS, MEANS, STDS, strict=True))
    for x_t in (-1.3, -0.1, 0.6, 2.0):
        joint = prior * stats.norm.pdf(x_t, math.sqrt(bar) * x0, math.sqrt(1 - bar)) * (x0[1] - x0[0])
        x = torch.full((1, 1, 1, 1), x_t, dtype=torch.float64)
        prediction = denoiser(x, time(t))
        assert float(prediction.x0) == pytest.approx((x0 * joint).sum() / joint.sum(), abs=1e-8)
        assert float(denoiser.log_likelihood(x, time(t))) == pytest.approx(math.log(joint.sum()), abs=1e-8)
        score = float(denoiser.score(x, time(t)))
        assert float(prediction.x0) == pytest.approx((x_t + (1 - bar) * score) / math.sqrt(bar), rel=1e-7, abs=1e-9)
        assert float(prediction.eps) == pytest.approx(-math.sqrt(1 - bar) * score, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 16, 32, 256, 996, 997, 1000])
def test_times(steps: int, name: str) -> None:
    """start = τ_S > … > τ_0 = 0: from T on `linear`, on `cosine` from 996, where σ/α = 160, not from T, where it is
    20 291; S = T is the whole chain."""
    assert start(name) == {"linear": 1000, "cosine": 996}[name] == float(SCHEDULES[name]().start)
    times = DDIM(steps=steps).times(SCHEDULES[name]())
    assert times.dtype == torch.float64 and times.tolist() == grid(steps, name)
    assert times[0] == max(steps, start(name)) and (steps < 1000 or times.tolist() == list(range(1000, -1, -1)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [21, 50, 100])
def test_times_never_repeat(total: int, name: str) -> None:
    """Every S ≤ T gives S + 1 different times from `start` to 0."""
    for steps in range(1, total + 1):
        times = Ancestral(steps=steps).times(SCHEDULES[name](steps=total))
        assert len(times) == steps + 1 and times[0] == max(steps, start(name, total)) and times[-1] == 0
        assert (times.diff() <= -1).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 10, 32, 250, 1000])
def test_ddim_is_its_affine_map(name: str, steps: int) -> None:
    """Song et al. 2021, eq. 12 with η = 0 on N(m, c²): x_s − α_s m = (α_s α_t c² + σ_s σ_t)/V_t · (x_t − α_t m),
    V_t = α_t² c² + σ_t²; the product over the grid maps x_T to x_0."""
    bar, slope = alpha_bar(name), 1.0
    for t, s in pairwise(grid(steps, name)):
        cross = math.sqrt(bar[s] * bar[t]) * STD**2 + math.sqrt((1 - bar[s]) * (1 - bar[t]))
        slope *= cross / (bar[t] * STD**2 + 1 - bar[t])
    x = randn(0, 4, 1, 2, 2)
    expected = MEAN + slope * (x - math.sqrt(bar[grid(steps, name)[0]]) * MEAN)
    ours = last(DDIM(steps=steps), GaussianDenoiser(SCHEDULES[name](), MEAN, STD), x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [32, 256])
def test_ancestral_loses_variance(name: str, steps: int) -> None:
    """The variance recursion V_s = (A k + B)² V_t + β̃; no noise in the last step."""
    denoiser = GaussianDenoiser(SCHEDULES[name](), MEAN, STD)
    offset, coefficients = affine_map(Ancestral(steps=steps), denoiser)
    mean, var = recursion(name, grid(steps, name), lambda tilde, beta: tilde)
    assert len(coefficients) == steps
    assert offset == pytest.approx(mean, abs=1e-10)
    assert float(coefficients @ coefficients) == pytest.approx(var, abs=1e-10)
    # The measured ratios of variances: linear, T = 1000, data variance 0.25.
    if name == "linear":
        assert float(coefficients @ coefficients) / STD**2 == pytest.approx({32: 0.711, 256: 0.945}[steps], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [10, 32, 200])
def test_ancestral_with_the_large_variance(name: str, steps: int) -> None:
    """The same recursion with Σ = σ²_ts (β_t at full length), whose samples are wider than with β̃."""
    denoiser = GaussianDenoiser(SCHEDULES[name](), MEAN, STD)
    offset, coefficients = affine_map(Ancestral(steps=steps, variance="large"), denoiser)
    mean, var = recursion(name, grid(steps, name), lambda tilde, beta: beta)
    assert offset == pytest.approx(mean, abs=1e-10)
    assert float(coefficients @ coefficients) == pytest.approx(var, abs=1e-10)
    assert var > recursion(name, grid(steps, name), lambda tilde, beta: tilde)[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("v", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_with_a_learned_variance(variance: str, v: float, name: str) -> None:
    """000, "Learned variance": Σ = β^v β̃^(1−v) replaces the fixed variance, whichever that is."""
    denoiser = GaussianDenoiser(SCHEDULES[name](), MEAN, STD, v=v)
    _, coefficients = affine_map(Ancestral(steps=32, variance=variance), denoiser)
    _, var = recursion(name, grid(32, name), lambda tilde, beta: beta**v * tilde ** (1 - v))
    assert float(coefficients @ coefficients) == pytest.approx(var, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_ddim_with_noise(name: str, eta: float) -> None:
    """Song et al. 2021, eqs. 12 and 16: x_s = √ᾱ_s x̂0 + √(1 − ᾱ_s − σ²) ε̂ + σ z,
    σ² = η² (1 − ᾱ_s)/(1 − ᾱ_t) (1 − ᾱ_t/ᾱ_s)."""
    steps, bar, var, mean = 40, alpha_bar(name), 1.0, 0.0
    for t, s in pairwise(grid(steps, name)):
        sigma2 = eta**2 * (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
        gain = math.sqrt(bar[t]) * STD**2 / (bar[t] * STD**2 + 1 - bar[t])
        to_eps = (1 - math.sqrt(bar[t]) * gain) / math.sqrt(1 - bar[t])
        slope = math.sqrt(bar[s]) * gain + math.sqrt(1 - bar[s] - sigma2) * to_eps
        # The exact denoiser is right on average: the distance to α m shrinks with the slope alone.
        mean = math.sqrt(bar[s]) * MEAN + slope * (mean - math.sqrt(bar[t]) * MEAN)
        var = slope**2 * var + sigma2
    offset, coefficients = affine_map(DDIM(steps=steps, eta=eta), GaussianDenoiser(SCHEDULES[name](), MEAN, STD))
    assert offset == pytest.approx(mean, abs=1e-10)
    assert float(coefficients @ coefficients) == pytest.approx(var, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 50, 333])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_with_eta_one_is_ancestral(clip: bool, steps: int, name: str) -> None:
    """Song et al. 2021, section 4.1: η = 1 is the DDPM with β̃, for the same noise, clipped or not."""
    denoiser = MixtureDenoiser(SCHEDULES[name](), WEIGHTS, MEANS, WIDE, clip=clip)
    x = randn(2, 3, 1, 2, 2)
    ddim = last(DDIM(steps=steps, eta=1.0), denoiser, x, noises(0, *x.shape))
    ancestral = last(Ancestral(steps=steps), denoiser, x, noises(0, *x.shape))
    torch.testing.assert_close(ddim, ancestral, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", [Ancestral(steps=5), Ancestral(steps=5, variance="large"), DDIM(steps=5, eta=1.0)])
def test_last_step_adds_no_noise(sampler: Sampler) -> None:
    """Ho et al. 2020, algorithm 2: z = 0 at t = 1, and x_0 = x̂0 there."""
    denoiser, x = GaussianDenoiser(SCHEDULES["linear"](), MEAN, STD), randn(3, 2, 1, 2, 2)
    calls = count()

    def noise() -> Tensor:
        next(calls)
        return torch.zeros_like(x)

    states = list(sampler.trajectory(denoiser, x, NOTHING, noise))
    assert next(calls) == 4 and len(states) == 5
    torch.testing.assert_close(states[-1], denoiser(states[-2], time(200)).x0, rtol=0, atol=1e-12)


def test_deterministic_ddim_draws_no_noise() -> None:
    """η = 0 never asks for noise, so that it leaves the draws of other samplers alone."""

    def noise() -> Tensor:
        raise AssertionError("noise drawn")

    last(DDIM(steps=5), GaussianDenoiser(SCHEDULES["linear"](), MEAN, STD), randn(4, 2, 1, 2, 2), noise)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["mu", "x0", "eps", "score"])
@pytest.mark.parametrize("t", [1, 2, 300, 1000])
def test_update_rules(name: str, target: str, t: int) -> None:
    """000, "Update Rules": the reverse step from the network's own output, in four parameterisations, σ_t² = β̃."""
    bar, beta = alpha_bar(name), betas(name)[t - 1]
    alpha, now, before = 1 - beta, bar[t], bar[t - 1]
    x, output, z = randn(5, 2, 1, 2, 2), randn(6, 2, 1, 2, 2), randn(7, 2, 1, 2, 2)
    denoiser = Denoiser(lambda *_: output, make_objective(target=target), SCHEDULES[name](), clip=False)
    mean = {
        "mu": output,
        "x0": (1 - before) * math.sqrt(alpha) / (1 - now) * x + beta * math.sqrt(before) / (1 - now) * output,
        "eps": (x - beta / math.sqrt(1 - now) * output) / math.sqrt(alpha),
        "score": (x + beta * output) / math.sqrt(alpha),
    }[target]
    expected = mean + math.sqrt(beta * (1 - before) / (1 - now)) * z
    ours = Ancestral(steps=1000).step(denoiser, x, time(t), time(t - 1), None, lambda: z)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [Ancestral(steps=20), Ancestral(steps=20, variance="large"), DDIM(steps=20)])
def test_clipping(sampler: Sampler) -> None:
    """x̂0 is clipped to [−1, 1] and ε̂ = (x_t − α x̂0)/σ derived again, before either enters the step."""
    bar, wide = alpha_bar("linear"), 3.0
    x, z = 2 * randn(8, 5, 1, 2, 2), randn(9, 5, 1, 2, 2)
    denoiser = GaussianDenoiser(SCHEDULES["linear"](), MEAN, wide, clip=True)
    for t, s in ((1000, 950), (500, 450), (50, 0)):
        now, then = bar[t], bar[s]
        gain = math.sqrt(now) * wide**2 / (now * wide**2 + 1 - now)
        free = MEAN + gain * (x - math.sqrt(now) * MEAN)
        clipped = free.clamp(-1, 1)
        assert t == 1000 or (clipped != free).any()
        prediction = denoiser(x, time(t))
        eps = (x - math.sqrt(now) * clipped) / math.sqrt(1 - now)
        torch.testing.assert_close(prediction.x0, clipped, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(prediction.eps, eps, rtol=1e-10, atol=1e-12)
        if isinstance(sampler, DDIM):
            expected = math.sqrt(then) * clipped + math.sqrt(1 - then) * eps
        else:
            beta = 1 - now / then
            a, b = math.sqrt(then) * beta / (1 - now), math.sqrt(now / then) * (1 - then) / (1 - now)
            var = beta if sampler.variance == "large" else beta * (1 - then) / (1 - now)
            expected = a * clipped + b * x + (math.sqrt(var) * z if s else 0)
        ours = sampler.step(denoiser, x, time(t), time(s), None, lambda: z)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", [Ancestral(steps=9), DDIM(steps=9), DDIM(steps=9, eta=1.0)])
def test_images_keep_their_type(sampler: Sampler) -> None:
    """float32 images stay float32 and follow the float64 trajectory."""
    schedule, x = SCHEDULES["cosine"](), randn(16, 2, 1, 2, 2)
    z = noises(17, *x.shape)
    drawn = [z() for _ in range(8)]
    denoiser = Denoiser(lambda x, log_snr, y: 0.5 * x, make_objective(target="eps"), schedule)
    exact, single = iter(drawn), iter(drawn)
    expected = last(sampler, denoiser, x, lambda: next(exact))
    ours = last(sampler, denoiser, x.float(), lambda: next(single).float())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "ancestral", "steps": 0}, "steps: 0"),
        ({"method": "ancestral", "variance": "tiny"}, "variance: 'tiny'"),
        ({"method": "ddim", "eta": 1.1}, "eta: 1.1"),
        ({"method": "ddim", "eta": -0.1}, "eta: -0.1"),
        ({"method": "ddim", "variance": "small"}, "ddim: unknown parameter 'variance'"),
        ({"method": "euler"}, "method: 'euler'; known are ancestral, ddim"),
    ],
)
def test_bad_parameters_are_named(spec: dict, message: str) -> None:
    """The message names the parameter, its value and what would be right."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampler.make(spec)


def test_more_steps_than_the_schedule() -> None:
    """S > T is refused, both named."""
    with pytest.raises(ValueError, match="steps: 41 sampling steps are more than the schedule's T = 40"):
        DDIM(steps=41).times(SCHEDULES["linear"](steps=40))


def test_churn_never_lowers_the_noise() -> None:
    """A chain of T steps begins beyond `start`: churn leaves x there as it is, to the end the size of its schedule."""
    schedule, x = SCHEDULES["cosine"](), randn(30, 64, 1, 2, 2)
    denoiser = GaussianDenoiser(schedule, MEAN, STD)
    sampler = Heun(steps=1000, churn=30.0)
    states = sampler.trajectory(denoiser, x, NOTHING, noises(31, *x.shape))
    for t, state in zip(sampler.times(schedule)[1:], states, strict=True):
        expected = math.sqrt(float(schedule.alpha(t)) ** 2 * STD**2 + float(schedule.sigma(t)) ** 2)
        assert float(state.std()) < 1.5 * expected


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras"])
def test_times_fall(spacing: str, name: str) -> None:
    """From `start` to 0, however short the chain and however far the schedule goes."""
    totals = [4, 21, 1000] if name != "linear" else [21, 1000]
    schedules = [EVERY[name](steps=total) for total in totals]
    if name == "vp-sde":
        schedules += [VPSDE(steps=total, beta_max=b) for total in (4, 1000) for b in (100.0, 1000.0)]
    for schedule in schedules:
        for steps in (1, 2, min(7, schedule.steps), min(50, schedule.steps)):
            times = DDIM(steps=steps, spacing=spacing).times(schedule)
            assert (times.diff() < 0).all() and len(times) == steps + 1 and times[-1] == 0, (schedule, steps)


@pytest.mark.parametrize("method", sorted({m.method for m in Sampler.all()}))
def test_labels_reach_the_denoiser(method: str) -> None:
    """At every evaluation of every sampler, and the same ones."""
    condition, asked = Condition(torch.tensor([1, 0, 2])), []

    class Asked(GaussianDenoiser):
        def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
            asked.append(condition)
            return super().predict(x_t, t, condition)

    denoiser, x = Asked(EVERY["geometric"](), MEAN, STD), randn(31, 3, 1, 2, 2)
    sampler = Sampler.make({"method": method, "steps": 4} | ({"corrections": 2} if method == "langevin" else {}))
    *_, last_state = sampler.trajectory(denoiser, x, condition, noises(32, *x.shape))
    assert last_state.shape == x.shape and len(asked) >= 4 and all(one is condition for one in asked)


def test_churn_holds_at_both_of_its_bounds() -> None:
    """S_tmin ≤ ς ≤ S_tmax, the ends included (Karras et al. 2022, algorithm 2)."""
    schedule, x, t = EVERY["karras"](), randn(33, 2, 1, 2, 2), time(500)
    level = float(schedule.level(t))
    for low, high, churned in (
        (level, 1e9, True),
        (0.0, level, True),
        (level * 1.01, 1e9, False),
        (0.0, level * 0.99, False),
    ):
        sampler = Heun(steps=10, churn=5.0, churn_min=low, churn_max=high)
        found, at = sampler.raised(schedule, x, t, lambda: torch.ones_like(x))
        assert (float(at) > 500) == churned and torch.equal(found, x) != churned
