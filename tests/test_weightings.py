"""Targets and weightings on every schedule, VE included, by the formulas of their papers; sliced score matching."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from oracles import DIGITS, EVERY, PLANE, answering, exact_scales, level_log_probability, make_objective, randn, time
from torch.distributions import Normal, kl_divergence

from ddpm.condition import NOTHING, Condition
from ddpm.objectives import Target

Tensor = torch.Tensor
NAMES = list(EVERY)
TARGETS = ["x0", "eps", "score", "v", "mu", "F", "flow"]
TIMES = [1.0, 2.0, 17.25, 400.0, 999.5, 1000.0]
STD = 0.7  # of the data, where EDM asks for it


def scales(name: str, t: float) -> tuple[float, float]:
    """α and σ by the oracle."""
    alpha, sigma = exact_scales(name, t)
    return float(alpha), float(sigma)


def definition(target: str, name: str, x0: Tensor, eps: Tensor, t: float) -> Tensor:
    """The target as its paper writes it."""
    alpha, sigma = scales(name, t)
    x_t = alpha * x0 + sigma * eps
    match target:
        case "x0":
            return x0
        case "eps":
            return eps
        case "score":
            return -(x_t - alpha * x0) / sigma**2
        case "v":
            return alpha * eps - sigma * x0
        case "flow":
            return eps - x0
        case "mu":
            # E[x_s | x_t, x0] by conditioning one normal variable on the other, s = t − 1.
            before, noise = scales(name, t - 1)
            gain = alpha / before * noise**2 / sigma**2
            return before * x0 + gain * (x_t - alpha * x0)
        case "F":
            # Karras et al. 2022, table 1, for x_t/α and σ/α, whose network sees x_t.
            level = sigma / alpha
            c_skip, c_out = STD**2 / (level**2 + STD**2), level * STD / math.sqrt(level**2 + STD**2)
            return (x0 - c_skip * x_t / alpha) / c_out
    raise AssertionError(target)


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x0, ε and t, one image per time."""
    return randn(seed, len(TIMES), 1, 2, 3), randn(seed + 1, len(TIMES), 1, 2, 3), time(*TIMES)


def outputs(target: str, name: str, x0: Tensor, eps: Tensor, x0_hat: Tensor) -> Tensor:
    """The outputs of a network that means x̂0 at these x_t."""
    found = []
    for i, t in enumerate(TIMES):
        alpha, sigma = scales(name, t)
        eps_hat = eps[i] + alpha / sigma * (x0[i] - x0_hat[i])
        found.append(definition(target, name, x0_hat[i], eps_hat, t))
    return torch.stack(found)


# ---- targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_target(target: str, name: str) -> None:
    """y by its definition, and x̂0 and ε̂ back from it, at real times too."""
    schedule, (x0, eps, t) = EVERY[name](), rows()
    method = make_objective(target, sigma_data=STD).target
    expected = torch.stack([definition(target, name, x0[i], eps[i], at) for i, at in enumerate(TIMES)])
    torch.testing.assert_close(method.of(schedule, x0, eps, t), expected, rtol=1e-7, atol=1e-9)
    x0_hat, eps_hat = method.invert(schedule, expected, schedule.noisy(x0, eps, t), t)
    # σ/α = 10⁻³ … 10⁴: an error of x0 or ε is one of the other times that.
    torch.testing.assert_close(schedule.sigma(t) * eps_hat, schedule.sigma(t) * eps, rtol=0, atol=1e-8)
    torch.testing.assert_close(schedule.alpha(t) * x0_hat, schedule.alpha(t) * x0, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["geometric", "karras"])
def test_edms_preconditioning(name: str) -> None:
    """Karras et al. 2022, table 1 and eq. 7: x̂0 = c_skip x + c_out F(c_in x), with c_in = 1/√(σ² + σ_d²)."""
    schedule, (x0, eps, t) = EVERY[name](), rows()
    output, x_t, seen = randn(9, *x0.shape), schedule.noisy(x0, eps, t), []

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        seen.append(x)
        return output

    objective = make_objective(target="F", sigma_data=STD)
    y, _ = objective.outputs(network, schedule, x_t, t, NOTHING)
    x0_hat, _ = objective.target.invert(schedule, y, x_t, t)
    for i, at in enumerate(TIMES):
        sigma = scales(name, at)[1]
        skip, out = STD**2 / (sigma**2 + STD**2), sigma * STD / math.sqrt(sigma**2 + STD**2)
        torch.testing.assert_close(seen[0][i], x_t[i] / math.sqrt(sigma**2 + STD**2), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(x0_hat[i], skip * x_t[i] + out * output[i], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["linear", "karras"])
def test_network_sees_unit_scale(name: str, target: str) -> None:
    """x_t/√(α² + σ²) for every target but F, which divides by the data's own √(α² σ_d² + σ²)."""
    schedule, t = EVERY[name](), time(*TIMES)
    scale = make_objective(target, sigma_data=STD).target.input_scale(schedule, t).flatten()
    for i, at in enumerate(TIMES):
        alpha, sigma = scales(name, at)
        expected = math.hypot(alpha * STD if target == "F" else alpha, sigma)
        assert float(scale[i]) == pytest.approx(1 / expected, rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp-sde"])
def test_f_is_minus_v(name: str) -> None:
    """Karras et al. 2022, appendix B: with σ_d = 1 on a VP schedule F = −v."""
    schedule, (x0, eps, t) = EVERY[name](), rows()
    f, v = make_objective("F", sigma_data=1.0).target, Target.make({"method": "v"})
    torch.testing.assert_close(f.of(schedule, x0, eps, t), -v.of(schedule, x0, eps, t), rtol=1e-12, atol=1e-12)


# ---- weightings -------------------------------------------------------------------------------------------


def per_x0(weighting: str, name: str, t: float) -> float:
    """The weight of ‖x0 − x̂0‖² in the paper that the weighting is from."""
    alpha, sigma = scales(name, t)
    snr = (alpha / sigma) ** 2
    match weighting:
        case "edm":
            level = sigma / alpha
            return (level**2 + STD**2) / (level * STD) ** 2
        case "min-snr":
            return min(snr, 3.0)
        case "vlb":
            # At t = 1 document 000's first term, ‖x0 − x̂0‖² over twice the posterior variance of the step 2 → 1.
            earlier = [scales(name, u) for u in ((1, 2) if t == 1 else (t - 1, t))]
            (alpha_s, sigma_s), (alpha_t, sigma_t) = earlier
            if t > 1:
                return 1000 / math.log(2) * 0.5 * ((alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2)
            step = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
            return 1000 / math.log(2) / (2 * step * sigma_s**2 / sigma_t**2)
    raise AssertionError(weighting)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighting", ["edm", "min-snr", "vlb"])
def test_weighting_is_the_same_for_every_target(weighting: str, name: str) -> None:
    """Karras et al. 2022, eq. 8; Hang et al. 2023; Kingma et al. 2021, eq. 13: one loss in x̂0, six outputs."""
    schedule, (x0, eps, t) = EVERY[name](), rows()
    x0_hat = x0 + randn(3, *x0.shape)
    error = (x0 - x0_hat).square().flatten(1).mean(1).numpy()
    expected = np.array([per_x0(weighting, name, at) for at in TIMES]) * error
    for target in TARGETS:
        objective = make_objective(target=target, weighting=weighting, sigma_data=STD, gamma=3.0)
        network = answering(outputs(target, name, x0, eps, x0_hat))
        loss = objective.loss(network, schedule, x0, eps, t, NOTHING, space=DIGITS)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5, err_msg=target)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_raw_error(name: str) -> None:
    """EDM: λ c_out² = 1, so 1 for F. Min-SNR: min(SNR, γ)/SNR for ε, min(SNR, γ) for x0. Simple: σ² for the score."""
    schedule = EVERY[name]()
    t = time(*TIMES)
    snr, sigma = (
        np.array(v) for v in zip(*(((a / s) ** 2, s) for a, s in (scales(name, u) for u in TIMES)), strict=True)
    )

    def weight(target: str, weighting: str) -> np.ndarray:
        return make_objective(target, weighting, sigma_data=STD).weight(schedule, t).flatten().numpy()

    np.testing.assert_allclose(weight("F", "edm"), 1, rtol=1e-9)
    np.testing.assert_allclose(weight("eps", "min-snr"), np.minimum(snr, 5) / snr, rtol=1e-8)
    np.testing.assert_allclose(weight("x0", "min-snr"), np.minimum(snr, 5), rtol=1e-8)
    np.testing.assert_allclose(weight("score", "simple"), sigma**2, rtol=1e-9)
    for target in ("x0", "eps", "v", "mu", "F"):
        assert weight(target, "simple").tolist() == [1] * len(TIMES)


# ---- the bound alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine", "geometric"])
@pytest.mark.parametrize("target", TARGETS)
def test_learned_variance_by_the_bound_alone(target: str, name: str) -> None:
    """002, table 2, "L, learned Σ": T/ln 2 · L_{t−1} and its gradient in both heads, by torch.distributions."""
    steps, times = 40, [2, 3, 21, 40]
    schedule, t = EVERY[name](steps=steps), time(*times)
    x0, eps, raw, head = (randn(i, len(times), 1, 2, 2) for i in range(4))
    output = torch.cat([raw, 0.5 * head], dim=1).requires_grad_()
    objective = make_objective(target=target, weighting="vlb", variance="learned", vlb_weight=123.0, sigma_data=STD)
    loss = objective.loss(answering(output), schedule, x0, eps, t, NOTHING, space=DIGITS)
    expected = []
    for i, at in enumerate(times):
        (alpha_s, sigma_s), (alpha, sigma) = (tuple(map(float, exact_scales(name, u, steps))) for u in (at - 1, at))
        x_t = alpha * x0[i] + sigma * eps[i]
        p, q = (float(c) for c in objective.target.coefficients(schedule, time(at)))
        x0_hat = (q * x_t - sigma * output[i, :1]) / (alpha * q - sigma * p)
        step = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
        small, v = step * sigma_s**2 / sigma**2, (output[i, 1:] + 1) / 2
        means = [alpha_s * x + alpha / alpha_s * sigma_s**2 / sigma**2 * (x_t - alpha * x) for x in (x0[i], x0_hat)]
        law = Normal(means[1], (step**v * small ** (1 - v)).sqrt())
        expected.append(steps / math.log(2) * kl_divergence(Normal(means[0], math.sqrt(small)), law).mean())
    theirs = torch.stack(expected)
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=1e-9)
    (gradient,), (reference,) = (torch.autograd.grad(value.sum(), output) for value in (loss, theirs))
    assert (reference != 0).all()
    torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-9)


def test_the_bounds_decoder_trains_both_heads() -> None:
    """At t = 1 the loss is T/ln 2 times −log P(x0) of the grey level, by 50 digits and by differences."""
    schedule, t = EVERY["linear"](steps=40), time(1)
    x0 = torch.tensor([[[[-1.0, 0.25, 1.0]]]], dtype=torch.float64)
    eps, output = randn(4, *x0.shape), torch.cat([randn(5, *x0.shape), 0.3 * randn(6, *x0.shape)], dim=1)
    objective = make_objective(target="eps", weighting="vlb", variance="learned")

    def loss(output: Tensor) -> Tensor:
        return objective.loss(answering(output), schedule, x0, eps, t, NOTHING, space=DIGITS)[0]

    beta = [25 * 1e-4, 25 * (1e-4 + (0.02 - 1e-4) / 39)]  # scaled by 1000/T
    noise = [beta[0], 1 - (1 - beta[0]) * (1 - beta[1])]
    small, v = beta[1] * noise[0] / noise[1], (output[0, 1] + 1) / 2
    x_t = math.sqrt(1 - beta[0]) * x0 + math.sqrt(beta[0]) * eps
    mean = (x_t - math.sqrt(beta[0]) * output[:, :1]) / math.sqrt(1 - beta[0])
    std = (0.5 * (v * math.log(beta[0]) + (1 - v) * math.log(small))).exp()
    pixels = zip(x0.flatten(), mean.flatten(), std.flatten(), strict=True)
    expected = -sum(level_log_probability(*map(float, pixel), 17) for pixel in pixels) / 3 * 40 / math.log(2)
    assert float(loss(output)) == pytest.approx(float(expected), rel=1e-7)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(output), output)
    for place in product((0,), (0, 1), (0,), range(3)):
        shift = torch.zeros_like(output).index_put(tuple(torch.tensor([i]) for i in place), torch.tensor(1e-5).double())
        difference = float((loss(output + shift) - loss(output - shift)).detach()) / 2e-5
        assert float(gradient[place]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


# ---- sliced score matching --------------------------------------------------------------------------------


def curved(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
    """A smooth function whose Jacobian is neither diagonal nor symmetric."""
    mixing = torch.tensor([[0.7, -1.1, 0.2], [0.4, 0.3, 0.9], [-0.6, 0.5, -0.2]], dtype=torch.float64)
    return torch.tanh(x @ mixing + 0.3) - 0.2 * x + 0.01 * log_snr[:, None]


@pytest.mark.parametrize("name", ["linear", "karras"])
@pytest.mark.parametrize("weighting", ["simple", "edm"])
def test_sliced_score_matching_is_unbiased(weighting: str, name: str) -> None:
    """001, eq. 3.12: over all signs, w/D · (2 tr ∂s/∂x_t + ‖s‖²), the Jacobian written out."""
    schedule = EVERY[name]()
    objective = make_objective(target="score", matching="sliced", weighting=weighting)
    x0, eps, t = randn(0, 2, 3), randn(1, 2, 3), torch.tensor([[30.0], [700.0]]).double()
    signs = [torch.tensor(s).double().expand(2, 3) for s in product((-1, 1), repeat=3)]
    losses = [objective.loss(curved, schedule, x0, eps, t, None, PLANE, lambda s=s: s).detach() for s in signs]
    weight = objective.weight(schedule, t).flatten()
    for i in range(2):
        scale = objective.target.input_scale(schedule, t[i])

        def score(x: Tensor, i: int = i, scale: Tensor = scale) -> Tensor:
            return curved(scale * x[None], schedule.log_snr(t[i]), NOTHING)[0]

        x_t = schedule.noisy(x0, eps, t)[i]
        trace = torch.autograd.functional.jacobian(score, x_t).trace()
        expected = float(weight[i] * (2 * trace + score(x_t).square().sum()) / 3)
        assert float(torch.stack(losses).mean(0)[i]) == pytest.approx(expected, rel=1e-10)
        assert float(torch.stack(losses).std(0)[i]) > 1e-3 * abs(expected)


@pytest.mark.parametrize(("name", "t"), [("linear", 200.0), ("geometric", 600.0)])
def test_sliced_is_denoising_score_matching(name: str, t: float) -> None:
    """By parts: over x0 ~ N(0.3, 0.5²) and ε, by quadrature, both losses have one gradient in the network.

    For s = −(a x + b) both vanish at the exact score, a = 1/V and b = −m/V.
    """
    schedule = EVERY[name]()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, eps = (torch.from_numpy(axis.reshape(-1, 1)) for axis in np.meshgrid(nodes, nodes))
    w = torch.from_numpy(np.outer(weights, weights).flatten() / weights.sum() ** 2)
    at = torch.full((len(w), 1), t, dtype=torch.float64)

    def gradients(network: Callable[..., Tensor], parameters: Tensor) -> list[Tensor]:
        found = []
        for matching in ("denoising", "sliced"):
            objective = make_objective(target="score", matching=matching)
            loss = objective.loss(network, schedule, 0.3 + 0.5 * z, eps, at, None, PLANE, lambda: torch.ones_like(z))
            found.append(torch.autograd.grad((w * loss).sum(), parameters)[0])
        return found

    parameters = torch.tensor([0.8, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    a, b, c = parameters
    denoising, sliced = gradients(lambda x, *_: a * torch.tanh(x) + b * x + c, parameters)
    assert (denoising.abs() > 1e-2).all()
    torch.testing.assert_close(sliced, denoising, rtol=1e-7, atol=1e-9)

    alpha, sigma = scales(name, t)
    scale, var = math.hypot(alpha, sigma), alpha**2 * 0.25 + sigma**2
    exact = torch.tensor([scale / var, -alpha * 0.3 / var], dtype=torch.float64, requires_grad=True)
    for gradient in gradients(lambda x, *_: -(exact[0] * x + exact[1]), exact):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
