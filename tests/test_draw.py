"""The draw of the bound's terms: its shares, its strata, that it is unbiased, and what its standard error says."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import DIGITS, EVERY, PLANE, SCHEDULES, GaussianDenoiser, MixtureDenoiser, alpha_bar, betas, randn

from ddpm import rng
from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.schedules import Schedule
from ddpm.stages import likelihood

Tensor = torch.Tensor
Array = np.ndarray
NAMES = list(SCHEDULES)
KEY = rng.key("likelihood", 0)
SIZES = [(1000, 1), (1000, 40), (100, 33), (100, 98), (12, 5), (3, 1), (5, 3)]
# `linear`, scaled by 1000/T, needs T ≥ 21.
NAMED = [(name, *size) for name in NAMES for size in SIZES if name != "linear" or size[0] > 20]


def expected_shares(name: str, steps: int) -> Array:
    """0.9 of (SNR_{t−1} − SNR_t)/(1 + SNR_t), which is (ᾱ_{t−1}/(1 − ᾱ_{t−1}) − …)(1 − ᾱ_t), and 0.1 spread evenly."""
    bar = alpha_bar(name, steps)[1:]
    gain = [(a / (1 - a) - b / (1 - b)) * (1 - b) for a, b in pairwise(bar)]
    return 0.9 * np.array(gain) / sum(gain) + 0.1 / (steps - 1)


@pytest.mark.parametrize(("name", "steps"), [("linear", 21), ("linear", 1000), *(("cosine", n) for n in (2, 20, 1000))])
def test_shares(name: str, steps: int) -> None:
    found = likelihood.time_shares(SCHEDULES[name](steps=steps))
    np.testing.assert_allclose(found.numpy(), expected_shares(name, steps), rtol=1e-8)


@pytest.mark.parametrize("name", list(EVERY))
def test_shares_of_every_schedule(name: str) -> None:
    """They sum to one, and none is below a tenth of an even share, so that no weight is above ten times the even one.

    They follow the terms of a perfect denoiser of standard normal pixels, ½ (SNR_{t−1} − SNR_t) E‖x0 − x̂0‖², found here
    from σ²/(α² + σ²).
    """
    schedule = EVERY[name]()
    share, t = likelihood.time_shares(schedule), torch.arange(1, 1001).double()
    assert share.shape == (999,) and share.dtype == torch.float64
    assert float(share.sum()) == pytest.approx(1, abs=1e-12) and float(share.min()) >= 0.1 / 999
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    term = -((alpha / sigma) ** 2).diff() * (sigma**2 / (alpha**2 + sigma**2))[1:]
    rest = share - 0.1 / 999
    torch.testing.assert_close(rest / rest.sum(), term / term.sum(), rtol=1e-6, atol=1e-9)


def cells(share: Array, count: int) -> tuple[Tensor, Array]:
    """Midpoints and lengths of the cells of u in (0, 1) between the points at which any stratum's time changes."""
    edges = np.concatenate([[0, 1], *(np.cumsum(share) * count - k for k in range(count))])
    edges = np.unique(edges[(edges >= 0) & (edges <= 1)])
    return torch.from_numpy((edges[1:] + edges[:-1]) / 2), np.diff(edges)


@pytest.mark.parametrize(("name", "steps", "count"), NAMED)
def test_every_time_has_its_share(name: str, steps: int, count: int) -> None:
    """Integrated over u exactly, t comes K q_t times, with weight 1/(K q_t); strata are of equal share and in order."""
    share = expected_shares(name, steps)
    u, length = cells(share, count)
    t, weight = likelihood.stratified_times(u[:, None].expand(-1, count), torch.from_numpy(share))
    assert t.shape == weight.shape == (len(u), count) and t.dtype == weight.dtype == torch.float64
    found = sum(np.bincount(t[:, k].long().numpy(), length, steps + 1) for k in range(count))
    np.testing.assert_allclose(found, np.concatenate([[0, 0], count * share]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(weight.numpy() * count * share[t.long().numpy() - 2], 1, rtol=1e-12)
    below = np.concatenate([[0, 0], np.cumsum(share)])
    for k in range(count):
        first, last = int(t[0, k]), int(t[-1, k])
        assert below[first - 1] <= k / count + 1e-9 and below[last] >= (k + 1) / count - 1e-9


@pytest.mark.parametrize(("steps", "count"), SIZES)
def test_the_terms_table_has_the_strata(steps: int, count: int) -> None:
    """Its ranges are those of the draw from end to end; a range begins where the one before it ends, or next to it."""
    schedule = SCHEDULES["cosine"](steps=steps)
    ranges = likelihood.strata(schedule, count)
    assert len(ranges) == count and ranges[0][0] == 2 and ranges[-1][1] == steps
    assert all(b[0] - a[1] in (0, 1) for a, b in pairwise(ranges))
    for u in (0.5 / 2**32, 0.25, 0.5, 1 - 0.5 / 2**32):
        t, _ = likelihood.stratified_times(torch.full((count,), u).double(), likelihood.time_shares(schedule))
        assert all(a <= float(at) <= b for (a, b), at in zip(ranges, t, strict=True))
    assert likelihood.strata(schedule, steps - 1) == [(t, t) for t in range(2, steps + 1)]


def test_the_text_of_the_terms_table() -> None:
    lines = likelihood.terms_table(0.5, 1.25, torch.tensor([1.0, 2.0]).double(), [(2, 4), (4, 9)], 9).splitlines()
    assert lines == ["term,first,last,bits_per_dim", "decoder,1,1,1.25", "kl,2,4,1", "kl,4,9,2", "prior,10,10,0.5"]


class ConstantDenoiser(Denoiser):
    """x̂0 is the same everywhere, so that KL_t depends on t alone and not on ε."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        return torch.full_like(x_t, 0.3), None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("count", [1, 4, 10])
def test_the_estimate_is_unbiased(name: str, large: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean over u, integrated exactly, is the sum over all t ≥ 2; decoder and prior are not estimated at all."""
    steps = 24
    u, length = cells(expected_shares(name, steps), count)
    monkeypatch.setattr(rng, "uniform", lambda key, index, draw, shape: u[:, None].expand(-1, *shape))
    denoiser = ConstantDenoiser(None, None, SCHEDULES[name](steps=steps), clip=False)
    x0 = torch.full((len(u), 1, 1, 1), -0.5, dtype=torch.float64)
    estimate = likelihood.vlb(denoiser, x0, torch.arange(len(u)), KEY, DIGITS, count, large, batch=1000)
    exact = likelihood.vlb(denoiser, x0[:1], torch.arange(1), KEY, DIGITS, steps - 1, large, batch=1000)
    assert float(estimate["kl"].std()) > 0.01 * float(exact["kl"])
    for part in ("bound", "prior", "kl", "decoder"):
        assert float(length @ estimate[part].numpy()) == pytest.approx(float(exact[part]), rel=1e-9), part
    if not large:
        snr = alpha_bar(name, steps)[1:] / (1 - alpha_bar(name, steps)[1:])
        assert float(exact["kl"]) == pytest.approx(0.5 * (snr[0] - snr[-1]) * 0.8**2 / math.log(2), rel=1e-9)


# ---- what the standard error says ------------------------------------------------------------------------------

STEPS, GROUPS, IMAGES = 60, 1500, 32


def gaussian_bound(name: str, steps: int, mean: float, std: float) -> float:
    """The bound in bits/dim of a perfect denoiser, over the law of the data and of ε, as a density and β̃ for Σ."""
    bar, beta = alpha_bar(name, steps), betas(name, steps)
    error = std**2 * (1 - bar) / (bar * std**2 + 1 - bar)  # E‖x0 − x̂0‖²
    snr, tilde = bar[1:] / (1 - bar[1:]), beta[1] * (1 - bar[1]) / (1 - bar[2])
    kl = (0.5 * (snr[:-1] - snr[1:]) * error[2:]).sum()
    decoder = 0.5 * math.log(2 * math.pi * tilde) + error[1] / (2 * tilde)
    prior = 0.5 * (bar[-1] * (mean**2 + std**2) - bar[-1] - math.log(1 - bar[-1]))
    return (kl + decoder + prior) / math.log(2)


def estimates(denoiser: Denoiser, x0: Tensor, times: int, key: int = KEY) -> Tensor:
    """The bound of every image, with noise of its own."""
    return likelihood.vlb(denoiser, x0, torch.arange(len(x0)), key, PLANE, times, False, batch=2**16)["bound"]


@pytest.mark.parametrize(
    ("name", "times"), [("linear", 1), ("cosine", 1), ("linear", 4), ("cosine", 4), ("linear", 60)]
)
def test_the_standard_error_covers(name: str, times: int) -> None:
    """Fresh images and noise 1500 times: the estimate's own spread is the stated error, and its mean is the truth.

    The spread of 1500 estimates is known to 1.8 %, and the stated errors differ by more, because each is of 32 images.
    """
    mean, std = 0.2, 0.7
    denoiser = GaussianDenoiser(SCHEDULES[name](steps=STEPS), mean, std)
    found = estimates(denoiser, mean + std * randn(1, GROUPS * IMAGES, 1, 1, 3), times).reshape(GROUPS, IMAGES)
    value, error = found.mean(1), found.std(1) / math.sqrt(IMAGES)
    truth = gaussian_bound(name, STEPS, mean, std)
    spread = float(value.std())
    assert abs(float(value.mean()) - truth) < 4 * spread / math.sqrt(GROUPS)
    assert float(error.square().mean().sqrt()) == pytest.approx(spread, rel=0.06)
    assert float(((value - truth).abs() < 1.96 * error).double().mean()) == pytest.approx(0.94, abs=0.02)


def test_the_standard_error_holds_images_and_draw() -> None:
    """On a mixture: its square is the variance over draws with the images fixed, and that over images of the mean draw.

    With two times of 59 the draw's part is more than half: an error over images alone would be too small by far.
    """
    denoiser = MixtureDenoiser(SCHEDULES["linear"](steps=STEPS), (0.3, 0.7), (-0.6, 0.5), (0.1, 0.3))
    z, which = randn(2, 200, 1, 1, 3), torch.rand(200, 1, 1, 3, generator=torch.Generator().manual_seed(3)) < 0.3
    x0 = torch.where(which, -0.6 + 0.1 * z, 0.5 + 0.3 * z)
    found = torch.stack([estimates(denoiser, x0, 2, rng.key("likelihood", seed)) for seed in range(150)])
    stated = float((found.var(1) / 200).mean())  # of one seed: what a record holds
    draws = float(found.mean(1).var())  # between seeds, the images fixed
    images = float(found.mean(0).var() - found.var(0).mean() / 150) / 200
    assert draws == pytest.approx(float(found.var(0).mean()) / 200, rel=0.35)  # independent from image to image
    assert stated == pytest.approx(images + float(found.var(0).mean()) / 200, rel=0.01)
    assert draws > 0.5 * stated


def test_networks_of_one_seed_share_their_noise() -> None:
    """A denoiser that errs a little more has, with the same noise, a difference of far smaller error; seeds differ."""
    schedule, x0 = SCHEDULES["linear"](steps=STEPS), 0.7 * randn(4, 300, 1, 1, 3)
    one, other = GaussianDenoiser(schedule, 0.0, 0.7), GaussianDenoiser(schedule, 0.0, 0.75)
    first, second = estimates(one, x0, 4), estimates(other, x0, 4)
    fresh = estimates(other, x0, 4, rng.key("likelihood", 1))
    assert torch.equal(first, estimates(one, x0, 4))
    assert float((second - first).std()) < 0.2 * float(second.std()) < float((fresh - first).std())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("std", [0.2, 0.75, 1.5])
def test_the_error_is_less_than_half_that_of_even_draws(name: str, std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At equal evaluations, 40 of T = 1000, on pixels of a variance that the shares do not assume."""
    denoiser = GaussianDenoiser(SCHEDULES[name](), 0.0, std)
    x0 = std * randn(5, 300, 1, 4, 4)
    ours = float(estimates(denoiser, x0, 40).std())

    def even(schedule: Schedule) -> Tensor:
        return torch.full((schedule.steps - 1,), 1 / (schedule.steps - 1), dtype=torch.float64)

    monkeypatch.setattr(likelihood, "time_shares", even)
    assert ours < 0.5 * float(estimates(denoiser, x0, 40).std())
