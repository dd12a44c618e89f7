"""α(t) and σ(t) of every schedule and what follows from them."""

import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from oracles import DIFFUSERS_SCHEDULES, SCHEDULES, alpha_bar, betas, randn, time

from ddpm.schedules import Cosine, Linear, Schedule

NAMES = list(SCHEDULES)
TIMES = [1, 2, 3, 10, 250, 500, 999, 1000]
PAIRS = [(1, 0), (2, 1), (2, 0), (10, 3), (500, 499), (700, 20), (1000, 999), (1000, 500), (1000, 0)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [21, 37, 100, 1000, 4000])
def test_alpha_and_sigma(name: str, steps: int) -> None:
    """α² = ᾱ_t = Π (1 − β_i) and σ² = 1 − ᾱ_t: Ho et al. 2020, eq. 4; Nichol & Dhariwal 2021, eq. 17 (001, 4.4–4.6)."""
    schedule, expected = SCHEDULES[name](steps=steps), alpha_bar(name, steps)
    t = torch.arange(steps + 1, dtype=torch.float64)
    assert schedule.alpha(t).dtype == schedule.sigma(t).dtype == torch.float64
    np.testing.assert_allclose(schedule.alpha(t).numpy(), np.sqrt(expected), rtol=1e-11)
    np.testing.assert_allclose(schedule.sigma(t).numpy(), np.sqrt(1 - expected), rtol=1e-10, atol=0)
    np.testing.assert_allclose((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).numpy(), 1, rtol=1e-15)


def test_cosine_is_the_closed_form() -> None:
    """ᾱ_t = f(t)/f(0) wherever β was not clipped (001, eqs. 4.4 and 4.5); only the last β is."""
    t = np.arange(1000)
    f = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    schedule = Cosine(steps=1000)
    np.testing.assert_allclose(schedule.alpha(torch.from_numpy(t)).numpy() ** 2, f / f[0], rtol=1e-10)
    last = schedule.alpha(time(1000)) ** 2 / schedule.alpha(time(999)) ** 2
    assert float(last) == pytest.approx(1 - 0.999, rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [50, 1000])
def test_diffusers_tables(name: str, steps: int) -> None:
    """betas and alphas_cumprod of diffusers' DDPMScheduler, float32; its index 0 is step 1.

    It leaves the scaling of `linear` by 1000/T to its caller.
    """
    ends = {"beta_start": 1e-4 * 1000 / steps, "beta_end": 0.02 * 1000 / steps}
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_schedule=DIFFUSERS_SCHEDULES[name], **ends)
    schedule, t = SCHEDULES[name](steps=steps), torch.arange(1, steps + 1, dtype=torch.float64)
    np.testing.assert_allclose(schedule.transition(t, t - 1)[1].numpy(), theirs.betas.numpy(), rtol=2e-5)
    np.testing.assert_allclose(schedule.alpha(t).numpy() ** 2, theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_index_zero_is_clean(name: str) -> None:
    """α(0) = 1 and σ(0) = 0, exactly."""
    schedule = SCHEDULES[name]()
    assert float(schedule.alpha(time(0))) == 1 and float(schedule.sigma(time(0))) == 0
    x0 = randn(0, 2, 1, 2, 2)
    assert torch.equal(schedule.noisy(x0, randn(1, 2, 1, 2, 2), time(0)), x0)


@pytest.mark.parametrize("name", NAMES)
def test_transition_of_one_step(name: str) -> None:
    """q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t) (000, "Forward process"; 001, eq. 2.3)."""
    schedule, t = SCHEDULES[name](), torch.arange(1, 1001, dtype=torch.float64)
    scale, variance = schedule.transition(t, t - 1)
    np.testing.assert_allclose(variance.numpy(), betas(name), rtol=1e-9)
    np.testing.assert_allclose(scale.numpy(), np.sqrt(1 - betas(name)), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t", "r", "s"), [(3, 2, 1), (10, 4, 0), (1000, 999, 998), (1000, 500, 1), (800, 1, 0)])
def test_transitions_compose(name: str, t: int, r: int, s: int) -> None:
    """q(x_t | x_s) is q(x_t | x_r) after q(x_r | x_s): scales multiply, variances add up as α_tr² σ²_rs + σ²_tr."""
    schedule = SCHEDULES[name]()
    (a_tr, v_tr), (a_rs, v_rs) = schedule.transition(time(t), time(r)), schedule.transition(time(r), time(s))
    a_ts, v_ts = schedule.transition(time(t), time(s))
    assert float(a_ts) == pytest.approx(float(a_tr * a_rs), rel=1e-13)
    assert float(v_ts) == pytest.approx(float(a_tr**2 * v_rs + v_tr), rel=1e-10)


def chain_covariance(name: str, s: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (per unit x0) and covariance of (x_s, x_t) given x0, by running the Markov chain step by step."""
    mean, cov = np.ones(2), np.zeros((2, 2))
    for i, beta in enumerate(betas(name)[:t], start=1):
        # Both coordinates move together up to s; from then on x_s stands still.
        move = np.diag([np.sqrt(1 - beta)] * 2) if i <= s else np.diag([1, np.sqrt(1 - beta)])
        noise = beta * np.ones((2, 2)) if i <= s else np.diag([0, beta])
        mean, cov = move @ mean, move @ cov @ move.T + noise
    return mean, cov


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_is_gaussian_conditioning(name: str, t: int, s: int) -> None:
    """q(x_s | x_t, x0) by conditioning the joint normal of (x_s, x_t): gain Σ_st/Σ_tt, variance Σ_ss − Σ_st²/Σ_tt."""
    mean, cov = chain_covariance(name, s, t)
    gain = np.linalg.solve(cov[1:, 1:], cov[1:, :1])[0, 0]
    a, b, variance = (float(c) for c in SCHEDULES[name]().posterior(time(t), time(s)))
    assert b == pytest.approx(gain, rel=1e-9, abs=1e-14)
    assert a == pytest.approx(mean[0] - gain * mean[1], rel=1e-9)
    assert variance == pytest.approx(cov[0, 0] - gain * cov[1, 0], rel=1e-7, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_posterior_as_document_000_prints_it(name: str) -> None:
    """µ_q = (√α_t (1 − ᾱ_{t−1}) x_t + √ᾱ_{t−1} (1 − α_t) x0)/(1 − ᾱ_t), Σ_q = (1 − α_t)(1 − ᾱ_{t−1})/(1 − ᾱ_t)."""
    bar, beta = alpha_bar(name), betas(name)
    t = torch.arange(1, 1001, dtype=torch.float64)
    a, b, variance = (c.numpy() for c in SCHEDULES[name]().posterior(t, t - 1))
    now, before = bar[1:], bar[:-1]
    np.testing.assert_allclose(a, np.sqrt(before) * beta / (1 - now), rtol=1e-9)
    np.testing.assert_allclose(b, np.sqrt(1 - beta) * (1 - before) / (1 - now), rtol=1e-9)
    np.testing.assert_allclose(variance, beta * (1 - before) / (1 - now), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [30, 1000])
def test_log_variances(name: str, steps: int) -> None:
    """log β̃_t and log β_t; at t = 1 β̃ counts as β̃_2 (Nichol & Dhariwal 2021, section 3.1), nowhere else."""
    schedule, t = SCHEDULES[name](steps=steps), torch.arange(1, steps + 1, dtype=torch.float64)
    small, large = (v.numpy() for v in schedule.log_variances(t, t - 1))
    bar, beta = alpha_bar(name, steps), betas(name, steps)
    tilde = beta[1:] * (1 - bar[1:-1]) / (1 - bar[2:])
    np.testing.assert_allclose(large, np.log(beta), rtol=1e-9)
    np.testing.assert_allclose(small[1:], np.log(tilde), rtol=1e-9)
    assert small[0] == small[1]


@pytest.mark.parametrize("name", NAMES)
def test_log_snr(name: str) -> None:
    """log ᾱ/(1 − ᾱ): falls with t, +inf at t = 0."""
    schedule, bar = SCHEDULES[name](), alpha_bar(name)
    log_snr = schedule.log_snr(torch.arange(1001, dtype=torch.float64)).numpy()
    assert log_snr[0] == math.inf
    np.testing.assert_allclose(log_snr[1:], np.log(bar[1:] / (1 - bar[1:])), rtol=1e-9, atol=1e-10)
    assert (np.diff(log_snr) < 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noisy(name: str, dtype: torch.dtype) -> None:
    """x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε, one time for all images or one per image, in the images' type (001, eq. 2.9)."""
    schedule, bar = SCHEDULES[name](), alpha_bar(name)
    x0, eps = randn(0, 3, 1, 2, 2), randn(1, 3, 1, 2, 2)
    times = [1, 400, 1000]
    x_t = schedule.noisy(x0.to(dtype), eps.to(dtype), time(*times))
    assert x_t.dtype == dtype
    for i, t in enumerate(times):
        expected = np.sqrt(bar[t]) * x0[i].numpy() + np.sqrt(1 - bar[t]) * eps[i].numpy()
        np.testing.assert_allclose(x_t[i].numpy(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)
        single = schedule.noisy(x0.to(dtype), eps.to(dtype), time(t))
        assert single.dtype == dtype and torch.allclose(single[i], x_t[i], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": "linear", "steps": 1}, "steps: 1"),
        ({"method": "cosine", "steps": 0}, "steps: 0"),
        ({"method": "linear", "beta_first": 0.0}, "beta_first: 0.0"),
        ({"method": "linear", "beta_first": 0.03}, "beta_first: 0.03"),
        ({"method": "linear", "beta_last": 1.0}, "beta_last: 1.0"),
        (
            {"method": "linear", "steps": 20},
            "steps: 20; β_T = beta_last · 1000/T = 1 must be below 1",
        ),
        ({"method": "linear", "beta_last": math.nan}, "beta_last: nan"),
        ({"method": "cosine", "offset": -0.1}, "offset: -0.1"),
        ({"method": "cosine", "offset": math.nan}, "offset: nan"),
        ({"method": "cosine", "beta_max": 1.0}, "beta_max: 1.0"),
        ({"method": "cosine", "beta_max": 0.0}, "beta_max: 0.0"),
        ({"method": "linear", "offset": 0.1}, "linear: unknown parameter 'offset'; known are beta_first"),
    ],
)
def test_bad_parameters_are_named(spec: dict, message: str) -> None:
    """The message names the parameter, its value and what would be right."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.make(spec)


def test_an_unknown_schedule_is_told_the_known_ones() -> None:
    """Ours in the order of the alphabet, among any that this process has besides."""
    with pytest.raises(ValueError, match=r"^method: 'quadratic'; known are (.*)$") as caught:
        Schedule.make({"method": "quadratic"})
    listed = str(caught.value).partition("known are ")[2].split(", ")
    assert listed == sorted(listed) and {"cosine", "geometric", "karras", "linear", "vp-sde"} <= set(listed)


def test_make() -> None:
    """`make` gives the class of that name with its parameters, and leaves the specification as it was."""
    spec = {"method": "linear", "steps": 700, "beta_last": 0.5}
    assert Schedule.make(spec) == Linear(steps=700, beta_first=1e-4, beta_last=0.5)
    assert spec["method"] == "linear"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [[-1], [1001], [0, 5, 1001], [1000.1], [-1e-9], [math.nan]])
def test_times_out_of_range(name: str, bad: list[float]) -> None:
    """A negative time does not wrap around to the end of the table."""
    schedule = SCHEDULES[name]()
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr):
        with pytest.raises(ValueError, match="it must lie in 0 … T = 1000"):
            function(torch.tensor(bad, dtype=torch.float64))


@pytest.mark.parametrize("method", [*NAMES, "vp-sde", "karras", "flow"])
def test_single_times_are_computed_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that keeps α and σ says of single times and of many, and of their slopes, what it says without."""
    schedule = Schedule.make({"method": method})
    kept, asked = schedule.keeping(), []
    assert kept == schedule and kept is not schedule
    one, other, many = torch.tensor(7.5, dtype=torch.float64), torch.tensor(600.0, dtype=torch.float64), time(3, 600)
    for t, s in [(other, one), (other, one), (many, many - 1), (other, one)]:
        for found, expected in zip(kept.posterior(t, s), schedule.posterior(t, s), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(kept.log_snr(t), schedule.log_snr(t)) and torch.equal(kept.slope(t), schedule.slope(t))
    monkeypatch.setattr(type(schedule), "alpha", lambda self, t: asked.append(t) or torch.ones_like(t))
    fresh = schedule.keeping()
    for t in (one, other, one, one, many, many):
        fresh.alpha(t)
    assert [t.numel() for t in asked] == [1, 1, 2, 2]
