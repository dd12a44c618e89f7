"""Targets, their inversion and their losses."""

import math
import re
from itertools import product

import numpy as np
import pytest
import torch
from oracles import DIGITS, SCHEDULES, alpha_bar, answering, betas, level_log_probability, make_objective, randn, time
from torch.distributions import Normal, kl_divergence

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.objectives import EDM, NoiseTarget, Objective, Preconditioned, Target
from ddpm.schedules import Linear, Schedule
from ddpm.spaces import Pixels

Tensor = torch.Tensor
NAMES = list(SCHEDULES)
TARGETS = ["x0", "eps", "score", "v", "mu"]
TIMES = [1, 2, 3, 10, 100, 400, 700, 990, 999, 1000]
SHAPE = (1, 2, 3)


def target_by_definition(target: str, schedule: str, steps: int, x0: Tensor, eps: Tensor, t: int) -> Tensor:
    """The target as its paper writes it, from β_t and ᾱ_t alone."""
    bar, beta = alpha_bar(schedule, steps), betas(schedule, steps)[t - 1]
    now, before = bar[t], bar[t - 1]
    x_t = math.sqrt(now) * x0 + math.sqrt(1 - now) * eps
    if target == "score":
        return -(x_t - math.sqrt(now) * x0) / (1 - now)
    if target == "v":
        return math.sqrt(now) * eps - math.sqrt(1 - now) * x0
    if target == "mu":
        return (math.sqrt(1 - beta) * (1 - before) * x_t + math.sqrt(before) * beta * x0) / (1 - now)
    return {"x0": x0, "eps": eps}[target]


def sample(times: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x0, ε and t, one image per time."""
    return randn(seed, len(times), *SHAPE), randn(seed + 1, len(times), *SHAPE), time(*times)


def half_snr_difference(name: str, steps: int, t: int) -> float:
    """½ (SNR_{t−1} − SNR_t)."""
    bar = alpha_bar(name, steps)
    return 0.5 * float(bar[t - 1] / (1 - bar[t - 1]) - bar[t] / (1 - bar[t]))


def small_variance(name: str, steps: int, t: int) -> float:
    """σ_q² = β̃_t; at t = 1, where it is 0, that of t = 2."""
    bar, beta, t = alpha_bar(name, steps), betas(name, steps), max(t, 2)
    return float(beta[t - 1] * (1 - bar[t - 1]) / (1 - bar[t]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_target_is_its_definition(target: str, name: str) -> None:
    """x0, ε, −(x_t − √ᾱ x0)/(1 − ᾱ), √ᾱ ε − √(1 − ᾱ) x0 and document 000's µ_q(x_t, x0)."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    y = Target.make({"method": target}).of(schedule, x0, eps, t)
    for i, at in enumerate(TIMES):
        expected = target_by_definition(target, name, 1000, x0[i], eps[i], at)
        torch.testing.assert_close(y[i], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_inversion(target: str, name: str) -> None:
    """x̂0 = (q x_t − σ y)/D and ε̂ = (α y − p x_t)/D give back x0 and ε, one time per image or a single one."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    method = Target.make({"method": target})
    y, x_t = method.of(schedule, x0, eps, t), schedule.noisy(x0, eps, t)
    x0_hat, eps_hat = method.invert(schedule, y, x_t, t)
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-10)
    for i, at in enumerate(TIMES):
        one, _ = method.invert(schedule, y[i : i + 1], x_t[i : i + 1], time(at))
        torch.testing.assert_close(one[0], x0[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_inversion_of_a_wrong_target_stays_on_x_t(target: str, name: str) -> None:
    """Whatever the network says, α x̂0 + σ ε̂ = x_t."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    x_t = schedule.noisy(x0, eps, t)
    y = Target.make({"method": target}).of(schedule, x0 + 0.1 * randn(2, *x0.shape), eps + 0.1 * randn(3, *x0.shape), t)
    x0_hat, eps_hat = Target.make({"method": target}).invert(schedule, y, x_t, t)
    scale = (schedule.alpha(t) * x0_hat).abs().clamp(min=1)
    assert float(((schedule.alpha(t) * x0_hat + schedule.sigma(t) * eps_hat - x_t) / scale).abs().max()) < 1e-10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_gain(target: str, name: str) -> None:
    """‖Δy‖² = (D/σ)² ‖Δx0‖² at a fixed x_t."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    method, x_t = Target.make({"method": target}), schedule.noisy(x0, eps, t)
    gain = method.gain(schedule, t).flatten()
    for i, at in enumerate(TIMES):
        x0_hat = x0[i] + randn(4, *SHAPE)
        bar = alpha_bar(name)[at]
        eps_hat = (x_t[i] - math.sqrt(bar) * x0_hat) / math.sqrt(1 - bar)
        y, y_hat = (
            target_by_definition(target, name, 1000, *pair, at) for pair in ((x0[i], eps[i]), (x0_hat, eps_hat))
        )
        ratio = float((y - y_hat).square().sum() / (x0[i] - x0_hat).square().sum())
        assert float(gain[i]) == pytest.approx(ratio, rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_network_output_becomes_x0(target: str, name: str) -> None:
    """`Denoiser` inverts the raw output; the network is conditioned on log SNR, one value per image."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    objective, seen = make_objective(target=target), []

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        seen.append((log_snr, condition))
        return objective.target.of(schedule, x0, eps, t)

    prediction = Denoiser(network, objective, schedule, clip=False)(schedule.noisy(x0, eps, t), t)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-10)
    assert prediction.v is None
    bar = alpha_bar(name)[TIMES]
    np.testing.assert_allclose(seen[0][0].numpy(), np.log(bar / (1 - bar)), rtol=1e-9, atol=1e-10)
    assert seen[0][0].shape == (len(TIMES),) and seen[0][1] is NOTHING


def test_single_time_conditions_every_image() -> None:
    """A scalar time reaches the network as one log SNR per image, in the images' type."""
    schedule, seen = SCHEDULES["linear"](), []

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        seen.append(log_snr)
        return x

    Denoiser(network, make_objective(target="eps"), schedule)(torch.zeros(3, *SHAPE), time(500))
    assert seen[0].shape == (3,) and seen[0].dtype == torch.float32
    bar = alpha_bar("linear")[500]
    np.testing.assert_allclose(seen[0].numpy(), math.log(bar / (1 - bar)), rtol=1e-6)


def predicted(target: str, schedule: Schedule, x0: Tensor, eps: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
    """The output of a network that means x̂0."""
    x_t = schedule.noisy(x0, eps, t)
    eps_hat = (x_t - schedule.alpha(t) * x0_hat) / schedule.sigma(t)
    return Target.make({"method": target}).of(schedule, x0_hat, eps_hat, t)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [21, 1000])
def test_one_bound_in_five_disguises(name: str, steps: int) -> None:
    """000, "Unified loss framework": with `vlb` weighting every target's loss is T/ln 2 · ½ (SNR_{t−1} − SNR_t) ‖Δx0‖²
    per dimension; at t = 1, T/ln 2 · ‖Δx0‖²/2σ_q² (000, first term of L_µ)."""
    times = [1, 2, 3, steps // 2, steps - 1, steps]
    schedule, (x0, eps, t) = SCHEDULES[name](steps=steps), sample(times)
    x0_hat = x0 + randn(5, *x0.shape)
    error = (x0 - x0_hat).square().flatten(1).mean(1).numpy()
    factor = [1 / (2 * small_variance(name, steps, 1))] + [half_snr_difference(name, steps, u) for u in times[1:]]
    expected = steps / math.log(2) * np.array(factor) * error
    for target in TARGETS:
        output = predicted(target, schedule, x0, eps, x0_hat, t)
        loss = make_objective(target=target, weighting="vlb").loss(
            answering(output), schedule, x0, eps, t, None, space=DIGITS
        )
        assert loss.shape == (len(times),)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-7, err_msg=target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["x0", "eps", "score", "mu"])
def test_vlb_weights_as_document_000_prints_them(target: str, name: str) -> None:
    """000, L_x0, L_ε, L_s and L_µ: the factor before each squared error, in bits per dimension and summed over t."""
    bar, beta = alpha_bar(name), betas(name)
    weight = make_objective(target=target, weighting="vlb").weight(SCHEDULES[name](), time(*TIMES)).flatten()
    for i, t in enumerate(TIMES):
        alpha, now, before = 1 - beta[t - 1], bar[t], bar[t - 1]
        factor = {
            "x0": (1 - alpha) ** 2 / (1 - now) ** 2 * before,
            "eps": (1 - alpha) ** 2 / ((1 - now) * alpha),
            "score": (1 - alpha) ** 2 / alpha,
            "mu": 1,
        }[target] / (2 * small_variance(name, 1000, t))
        assert float(weight[i]) == pytest.approx(1000 / math.log(2) * factor, rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_simplified_losses(target: str, name: str) -> None:
    """000, "Simplified losses": ‖ε − ε̂‖², (1 − ᾱ) ‖s − ŝ‖², ‖x0 − x̂0‖²; plain squared error for v and µ too."""
    schedule, (x0, eps, t) = SCHEDULES[name](), sample(TIMES)
    output = randn(6, *x0.shape)
    loss = make_objective(target=target).loss(answering(output), schedule, x0, eps, t, None, space=DIGITS)
    for i, at in enumerate(TIMES):
        y = target_by_definition(target, name, 1000, x0[i], eps[i], at)
        weight = 1 - alpha_bar(name)[at] if target == "score" else 1
        assert float(loss[i]) == pytest.approx(float(weight * (y - output[i]).square().mean()), rel=1e-9)


def test_score_loss_is_the_noise_loss() -> None:
    """000, "Simplified losses": (1 − ᾱ) ‖s − ŝ‖² is ‖ε − ε̂‖² for ŝ = −ε̂/σ."""
    schedule, (x0, eps, t) = SCHEDULES["linear"](), sample(TIMES)
    eps_hat = randn(7, *x0.shape)
    by_noise = make_objective(target="eps").loss(answering(eps_hat), schedule, x0, eps, t, None, space=DIGITS)
    by_score = make_objective(target="score").loss(
        answering(-eps_hat / schedule.sigma(t)), schedule, x0, eps, t, None, space=DIGITS
    )
    torch.testing.assert_close(by_noise, by_score, rtol=1e-12, atol=0)


def test_variance_head_is_mapped_to_the_unit_interval() -> None:
    """Nichol & Dhariwal 2021: the head's −1 … 1 is v = 0 … 1; the first half of the channels is the target."""
    objective = make_objective(target="eps", variance="learned")
    output = torch.cat([torch.full((1, 3, 1, 1), 5.0), torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)], dim=1)
    y, v = objective.outputs(answering(output), Linear(), output[:, :3], time(500), NOTHING)
    assert y.flatten().tolist() == [5, 5, 5] and v.flatten().tolist() == [0, 0.5, 1]
    y, v = make_objective(target="eps").outputs(answering(output), Linear(), output, time(500), NOTHING)
    assert y is output and v is None


def learned_vlb(
    name: str, steps: int, levels: int, x0: Tensor, x_t: Tensor, x0_hat: Tensor, v: Tensor, t: int
) -> float:
    """L_{t−1} of one image in nats per dimension, by torch.distributions and mpmath from β and ᾱ alone."""
    bar, beta = alpha_bar(name, steps), betas(name, steps)[t - 1]
    now, before = bar[t], bar[t - 1]
    a, b = math.sqrt(before) * beta / (1 - now), math.sqrt(1 - beta) * (1 - before) / (1 - now)
    small = small_variance(name, steps, t)
    std = (beta**v * small ** (1 - v)).sqrt()
    if t > 1:
        q, p = Normal(a * x0 + b * x_t, math.sqrt(small)), Normal(a * x0_hat + b * x_t, std)
        return float(kl_divergence(q, p).mean())
    pixels = zip(x0.flatten(), x0_hat.flatten(), std.flatten(), strict=True)
    return -float(sum(level_log_probability(*map(float, pixel), levels) for pixel in pixels)) / x0.numel()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vlb_weight", [0.001, 1000.0])
@pytest.mark.parametrize("target", ["eps", "x0", "mu"])
def test_learned_variance_loss(target: str, vlb_weight: float, name: str) -> None:
    """001, eqs. 4.1 and 4.2: L_simple + λ T/ln 2 · L_{t−1}, the VLB summed over t in bits/dim; Σ = β^v β̃^(1−v)."""
    steps, levels, times = 50, 17, [1, 2, 10, 49, 50, 1]
    schedule = SCHEDULES[name](steps=steps)
    x0 = torch.randint(levels, (len(times), *SHAPE), generator=torch.Generator().manual_seed(0)).double() / 8 - 1
    eps, t = randn(1, *x0.shape), time(*times)
    x0_hat = x0 + 0.1 * randn(2, *x0.shape)
    v = torch.rand(x0.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    output = torch.cat([predicted(target, schedule, x0, eps, x0_hat, t), 2 * v - 1], dim=1)
    learned = make_objective(target=target, variance="learned", vlb_weight=vlb_weight)
    loss = learned.loss(answering(output), schedule, x0, eps, t, None, Pixels(SHAPE, levels))
    simple = make_objective(target=target).loss(
        answering(output[:, :1]), schedule, x0, eps, t, None, Pixels(SHAPE, levels)
    )
    x_t = schedule.noisy(x0, eps, t)
    for i, at in enumerate(times):
        term = learned_vlb(name, steps, levels, x0[i], x_t[i], x0_hat[i], v[i], at)
        expected = float(simple[i]) + vlb_weight * steps / math.log(2) * float(term)
        assert float(loss[i]) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_means_gradient_is_the_simple_losss(target: str, name: str) -> None:
    """Nichol & Dhariwal 2021, section 3.1: L_vlb trains the variance alone, however large λ is."""
    schedule, (x0, eps, t) = SCHEDULES[name](steps=50), sample([1, 2, 25, 50])
    x0 = x0.clamp(-1, 1)
    output = torch.cat([predicted(target, schedule, x0, eps, x0 + 0.1, t), randn(4, *x0.shape)], dim=1).requires_grad_()
    mean = output.detach()[:, :1].requires_grad_()
    objective = make_objective(target=target, variance="learned", vlb_weight=10.0)
    (both,) = torch.autograd.grad(objective.loss(answering(output), schedule, x0, eps, t, None, DIGITS).sum(), output)
    (alone,) = torch.autograd.grad(
        make_objective(target=target).loss(answering(mean), schedule, x0, eps, t, None, DIGITS).sum(), mean
    )
    assert torch.equal(both[:, :1], alone)
    assert (both[:, 1:] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_variances_gradient(name: str) -> None:
    """∂KL/∂v = ½ (log β − log β̃) (1 − (β̃ + (µ̃ − µ)²)/Σ), times λ T/ln 2 and ½ for the head, per dimension."""
    steps, at, vlb_weight = 50, 20, 0.7
    schedule, (x0, eps, t) = SCHEDULES[name](steps=steps), sample([at])
    x0_hat, head = x0 + 0.3 * randn(5, *x0.shape), randn(6, *x0.shape)
    output = torch.cat([predicted("eps", schedule, x0, eps, x0_hat, t), head], dim=1).requires_grad_()
    loss = make_objective(target="eps", variance="learned", vlb_weight=vlb_weight).loss(
        answering(output), schedule, x0, eps, t, None, DIGITS
    )
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    bar, beta = alpha_bar(name, steps), betas(name, steps)[at - 1]
    small = small_variance(name, steps, at)
    a, v = math.sqrt(bar[at - 1]) * beta / (1 - bar[at]), (head + 1) / 2
    sigma = beta**v * small ** (1 - v)
    kl = 0.5 * math.log(beta / small) * (1 - (small + a**2 * (x0 - x0_hat) ** 2) / sigma)
    expected = vlb_weight * steps / math.log(2) * kl / 2 / x0[0].numel()
    torch.testing.assert_close(gradient[:, 1:], expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_gradients_stay_finite(levels: int, far: float, dtype: torch.dtype) -> None:
    """Loss and gradient with predictions far off, on both edges, at t = 1 and beside it, heads outside −1 … 1."""
    schedule, t = SCHEDULES["linear"](), time(1, 1, 1, 2, 1000)
    inner = 2 * (levels // 3) / (levels - 1) - 1
    x0 = torch.tensor([-1.0, 1.0, inner, -1.0, 1.0], dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    eps = randn(8, *x0.shape)
    x0_hat = x0 + far * torch.tensor([[1.0, -1.0], [0.5, -2.0]], dtype=torch.float64)
    for target, weighting, head in product(TARGETS, ["simple", "vlb"], [-1.0, 0.0, 1.0, 5.0]):
        mean = predicted(target, schedule, x0, eps, x0_hat, t)
        output = torch.cat([mean, torch.full_like(mean, head)], dim=1).to(dtype).requires_grad_()
        objective = make_objective(target=target, weighting=weighting, variance="learned", vlb_weight=1.0)
        loss = objective.loss(answering(output), schedule, x0.to(dtype), eps.to(dtype), t, None, Pixels(SHAPE, levels))
        (gradient,) = torch.autograd.grad(loss.sum(), output)
        wrong = (~gradient.isfinite()).nonzero().tolist()
        assert loss.dtype == dtype and bool(loss.isfinite().all())
        assert not wrong, f"{target}, {weighting}, head {head}: (image, head, row, column) {wrong}"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": "eps", "weighting": "snr"}, "weighting: 'snr'"),
        ({"target": "eps", "variance": "large"}, "variance: 'large'"),
        ({"target": "eps", "matching": "plain"}, "matching: 'plain'; known are denoising, sliced"),
        ({"target": "eps", "times": "even"}, "times: 'even'; known are importance, log-normal, logit-normal, uniform"),
        ({"target": "eps", "variance": "learned", "vlb_weight": -1.0}, "vlb_weight: -1.0; it must be at least 0"),
        ({"target": "eps", "variance": "learned", "vlb_weight": math.nan}, "vlb_weight: nan; it must be a finite"),
        ({"target": "eps", "matching": "sliced"}, "target: 'eps'; with matching 'sliced' it must be 'score'"),
        (
            {"target": "score", "matching": "sliced", "variance": "learned"},
            "variance: 'learned'; with matching 'sliced' it must be 'fixed'",
        ),
        ({"target": "eps", "weighting": "edm", "gamma": 3.0, "sigma_data": 1}, "gamma: 3.0; none of target eps, "),
        ({"target": "eps", "variance": "learned", "weighting": "vlb", "vlb_weight": 1.0}, "vlb_weight: 1.0; none of"),
    ],
)
def test_bad_parameters_are_named(parameters: dict, message: str) -> None:
    """The message names the parameter and its value."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Objective.make(parameters)


def test_a_parameter_goes_to_every_component_that_declares_it() -> None:
    """σ_d of the target F and of EDM's weighting is one number of the configuration; each keeps its default alone."""
    both = Objective.make({"target": "F", "weighting": "edm", "sigma_data": 0.3})
    assert both == Objective(Preconditioned(0.3), EDM(0.3)) != Objective(Preconditioned(0.3), EDM())
    assert both.target.sigma_data == both.weighting.sigma_data == 0.3
    assert Objective(NoiseTarget()) == Objective.make({"target": "eps"})


def test_unknown_target_is_named() -> None:
    """The message names the target and lists those that are known."""
    with pytest.raises(ValueError, match="'epsilon'; known are F, eps, flow, mu, score, v, x0"):
        Objective.make({"target": "epsilon"})


@pytest.mark.parametrize(
    "objective",
    [
        make_objective(target="eps"),
        make_objective(target="score", matching="sliced"),
        make_objective(target="eps", variance="learned"),
        make_objective(target="eps", variance="learned", weighting="vlb"),
    ],
)
def test_labels_reach_the_network_in_training(objective: Objective) -> None:
    """Of every loss: the condition that it is given, unchanged."""
    heads, seen = objective.variance.heads, []

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        seen.append(condition)
        return torch.cat([x] * heads, dim=1)

    (x0, eps, t), condition = sample([1, 400]), Condition(torch.tensor([7, 3]))
    objective.loss(network, Linear(), x0, eps, t, condition, DIGITS, lambda: torch.ones_like(x0))
    assert len(seen) == 1 and seen[0] is condition


@pytest.mark.parametrize("target", TARGETS)
def test_coefficients_of_whole_times_are_float64(target: str) -> None:
    """Times that come as integers give the same float64 coefficients and weights."""
    made, t = Target.make({"method": target}), torch.tensor([1, 500])
    for of in (made.coefficients, lambda *given: (made.simple_weight(*given),)):
        for found, expected in zip(of(Linear(), t), of(Linear(), t.double()), strict=True):
            assert found.dtype == torch.float64 and torch.equal(found, expected)
