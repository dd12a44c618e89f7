"""Schedules at real times: levels, derivatives, inverses and grids, to many digits."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from oracles import EVERY, SCHEDULES, exact_scales, start, time

from ddpm.samplers import DDIM
from ddpm.schedules import VPSDE, Geometric, Karras, Linear

NAMES = list(EVERY)
VE = ["geometric", "karras"]
# `linear`, scaled by 1000/T, needs T ≥ 21.
LENGTHS = [(name, steps) for name in NAMES for steps in (2, 10, 21, 1000) if name != "linear" or steps > 20]
TIMES = [0.3, 1.0, 1.5, 2.0, 17.25, 500.0, 500.5, 998.7, 1000.0]
PAIRS = [(1.0, 0.0), (1.0, 0.4), (2.0, 1.0), (2.5, 0.5), (17.3, 17.2), (400.0, 20.5), (1000.0, 999.5), (1000.0, 1.0)]


def slopes(name: str, t: float) -> tuple[float, float, float]:
    """d log SNR/dt, d ln α/dt and dσ²/dt to the left of t, by differences of numbers of 40 digits."""
    h = mpmath.mpf(10) ** -12
    with mpmath.workdps(40):
        (alpha, sigma), (before, lower) = exact_scales(name, t), exact_scales(name, t - h)
        ends = [(2 * mpmath.log(a / s), mpmath.log(a), s**2) for a, s in ((alpha, sigma), (before, lower))]
        return tuple(float((now - then) / h) for now, then in zip(*ends, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_levels_between_the_indices(name: str) -> None:
    """α, σ, log SNR and σ/α at real times, and at the two ends."""
    schedule, t = EVERY[name](), torch.tensor(TIMES, dtype=torch.float64)
    found = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t), schedule.level(t)
    for i, at in enumerate(TIMES):
        alpha, sigma = exact_scales(name, at)
        expected = alpha, sigma, 2 * mpmath.log(alpha / sigma), sigma / alpha
        assert [float(f[i]) for f in found] == pytest.approx([float(e) for e in expected], rel=1e-11), at
        assert float(schedule.level(time(at))) == float(found[3][i])
    zero = time(0)
    assert float(schedule.alpha(zero)) == 1 and float(schedule.sigma(zero)) == float(schedule.level(zero)) == 0


@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_levels_rise(name: str, steps: int) -> None:
    """σ/α grows with t, without a jump where the pieces meet."""
    schedule = EVERY[name](steps=steps)
    level = schedule.level(torch.linspace(0, steps, 20 * steps + 1, dtype=torch.float64))
    assert (level.diff() > 0).all()
    for index in (1.0, 2.0):
        near = schedule.level(torch.tensor([index - 1e-9, index], dtype=torch.float64))
        assert float(near.diff()) < 1e-7 * float(near[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", TIMES)
def test_derivatives(name: str, t: float) -> None:
    """slope = d log SNR/dt, drift f = d ln α/dt and diffusion g² = dσ²/dt − 2 f σ² by their definitions."""
    schedule, (slope, drift, rise) = EVERY[name](), slopes(name, t)
    assert float(schedule.slope(time(t))) == pytest.approx(slope, rel=1e-8)
    assert float(schedule.drift(time(t))) == pytest.approx(drift, rel=1e-8, abs=1e-16)
    noise = float(exact_scales(name, t)[1]) ** 2
    assert float(schedule.diffusion(time(t))) == pytest.approx(rise - 2 * drift * noise, rel=1e-8)
    # One per image as well, in the shape that images need.
    many = schedule.slope(time(t, 700.0))
    assert many.shape == (2, 1, 1, 1) and float(many[0]) == float(schedule.slope(time(t)))


@pytest.mark.parametrize("t", [3.0, 250.5, 1000.0])
def test_vp_sde_is_its_equation(t: float) -> None:
    """f = −½ β and g² = β per unit of u = t/T, β = β_min + u (β_max − β_min) (Song et al. 2021, eq. 32)."""
    schedule, beta = VPSDE(), 0.1 + t / 1000 * 19.9
    assert float(schedule.drift(time(t))) == pytest.approx(-beta / 2000, rel=1e-12)
    assert float(schedule.diffusion(time(t))) == pytest.approx(beta / 1000, rel=1e-12)


def test_vp_sde_is_the_limit_of_linear() -> None:
    """β_t = β(t/T)/T, scaled with T: from 0.1/T to 20/T: the distance falls as 1/T (Song et al. 2021, appendix B)."""
    errors = []
    for steps in (1000, 2000, 4000):
        linear = Linear(steps=steps)
        t = torch.linspace(0, steps, 11, dtype=torch.float64).round()
        errors.append(float((linear.alpha(t) - VPSDE(steps=steps).alpha(t)).abs().max()))
    assert errors[0] < 2e-3
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2, 2], rel=0.02)


@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_time_at_inverts_level(name: str, steps: int) -> None:
    """t → σ/α → t at 0, below 1, at 1, between, at the indices and at T; T for all larger levels."""
    schedule = EVERY[name](steps=steps)
    inner = torch.linspace(0, steps, 37, dtype=torch.float64)
    t = torch.cat([torch.tensor([0, 1e-6, 0.2, 0.999, 1, 1.001, steps - 1, steps], dtype=torch.float64), inner])
    torch.testing.assert_close(schedule.time_at(schedule.level(t)), t, rtol=1e-9, atol=1e-9)
    for one in t:
        assert float(schedule.time_at(schedule.level(one))) == pytest.approx(float(one), rel=1e-9, abs=1e-9)
    top = float(schedule.level(time(steps)))
    beyond = schedule.time_at(torch.tensor([[1.000001 * top], [1e9 * top]], dtype=torch.float64))
    assert beyond.flatten().tolist() == pytest.approx([steps, steps], rel=1e-14) and beyond.shape == (2, 1)


@pytest.mark.parametrize("name", NAMES)
def test_level_inverts_time_at(name: str) -> None:
    """σ/α → t → σ/α over the levels that a schedule has, and some below."""
    schedule = EVERY[name]()
    level = torch.logspace(-3, math.log10(float(schedule.level(time(1000)))), 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.level(schedule.time_at(level)), level, rtol=1e-9, atol=0)


def test_rounding_never_leads_beyond_the_end() -> None:
    """Whatever the parameters, `time_at` of the last level or a larger one is a time of the schedule."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        low, high = 10 ** draw.uniform(-4, -1), 10 ** draw.uniform(0, 2.5)
        steps, rho = int(draw.integers(2, 1500)), float(draw.choice([1, 3, 7, 7.5]))
        for schedule in (
            Geometric(steps=steps, sigma_min=low, sigma_max=high),
            Karras(steps=steps, sigma_min=low, sigma_max=high, rho=rho),
        ):
            levels = torch.full((17,), high, dtype=torch.float64)
            assert (schedule.time_at(levels) <= steps).all()
            assert float(schedule.time_at(2 * levels[0])) <= steps


@pytest.mark.parametrize(("name", "kind"), [("karras", "karras"), ("geometric", "exponential")])
@pytest.mark.parametrize("steps", [1, 2, 18, 100])
def test_ve_grid_against_diffusers(name: str, kind: str, steps: int) -> None:
    """EDMEulerScheduler's sigmas: S of them and an appended 0, whatever T is; float32 there."""
    schedule = EVERY[name](steps=1000)
    theirs = EDMEulerScheduler(schedule.sigma_min, schedule.sigma_max, sigma_schedule=kind)
    theirs.set_timesteps(steps)
    # A single step of theirs starts at sigma_min where the levels are exponential; ours at sigma_max.
    expected = [schedule.sigma_max, 0] if steps == 1 else theirs.sigmas.tolist()
    times = schedule.grid(steps)
    assert times[0] == 1000 and times[-1] == 0
    assert schedule.sigma(times).tolist() == pytest.approx(expected, rel=2e-7 if kind == "karras" else 5e-6, abs=0)


def test_vp_grid_is_respaced() -> None:
    """round(linspace(T, 0, S + 1)) for the VP-SDE as for the chains."""
    assert VPSDE().grid(7).tolist() == [round(t) for t in np.linspace(1000, 0, 8)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "total"), [(1, 1000), (5, 1000), (50, 1000), (1000, 1000), (9, 24)])
def test_spacings(name: str, steps: int, total: int) -> None:
    """`quadratic`: start (i/S)², rounded, one index apart at least; `karras`: EDM's ρ = 7 between the levels of the
    start and 1."""
    schedule = EVERY[name](steps=total)
    top = start(name, total) if name in SCHEDULES else total
    quadratic = DDIM(steps=steps, spacing="quadratic").times(schedule)
    assert quadratic.tolist() == [max(i, round(top * i**2 / steps**2)) for i in range(steps, -1, -1)]
    times = DDIM(steps=steps, spacing="karras").times(schedule)
    first, last = (float(schedule.level(time(t))) ** (1 / 7) for t in (1, top))
    u = np.arange(steps) / max(1, steps - 1)
    np.testing.assert_allclose(schedule.level(times[:-1]).numpy(), (last + u * (first - last)) ** 7, rtol=1e-9)
    assert times[-1] == 0 and len(times) == steps + 1 and (times.diff() < 0).all()
    assert times[0] == top and (steps == 1 or times[-2] == 1)


def test_start() -> None:
    """The last index with λ = log α/σ ≥ −5.1 on VP, T on VE, whose σ_max is a parameter."""
    assert float(VPSDE().start) == 1000 and float(VPSDE(beta_max=40.0).start) == 712
    with mpmath.workdps(40):
        u = np.array([712, 713]) / 1000
        level = np.sqrt(np.expm1(0.5 * u**2 * 39.9 + u * 0.1))
    assert level[0] <= math.exp(5.1) < level[1]
    assert float(Karras(sigma_max=500.0).start) == float(Geometric(sigma_max=500.0).start) == 1000


@pytest.mark.parametrize("name", NAMES)
def test_condition(name: str) -> None:
    """A network is told log SNR of every image, in the images' type; an infinite one as ±30."""
    schedule, x = EVERY[name](), torch.zeros(3, 1, 2, 2)
    expected = [float(2 * mpmath.log(a / s)) for a, s in (exact_scales(name, t) for t in (1, 500, 1000))]
    assert schedule.log_snr_for(time(1, 500, 1000), x).tolist() == pytest.approx(expected, rel=1e-6)
    assert schedule.log_snr_for(time(500), x).tolist() == pytest.approx([expected[1]] * 3, rel=1e-6)
    assert schedule.log_snr_for(time(500), x).dtype == x.dtype
    assert schedule.log_snr_for(time(0), x).tolist() == [30.0] * 3
    # α_T = 0 to the last digit of a float64.
    assert Linear(beta_last=0.9).log_snr_for(time(1000), x).tolist() == [-30.0] * 3


@pytest.mark.parametrize("name", NAMES)
def test_prior(name: str) -> None:
    """N(0, I) for VP, N(0, σ_max²) for VE: what q(x_T) is but for a mean of α_T x0."""
    alpha, sigma = exact_scales(name, 1000)
    expected = float(sigma) if name in VE else 1.0
    schedule = EVERY[name]()
    assert float(schedule.prior_std) == pytest.approx(expected, rel=1e-12) and schedule.prior_std.ndim == 0
    assert schedule.family == ("VE" if name in VE else "VP")
    assert float(schedule.prior_std) ** 2 == pytest.approx(float(sigma**2 + (0 if name in VE else alpha**2)), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_at_real_times(name: str, t: float, s: float) -> None:
    """q(x_s | x_t, x0) by conditioning: Cov(x_s, x_t) = (α_t/α_s) σ_s², Var x_t = σ_t², gain their ratio."""
    with mpmath.workdps(40):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = exact_scales(name, t), exact_scales(name, s)
        cross = alpha_t / alpha_s * sigma_s**2
        gain = cross / sigma_t**2
        expected = alpha_s - gain * alpha_t, gain, sigma_s**2 - gain * cross
    found = EVERY[name]().posterior(time(t), time(s))
    assert [float(f) for f in found] == pytest.approx([float(e) for e in expected], rel=1e-7, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_small_variance_between_the_indices(name: str) -> None:
    """log β̃ and log σ²_ts are exact for every s ≥ 1, however near to t; at s = 0 β̃ counts as that of the step 2 → 1."""
    schedule = EVERY[name]()
    for t, s in ((1.5, 1.0), (2.25, 2.0), (2.0, 1.0), (300.0, 299.5), (1000.0, 20.0), (1.0, 0.0), (50.0, 0.0)):
        _, large = schedule.transition(time(t), time(s))
        small = schedule.posterior(*(map(time, (2, 1)) if s == 0 else map(time, (t, s))))[2]
        found = schedule.log_variances(time(t), time(s))
        assert [float(f) for f in found] == pytest.approx([math.log(small), math.log(large)], rel=1e-12), (t, s)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_discrete_tables_hold_at_their_indices(name: str) -> None:
    """Real times do not disturb the table: asking for an index among others gives the same number."""
    schedule, t = EVERY[name](), torch.tensor([0, 1, 2, 500, 1000], dtype=torch.float64)
    mixed = schedule.alpha(torch.cat([t, t[1:4] + 0.5]))[:5]
    assert torch.equal(mixed, schedule.alpha(t))
