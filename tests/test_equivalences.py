"""One function, answered as seven targets: the same x̂0, samples and bound. Every sampler on every schedule."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from oracles import DIGITS, EVERY, PLANE, GaussianDenoiser, exact_scales, last, make_objective, noises, randn, time

from ddpm import bound
from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.guidance import ClassifierFree
from ddpm.networks.network import Network
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule

Tensor = torch.Tensor
NAMES = list(EVERY)
TARGETS = ["x0", "eps", "score", "v", "mu", "F", "flow"]
STD = 0.6
TOLERANCE = dict.fromkeys(TARGETS, 1e-10) | {"mu": 1e-7}  # µ̃ holds x0 with a weight of β_t only
# Little work for every method; with the number of network evaluations for S = 6.
COSTS: dict[str, tuple[dict, int | None]] = {
    "ancestral": ({}, 6),
    "ddim": ({"eta": 0.5}, 6),
    "plain-langevin": ({"step_size": 1e-6}, 6),
    "langevin": ({"corrections": 3, "step_size": 1e-6}, 18),
    "euler-maruyama": ({}, 6),
    "predictor-corrector": ({"corrections": 2}, 6 + 2 * 5),
    "ode-euler": ({}, 6),
    "heun": ({"churn": 4.0}, 2 * 6 - 1),
    "restart": ({"restarts": 2, "restart_steps": 3}, 2 * 6 - 1 + 2 * 3 * 2),
    "dpm-solver++": ({}, 6),
    "sde-dpm-solver++": ({}, 6),
    "unipc": ({"order": 3}, 6),
    "ode-adaptive": ({"rtol": 1e-2, "atol": 1e-2}, None),
}
PAIRS = [(n, s) for n, s in product(NAMES, COSTS) if s != "langevin" or EVERY[n].family == "VE"]


class Disguise:
    """A network that means x̂0 = tanh(0.8 x_t + 0.1)/(1 + σ/4) and says so as a target, by the papers' formulas."""

    null = Network.null

    def __init__(self, target: str, schedule: Schedule, learned: bool = False):
        self.target, self.schedule, self.learned, self.classes = target, schedule, learned, 0

    def __call__(self, x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        odds = log_snr.double().reshape(-1, *[1] * (x.ndim - 1)).exp()
        ve = self.schedule.family == "VE"
        alpha, sigma = (torch.ones_like(odds), odds.rsqrt()) if ve else ((odds / (1 + odds)).sqrt(), (1 + odds).rsqrt())
        shape = (alpha * STD if self.target == "F" else alpha) ** 2 + sigma**2
        x_t = x * shape.sqrt()
        x0 = torch.tanh(0.8 * x_t + 0.1) / (1 + sigma / 4)
        eps = (x_t - alpha * x0) / sigma
        output = self.say(x_t, x0, eps, alpha, sigma, shape)
        return torch.cat([output, torch.full_like(output, 0.2)], dim=1) if self.learned else output

    def say(self, x_t: Tensor, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, shape: Tensor) -> Tensor:
        match self.target:
            case "score":
                return -eps / sigma
            case "v":
                return alpha * eps - sigma * x0
            case "F":
                return (x0 - alpha * STD**2 / shape * x_t) / (sigma * STD / shape.sqrt())
            case "mu":
                before = (self.schedule.time_at(sigma / alpha) - 1).clamp(min=0)
                alpha_s, sigma_s = self.schedule.alpha(before), self.schedule.sigma(before)
                return alpha_s * x0 + alpha / alpha_s * sigma_s**2 / sigma * eps
        return {"x0": x0, "eps": eps, "flow": eps - x0}[self.target]


def disguised(target: str, schedule: Schedule, learned: bool = False, clip: bool = False) -> Denoiser:
    objective = make_objective(target=target, variance="learned" if learned else "fixed", sigma_data=STD)
    return Denoiser(Disguise(target, schedule, learned), objective, schedule, clip)


def sampler(method: str, steps: int = 6) -> Sampler:
    return Sampler.make({"method": method, "steps": steps} | COSTS[method][0])


@pytest.mark.parametrize("name", NAMES)
def test_same_prediction(name: str) -> None:
    """x̂0 and ε̂ of seven networks, one time per image, clipped and not."""
    schedule, t = EVERY[name](), time(1, 1.5, 2, 60, 400.5, 1000)
    x = randn(0, 6, 1, 2, 2) * (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()
    for clip in (False, True):
        expected = disguised("x0", schedule, clip=clip)(x, t)
        x0 = torch.tanh(0.8 * x + 0.1) / (1 + schedule.sigma(t) / 4)
        torch.testing.assert_close(expected.x0, x0.clamp(-1, 1) if clip else x0, rtol=1e-10, atol=1e-12)
        for target in TARGETS[1:]:
            found = disguised(target, schedule, clip=clip)(x, t)
            torch.testing.assert_close(found.x0, expected.x0, rtol=0, atol=TOLERANCE[target], msg=target)
            torch.testing.assert_close(found.eps, expected.eps, rtol=0, atol=TOLERANCE[target], msg=target)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_same_samples(name: str, method: str) -> None:
    """Every sampler on every schedule, images and points: seven networks, one result; NFE by the sampler's formula."""
    schedule = EVERY[name](steps=30)
    for shape in ((3, 1, 8, 8), (4, 2)):
        x, results = randn(1, *shape) * schedule.prior_std, []
        for target in TARGETS:
            denoiser = disguised(target, schedule)
            results.append(last(sampler(method), denoiser, x, noises(2, *shape)))
            nfe = denoiser.evaluated / shape[0]
            assert nfe == COSTS[method][1] or (method == "ode-adaptive" and (nfe - 2) % 6 == 0), target
        assert results[0].shape == shape and results[0].isfinite().all()
        for target, found in zip(TARGETS[1:], results[1:], strict=True):
            torch.testing.assert_close(found, results[0], rtol=0, atol=10 * TOLERANCE[target], msg=target)


@pytest.mark.parametrize("method", list(COSTS))
def test_evaluations_under_guidance(method: str) -> None:
    """Classifier-free guidance doubles what a sampler asks for, unless one branch has no weight."""
    schedule, x = EVERY["karras"](steps=30), randn(3, 5, 2)
    condition = Condition(torch.zeros(5, dtype=torch.int64))
    for weight, factor in ((0.0, 1), (1.0, 2)):
        guided = ClassifierFree(weight=weight)(disguised("eps", schedule))
        last_one = [*sampler(method).trajectory(guided, x, condition, noises(4, 5, 2))][-1]
        plain = disguised("eps", schedule)
        # The network ignores its labels, so guidance changes nothing but the cost.
        torch.testing.assert_close(last_one, last(sampler(method), plain, x, noises(4, 5, 2)), rtol=1e-9, atol=1e-9)
        assert guided.evaluated == factor * plain.evaluated


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_bound(name: str, learned: bool) -> None:
    """Every term of the bound for seven networks, on 17 grey levels, with fixed and with learned variance."""
    schedule, times = EVERY[name](steps=30), torch.arange(1, 31, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x0 = torch.randint(17, (30, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() / 8 - 1
    x_t, terms = schedule.noisy(x0, randn(5, *x0.shape), times), []
    for target in TARGETS:
        prediction = disguised(target, schedule, learned)(x_t, times)
        terms.append(bound.vlb_term(schedule, x0, x_t, prediction.x0, prediction.v, times, DIGITS))
    for target, term in zip(TARGETS[1:], terms[1:], strict=True):
        torch.testing.assert_close(term, terms[0], rtol=1e-7, atol=1e-9, msg=target)
    if not learned:
        # KL_t = ½ (SNR_s − SNR_t) ‖x0 − x̂0‖².
        snr = [float((a / s) ** 2) for a, s in (exact_scales(name, t, 30) for t in range(1, 31))]
        error = (disguised("x0", schedule)(x_t, times).x0 - x0).square().flatten(1).mean(1).numpy()
        np.testing.assert_allclose(terms[0][1:].numpy(), 0.5 * -np.diff(snr) * error[1:], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bound_of_continuous_data(name: str) -> None:
    """Gaussian data in nats: prior, KL and the decoder as a density, in expectation over x0 and ε by quadrature."""
    steps, mean, std = 25, 0.3, 0.5
    schedule = EVERY[name](steps=steps)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    z, eps = (torch.from_numpy(axis.reshape(-1, 1)) for axis in np.meshgrid(nodes, nodes))
    w = torch.from_numpy(np.outer(weights, weights).flatten() / weights.sum() ** 2)
    x0, denoiser = mean + std * z, GaussianDenoiser(schedule, mean, std)
    scales = [tuple(map(float, exact_scales(name, t, steps))) for t in range(steps + 1)]
    snr = [(a / s) ** 2 if s else math.inf for a, s in scales]
    for t in range(1, steps + 1):
        at = torch.full((len(w), 1), float(t), dtype=torch.float64)
        x_t = schedule.noisy(x0, eps, at)
        found = float(w @ bound.vlb_term(schedule, x0, x_t, denoiser(x_t, at).x0, None, at, PLANE))
        error = 1 / (1 / std**2 + snr[t])
        (a, noise), (after_a, after) = scales[1], scales[2]
        width = (after**2 - (after_a / a) ** 2 * noise**2) * noise**2 / after**2
        decoder = 0.5 * math.log(2 * math.pi * width) + error / (2 * width)
        assert found == pytest.approx(0.5 * (snr[t - 1] - snr[t]) * error if t > 1 else decoder, rel=1e-6)
    alpha, sigma = scales[-1]
    var = float(schedule.prior_std) ** 2
    prior = 0.5 * (sigma**2 / var - 1 - math.log(sigma**2 / var) + alpha**2 * (mean**2 + std**2) / var)
    assert float(w @ bound.prior_term(schedule, x0)) == pytest.approx(prior, rel=1e-9, abs=1e-13)
