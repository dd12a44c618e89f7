"""The variational bound, term by term and as a whole."""

import math
from dataclasses import dataclass
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from oracles import PLANE, SCHEDULES, GaussianDenoiser, alpha_bar, betas, level_log_probability, randn, time
from torch.distributions import Normal, kl_divergence

from ddpm import bound, rng
from ddpm.condition import NOTHING
from ddpm.parameters import Count
from ddpm.spaces import Pixels
from ddpm.stages import likelihood

Tensor = torch.Tensor
NAMES = list(SCHEDULES)
KEY = rng.key("likelihood", 0)
MEAN, STD = 0.1, 0.2


def grey(levels: int) -> Pixels:
    return Pixels((1, 2, 2), levels)


@dataclass(frozen=True)
class Fine(Pixels):
    """Grey levels as many as one likes, for a decoder that is a density."""

    method = "fine"
    levels: Count = 256


def scalar(x: float, requires_grad: bool = False) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=requires_grad)


def test_normal_kl() -> None:
    """torch.distributions' KL(q ‖ p) of normal distributions, which is not symmetric."""
    mean_q, mean_p = randn(0, 50), randn(1, 50)
    log_var_q, log_var_p = 3 * randn(2, 50), 3 * randn(3, 50)
    q, p = Normal(mean_q, (log_var_q / 2).exp()), Normal(mean_p, (log_var_p / 2).exp())
    ours = bound.normal_kl(mean_q, log_var_q, mean_p, log_var_p)
    torch.testing.assert_close(ours, kl_divergence(q, p), rtol=1e-11, atol=0)
    assert torch.equal(bound.normal_kl(mean_q, log_var_q, mean_q, log_var_q), torch.zeros(50, dtype=torch.float64))


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [3e-3, 0.05, 1.0, 20.0])
@pytest.mark.parametrize("mean", [-30.0, -1.1, -1.0, -0.3, 0.0, 0.77, 1.0, 5.0])
def test_discretised_log_likelihood(levels: int, std: float, mean: float) -> None:
    """Ho et al. 2020, eq. 13, against 50 digits: both edges, the middle, and tails of up to 10 000 std."""
    for k in {0, 1, levels // 3, levels - 2, levels - 1}:
        x = 2 * k / (levels - 1) - 1
        ours = float(grey(levels).log_prob(scalar(x), scalar(mean), scalar(math.log(std))))
        assert ours == pytest.approx(float(level_log_probability(x, mean, std, levels)), rel=1e-9, abs=1e-15), k


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "std"), list(product([-3.0, -1.0, 0.013, 0.9, 2.0], [3e-3, 0.1, 1.0, 20.0])))
def test_levels_sum_to_one(levels: int, mean: float, std: float) -> None:
    """Σ_x P(x) = 1: the bins cover the line and do not overlap."""
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    log_p = grey(levels).log_prob(x, scalar(mean), scalar(math.log(std)))
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-11)


def test_data_as_float32_meets_its_bin() -> None:
    """The levels as `2k/(levels − 1) − 1` in float32 still find their own bin and edge."""
    levels = 256
    x = (2 * torch.arange(levels, dtype=torch.float32) / (levels - 1) - 1).double()
    log_p = grey(levels).log_prob(x, scalar(0.2), scalar(math.log(0.05)))
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0.01, 0.3])
@pytest.mark.parametrize("mean", [-100.0, -2.0, -1.0, 0.03, 1.0, 2.0, 100.0])
def test_gradient_of_the_decoder(levels: int, std: float, mean: float) -> None:
    """∂ log P/∂ mean and ∂ log P/∂ log std against numerical derivatives of the 50-digit value."""
    for k in {0, levels // 2, levels - 1}:
        x = 2 * k / (levels - 1) - 1
        arguments = scalar(mean, True), scalar(math.log(std), True)
        value = grey(levels).log_prob(scalar(x), *arguments)
        gradient = [float(g) for g in torch.autograd.grad(value, arguments)]
        with mpmath.workdps(50):
            expected = [
                mpmath.diff(lambda m, x=x: level_log_probability(x, m, std, levels), mean, h=mpmath.mpf(10) ** -15),
                mpmath.diff(
                    lambda s, x=x: level_log_probability(x, mean, mpmath.exp(s), levels),
                    mpmath.log(std),
                    h=mpmath.mpf(10) ** -15,
                ),
            ]
        assert gradient == pytest.approx([float(e) for e in expected], rel=1e-6, abs=1e-12), k


@pytest.mark.parametrize("name", NAMES)
def test_reverse_log_variance(name: str) -> None:
    """000, "Learned variance": Σ = exp(v log β + (1 − v) log β̃); otherwise small is β̃ and large is β."""
    t, schedule, x = 300, SCHEDULES[name](), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    bar, beta = alpha_bar(name), betas(name)[t - 1]
    tilde = beta * (1 - bar[t - 1]) / (1 - bar[t])

    def at(v: Tensor | None, large: bool = False) -> Tensor:
        return bound.reverse_log_variance(schedule, x, v, time(t), time(t - 1), large)

    assert float(at(None)) == pytest.approx(math.log(tilde), rel=1e-10)
    assert float(at(None, large=True)) == pytest.approx(math.log(beta), rel=1e-10)
    v = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    for large in (False, True):
        expected = [math.log(tilde ** (1 - u) * beta**u) for u in (0, 0.25, 0.5, 1)]
        np.testing.assert_allclose(at(v, large).flatten().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("levels", "large"), list(product([0, 17], [False, True])))
def test_the_variance_of_the_decoder(name: str, levels: int, large: bool) -> None:
    """Ho et al. 2020, as published with the paper: log Σ_1 is that of β̃_2, with `fixedlarge` and with `fixedsmall`.

    The density of continuous data has β_1 with `large`. Learned, it reaches from β̃_2 to β_1 in any case (Nichol &
    Dhariwal 2021).
    """
    steps, schedule = 30, SCHEDULES[name](steps=30)
    bar, beta = alpha_bar(name, steps), betas(name, steps)
    tilde = float(beta[1] * (1 - bar[1]) / (1 - bar[2]))
    x0, x0_hat = scalar(0.25).reshape(1, 1, 1, 1), scalar(0.24).reshape(1, 1, 1, 1)

    def expected(var: float) -> float:
        if levels:
            return -float(level_log_probability(0.25, 0.24, math.sqrt(var), levels))
        return -float(Normal(scalar(0.24), math.sqrt(var)).log_prob(scalar(0.25)))

    fixed = float(beta[0]) if large and not levels else tilde
    for v, var in ((None, fixed), (0.0, tilde), (1.0, float(beta[0])), (0.5, math.sqrt(tilde * beta[0]))):
        fraction = None if v is None else torch.full_like(x0, v)
        ours = bound.vlb_term(schedule, x0, x0, x0_hat, fraction, time(1), grey(levels) if levels else PLANE, large)
        assert float(ours) == pytest.approx(expected(var), rel=1e-8), v


def expected_term(
    name: str, steps: int, t: int, x0: Tensor, x_t: Tensor, x0_hat: Tensor, v: float | None, large: bool, levels: int
) -> float:
    """L_{t−1} of one image in nats per dimension from β and ᾱ, torch.distributions and mpmath."""
    bar, beta = alpha_bar(name, steps), betas(name, steps)
    a = math.sqrt(bar[t - 1]) * beta[t - 1] / (1 - bar[t])
    b = math.sqrt(1 - beta[t - 1]) * (1 - bar[t - 1]) / (1 - bar[t])
    # β̃ is 0 at t = 1 and counts as that of t = 2 there, which is the decoder's variance in both fixed cases.
    u = max(t, 2)
    tilde = float(beta[u - 1] * (1 - bar[u - 1]) / (1 - bar[u]))
    var = beta[t - 1] if large and t > 1 else tilde
    if v is not None:
        var = beta[t - 1] ** v * tilde ** (1 - v)
    if t == 1:
        pixels = zip(x0.flatten(), x0_hat.flatten(), strict=True)
        total = sum(level_log_probability(float(x), float(m), math.sqrt(var), levels) for x, m in pixels)
        return -float(total) / x0.numel()
    q, p = Normal(a * x0 + b * x_t, math.sqrt(tilde)), Normal(a * x0_hat + b * x_t, math.sqrt(var))
    return float(kl_divergence(q, p).mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("v", "large"), [(None, False), (None, True), (0.3, False)])
def test_vlb_term(name: str, v: float | None, large: bool) -> None:
    """001, eq. 2.40: the decoder at t = 1, the KL at t ≥ 2, for images of different t in one batch."""
    steps, levels, times = 24, 17, [5, 1, 2, 24, 1]
    schedule = SCHEDULES[name](steps=steps)
    x0 = torch.randint(levels, (len(times), 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() / 8 - 1
    x_t, x0_hat = randn(1, *x0.shape), x0 + 0.1 * randn(2, *x0.shape)
    fraction = None if v is None else torch.full_like(x0, v)
    terms = bound.vlb_term(schedule, x0, x_t, x0_hat, fraction, time(*times), grey(levels), large)
    for i, t in enumerate(times):
        expected = expected_term(name, steps, t, x0[i], x_t[i], x0_hat[i], v, large, levels)
        assert float(terms[i]) == pytest.approx(expected, rel=1e-9), t


@pytest.mark.parametrize("name", NAMES)
def test_small_variance_kl_is_the_snr_difference(name: str) -> None:
    """KL_t = ½ (SNR_{t−1} − SNR_t) ‖x0 − x̂0‖² for the same variance on both sides (Kingma et al. 2021, eq. 13)."""
    bar, times = alpha_bar(name), [2, 3, 10, 500, 999, 1000]
    x0, x_t, x0_hat = (randn(i, len(times), 1, 2, 2) for i in range(3))
    terms = bound.vlb_term(SCHEDULES[name](), x0, x_t, x0_hat, None, time(*times), grey(17))
    snr = bar[1:] / (1 - bar[1:])
    expected = [0.5 * (snr[t - 2] - snr[t - 1]) for t in times] * (x0 - x0_hat).square().flatten(1).mean(1).numpy()
    np.testing.assert_allclose(terms.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_prior_term(name: str) -> None:
    """KL(N(√ᾱ_T x0, 1 − ᾱ_T) ‖ N(0, 1)) by torch.distributions, per dimension."""
    steps, x0 = 50, randn(0, 3, 1, 2, 2)
    bar = alpha_bar(name, steps)[-1]
    q = Normal(math.sqrt(bar) * x0, math.sqrt(1 - bar))
    expected = kl_divergence(q, Normal(scalar(0.0), scalar(1.0))).flatten(1).mean(1)
    torch.testing.assert_close(bound.prior_term(SCHEDULES[name](steps=steps), x0), expected, rtol=1e-9, atol=1e-13)


def quadrature() -> tuple[Tensor, Tensor, np.ndarray]:
    """Standardised x0, ε and their weights: three Gauss–Hermite nodes each, exact for the bound's quadratics."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.array(list(product(nodes, nodes)))
    w = np.array([a * b for a, b in product(weights, weights)]) / weights.sum() ** 2
    x, e = torch.from_numpy(grid).T
    return x.reshape(-1, 1, 1, 1), e.reshape(-1, 1, 1, 1), w


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("large", [False, True])
def test_bound_of_gaussian_data(name: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """E over x0 ~ N(m, c²) and ε of the whole bound with the exact denoiser, E‖x0 − x̂0‖² = c²σ²/(α²c² + σ²).

    Bins of 2·10⁻⁶ make the decoder a density: ½ log 2πΣ + E‖x0 − x̂0‖²/2Σ − log(bin) up to (bin)²/24Σ < 10⁻⁸.
    """
    steps, levels = 200, 10**6 + 1
    schedule, bar, beta = SCHEDULES[name](steps=steps), alpha_bar(name, steps), betas(name, steps)
    z, eps, weights = quadrature()
    monkeypatch.setattr(
        rng,
        "normal",
        lambda key, index, draw, shape: eps.flatten(1).repeat(1, math.prod(shape)).reshape(-1, *shape),
    )
    parts = likelihood.vlb(
        GaussianDenoiser(schedule, MEAN, STD),
        MEAN + STD * z,
        torch.arange(len(z)),
        KEY,
        Fine((1, 1, 1), levels),
        steps,
        large,
        batch=64,
    )
    ours = {part: float(weights @ value.numpy()) for part, value in parts.items() if part != "terms"}

    error = STD**2 * (1 - bar) / (bar * STD**2 + 1 - bar)
    a = np.sqrt(bar[:-1]) * beta / (1 - bar[1:])
    tilde = beta * (1 - bar[:-1]) / (1 - bar[1:])
    tilde[0] = tilde[1]
    var = np.append(tilde[0], beta[1:]) if large else tilde
    kl = 0.5 * (np.log(var / tilde) + (tilde + a**2 * error[1:]) / var - 1)
    snr = bar[1:] / (1 - bar[1:])
    if not large:
        np.testing.assert_allclose(kl[1:], 0.5 * (snr[:-1] - snr[1:]) * error[2:], rtol=1e-6)
    decoder = 0.5 * math.log(2 * math.pi * var[0]) + error[1] / (2 * var[0]) - math.log(2 / (levels - 1))
    prior = 0.5 * (bar[-1] * (MEAN**2 + STD**2) - bar[-1] - math.log(1 - bar[-1]))
    expected = {"kl": kl[1:].sum(), "decoder": decoder, "prior": prior}
    expected["bound"] = sum(expected.values())
    for part, value in expected.items():
        assert ours[part] == pytest.approx(value / math.log(2), rel=1e-7, abs=1e-12), part
    # It bounds the entropy of the discretised data from above.
    entropy = 0.5 * math.log(2 * math.pi * math.e * STD**2) - math.log(2 / (levels - 1))
    assert ours["bound"] > entropy / math.log(2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("times", [23, 24, 1000])
@pytest.mark.parametrize("v", [None, 0.4])
def test_exact_vlb_is_the_plain_sum(name: str, large: bool, times: int, v: float | None) -> None:
    """With times ≥ T − 1: prior + Σ_t over every t with the same noise, one image and one time after the other."""
    steps, levels, shape = 24, 17, (1, 2, 2)
    schedule, index = SCHEDULES[name](steps=steps), torch.tensor([4, 0, 2**33])
    x0 = torch.randint(levels, (3, *shape), generator=torch.Generator().manual_seed(0)).double() / 8 - 1
    denoiser = GaussianDenoiser(schedule, -0.2, 0.6, v=v, clip=True)
    parts = likelihood.vlb(denoiser, x0, index, KEY, grey(levels), times, large, batch=7)
    assert parts["bound"].dtype == torch.float64 and parts["bound"].shape == (3,)
    bar = alpha_bar(name, steps)
    for i in range(3):
        eps = rng.normal(KEY, index[i : i + 1], 0, (steps, 4)).reshape(steps, *shape).double()
        terms = []
        for t in range(1, steps + 1):
            x_t = math.sqrt(bar[t]) * x0[i] + math.sqrt(1 - bar[t]) * eps[t - 1]
            x0_hat = denoiser.predict(x_t, time(t), NOTHING)[0].clamp(-1, 1)
            terms.append(expected_term(name, steps, t, x0[i], x_t, x0_hat, v, large, levels))
        q = Normal(math.sqrt(bar[-1]) * x0[i], math.sqrt(1 - bar[-1]))
        expected = {
            "decoder": terms[0] / math.log(2),
            "kl": sum(terms[1:]) / math.log(2),
            "prior": float(kl_divergence(q, Normal(scalar(0.0), scalar(1.0))).mean()) / math.log(2),
        }
        expected["bound"] = sum(expected.values())
        for part, value in expected.items():
            assert float(parts[part][i]) == pytest.approx(value, rel=1e-7), (part, i)
        assert parts["terms"][i].tolist() == pytest.approx([float(t) / math.log(2) for t in terms[1:]], rel=1e-7)


def test_vlb_does_not_depend_on_the_batch() -> None:
    """An image's bound is the same alone, in company, in batches of any size, and for stratified times."""
    schedule = SCHEDULES["linear"](steps=30)
    denoiser, x0 = GaussianDenoiser(schedule, 0.0, 0.5), randn(0, 5, 1, 2, 2)
    index = torch.tensor([3, 1, 4, 1 << 35, 9])
    for times in (6, 29):
        together = likelihood.vlb(denoiser, x0, index, KEY, grey(17), times, False, batch=11)
        for i in range(5):
            alone = likelihood.vlb(denoiser, x0[i : i + 1], index[i : i + 1], KEY, grey(17), times, False, batch=1000)
            for part in together:
                torch.testing.assert_close(together[part][i], alone[part][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("large", [False, True])
def test_what_the_decoder_costs_at_best(large: bool) -> None:
    """At 256 levels and x̂0 = x0: −log2 P(|z| < (1/255)/√β̃_2) = 1.305 bits/dim on `linear`; β_1 takes 1.713."""
    x0 = scalar(1 / 255).reshape(1, 1, 1, 1)
    found = float(bound.vlb_term(SCHEDULES["linear"](), x0, x0, x0, None, time(1), grey(256), large)) / math.log(2)
    bar, beta = alpha_bar("linear"), betas("linear")
    std = math.sqrt(beta[1] * (1 - bar[1]) / (1 - bar[2]))
    assert found == pytest.approx(-math.log2(math.erf(1 / 255 / std / math.sqrt(2))), rel=1e-9)
    assert found == pytest.approx(1.305, abs=5e-4)
