"""Flow matching and the schedules that end in noise alone, against their papers' formulas and diffusers."""

import math
from collections.abc import Callable
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import EVERY, FlowMatching, MixtureDenoiser, make_objective, randn, time
from scipy import special, stats

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.objectives import Target
from ddpm.samplers import DDIM, EulerODE
from ddpm.schedules import Flow, Schedule, ShiftedCosine, Sigmoid

Tensor = torch.Tensor
Scales = tuple[mpmath.mpf, mpmath.mpf]
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
SHARP = {"logit_first": 0.0, "logit_last": 3.0, "temperature": 0.3}


def flow(u: mpmath.mpf, k: float) -> Scales:
    """Esser et al. 2024, eq. 23: t ← k t/(1 + (k − 1) t) in α = 1 − t, σ = t."""
    moved = k * u / (1 + (mpmath.mpf(k) - 1) * u)
    return 1 - moved, moved


def shifted(log_snr: mpmath.mpf, k: float) -> Scales:
    """Hoogeboom et al. 2023: log SNR + 2 log(64/d), d = 64 k; α² is the sigmoid of that, σ² of its negative."""
    moved = log_snr - 2 * mpmath.log(k)
    return 1 / mpmath.sqrt(1 + mpmath.exp(-moved)), 1 / mpmath.sqrt(1 + mpmath.exp(moved))


def cosine(u: mpmath.mpf, k: float) -> Scales:
    """Hoogeboom et al. 2023: −2 log tan(π u/2)."""
    return shifted(-2 * mpmath.log(mpmath.tan(mpmath.pi * u / 2)), k)


def sigmoid(u: mpmath.mpf, k: float, first: float = -3, last: float = 3, tau: float = 1) -> Scales:
    """Chen 2023: γ = (S(last/τ) − S((first + u (last − first))/τ))/(S(last/τ) − S(first/τ)) is α²."""
    first, last, tau = map(mpmath.mpf, (str(first), str(last), str(tau)))

    def s(x: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + mpmath.exp(-x))

    gamma = (s(last / tau) - s((first + u * (last - first)) / tau)) / (s(last / tau) - s(first / tau))
    return shifted(mpmath.log(gamma / (1 - gamma)), k)


CASES: dict[str, tuple[Schedule, Callable[[mpmath.mpf], Scales]]] = {
    "flow": (Flow(), lambda u: flow(u, 1)),
    "flow, shift 3": (Flow(shift=3.0), lambda u: flow(u, 3)),
    "flow, T = 40": (Flow(steps=40, shift=0.5), lambda u: flow(u, 0.5)),
    "cosine": (ShiftedCosine(), lambda u: cosine(u, 1)),
    "cosine, shift 4": (ShiftedCosine(shift=4.0), lambda u: cosine(u, 4)),
    "sigmoid": (Sigmoid(), lambda u: sigmoid(u, 1)),
    "sigmoid, shift 2": (Sigmoid(steps=40, shift=2.0), lambda u: sigmoid(u, 2)),
    "sigmoid, sharp": (Sigmoid(**SHARP), lambda u: sigmoid(u, 1, 0, 3, 0.3)),
}


@pytest.mark.parametrize("case", list(CASES))
def test_scales_and_what_follows(case: str) -> None:
    """α, σ, time_at, slope, drift and diffusion at real times, by 50 digits and by differences of them."""
    schedule, exact = CASES[case]
    h = mpmath.mpf(10) ** -17
    for share in (1e-4, 0.0173, 0.25, 0.5, 0.84375, 0.999):
        t = time(share * schedule.steps)
        with mpmath.workdps(50):
            u = mpmath.mpf(float(t)) / schedule.steps
            (alpha, sigma), (before, lower) = exact(u), exact(u - h)
            log_snr, drift = 2 * mpmath.log(alpha / sigma), mpmath.log(alpha / before) / h / schedule.steps
            slope = (log_snr - 2 * mpmath.log(before / lower)) / h / schedule.steps
        found = [float(f(t)) for f in (schedule.alpha, schedule.sigma, schedule.slope, schedule.drift)]
        assert found == pytest.approx([float(v) for v in (alpha, sigma, slope, drift)], rel=1e-9), share
        assert float(schedule.diffusion(t)) == pytest.approx(float(-(sigma**2) * slope), rel=1e-9)
        assert float(schedule.time_at(time(float(sigma / alpha)))) == pytest.approx(float(t), rel=1e-10)
    zero, end = time(0), time(schedule.steps)
    assert float(schedule.alpha(zero)) == float(schedule.sigma(end)) == float(schedule.prior_std) == 1
    assert float(schedule.sigma(zero)) == float(schedule.alpha(end)) == 0
    assert schedule.time_at(torch.tensor([0, math.inf]).double()).tolist() == [0, schedule.steps]


def test_the_closed_form_of_flow_is_the_general_one() -> None:
    """Levels, times and grids of α = 1 − t/T and σ = t/T, stated or found by bisection."""
    ours, general = Flow(), FlowMatching()
    t = torch.tensor([0.3, 1, 17.25, 500, 999]).double()
    for name in ("alpha", "sigma", "slope", "drift", "diffusion", "square"):
        torch.testing.assert_close(getattr(ours, name)(t), getattr(general, name)(t), rtol=1e-12, atol=0)
    levels = torch.logspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(ours.time_at(levels), general.time_at(levels), rtol=1e-12, atol=0)
    assert (ours.start, ours.last, ours.family) == (general.start, general.last, general.family) == (993, 999, "")
    assert ours.grid(4).tolist() == [993, 744.75, 496.5, 248.25, 0]


@pytest.mark.parametrize("b", [0.3, 2.0])
def test_scaling_the_input_is_a_shift(b: float) -> None:
    """Chen 2023, section 2.2: x_t = √γ b x0 + √(1 − γ) ε, divided by its own scale, is Sigmoid with `shift` = 1/b."""
    plain, ours, t = Sigmoid(), Sigmoid(shift=1 / b), torch.linspace(1, 1000, 9).double()
    scale = (b**2 * plain.alpha(t) ** 2 + plain.sigma(t) ** 2).sqrt()
    torch.testing.assert_close(ours.alpha(t), b * plain.alpha(t) / scale, rtol=1e-13, atol=0)
    torch.testing.assert_close(ours.sigma(t), plain.sigma(t) / scale, rtol=1e-13, atol=0)


# ---- the flow ---------------------------------------------------------------------------------------------


def velocity(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
    """A network, of no data."""
    return torch.tanh(x) + 0.3 * torch.sin(3 * x + log_snr.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_ddim_is_eulers_method(steps: int, shift: float) -> None:
    """x_s = x_t + (σ_s − σ_t) y with y the network's output, for DDIM with η = 0, and diffusers' flow-matching Euler.

    Without a shift the probability flow in t is the same equation, so that `ode-euler` is Euler's method too, but for
    its last step, x̂0, which is Euler's here.
    """
    schedule, objective = Flow(shift=shift), make_objective(target="flow")
    denoiser = Denoiser(velocity, objective, schedule, clip=False)
    scheduler, x = FlowMatchEulerDiscreteScheduler(), randn(0, 3, 1, 2, 2)
    times = DDIM(steps=steps).times(schedule)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = schedule.sigma(times)
    scheduler.set_begin_index(0)
    kinds = [DDIM(steps=steps)] if shift > 1 else [DDIM(steps=steps), EulerODE(steps=steps)]
    paths = [list(kind.trajectory(denoiser, x, NOTHING, None)) for kind in kinds]
    for i, (t, s) in enumerate(pairwise(times)):
        output, _ = objective.outputs(velocity, schedule, x, t, NOTHING)
        theirs = scheduler.step(output, scheduler.timesteps[i], x, return_dict=False)[0]
        x = x + (schedule.sigma(s) - schedule.sigma(t)) * output
        torch.testing.assert_close(theirs, x, rtol=0, atol=1e-5)  # float32
        for path in paths:
            torch.testing.assert_close(path[i], x, rtol=0, atol=1e-12)


def test_diffusers_shift() -> None:
    """FlowMatchEulerDiscreteScheduler with `shift`: its noise levels at T … 1 are σ of ours."""
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=50, shift=3.0).sigmas.double()
    ours = Flow(steps=50, shift=3.0).sigma(torch.arange(50, 0, -1, dtype=torch.float64))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_the_best_velocity() -> None:
    """E[ε − x0 | x_t] of N(m, c²) in closed form, −m + (σ − α c²)/(α² c² + σ²) (x − α m), is what is asked for."""
    schedule, objective, mean, std = Flow(), make_objective(target="flow"), 0.3, 0.5
    t, x = time(1, 250, 700, 1000), randn(1, 4, 2, 1, 1)
    u = t / 1000
    gain = (u - (1 - u) * std**2) / ((1 - u) ** 2 * std**2 + u**2)
    best = -mean + gain * (x - (1 - u) * mean)
    exact = MixtureDenoiser(schedule, (1.0,), (mean,), (std,))(x, t)
    x0, eps = objective.target.invert(schedule, best, x, t)
    torch.testing.assert_close(x0, exact.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps, exact.eps, rtol=0, atol=1e-10)
    torch.testing.assert_close(objective.target.of(schedule, exact.x0, exact.eps, t), best, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*EVERY, "flow"])
def test_inversion_of_the_target(name: str) -> None:
    """x̂0 = (x_t − σ y)/(α + σ) and ε̂ = (x_t + α y)/(α + σ) on every schedule, and ‖Δy‖² = ((α + σ)/σ)² ‖Δx0‖²."""
    schedule, target = (EVERY | {"flow": Flow})[name](), Target.make({"method": "flow"})
    t, x, y = time(1, 30, 400, 1000), randn(2, 4, 1, 2, 2), randn(3, 4, 1, 2, 2)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = target.invert(schedule, y, x, t)
    torch.testing.assert_close(x0, (x - sigma * y) / (alpha + sigma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(eps, (x + alpha * y) / (alpha + sigma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.gain(schedule, t), (alpha + sigma) ** 2 / sigma**2, rtol=1e-12, atol=0)
    assert (target.simple_weight(schedule, t) == 1).all() and not target.blind(schedule, t).any()


# ---- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (2.0, 3.0)])
def test_logit_normal(mean: float, std: float) -> None:
    """t/T quantile by quantile against scipy, not below t = 1; weight 1. On `flow` it is the law of levels."""
    u = (torch.arange(1001, dtype=torch.float64) + 0.5) / 1001
    law = {"times": "logit-normal", "logit_mean": mean, "logit_std": std}
    t, weight = make_objective(target="flow", **law).times.on(EVERY["cosine"](steps=200)).draw(u)
    expected = 200 * special.expit(stats.norm.ppf(u.numpy(), mean, std))
    np.testing.assert_allclose(t.numpy(), np.maximum(expected, 1), rtol=1e-12)
    assert (weight == 1).all() and float(t.min()) >= 1 and float(t.max()) <= 200
    levels = {"times": "log-normal", "level_mean": mean, "level_std": std}
    both = [make_objective(target="flow", **spec).times.on(Flow(steps=200)).draw(u)[0] for spec in (law, levels)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=0)
