"""The probability-flow ODE and the density that it carries, where both are known in closed form."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from oracles import (
    EVERY,
    ClassDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    VectorDenoiser,
    last,
    log_normal,
    make_objective,
    randn,
    time,
)
from scipy import optimize, stats

from ddpm import probability_flow
from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.samplers import AdaptiveODE
from ddpm.schedules import Schedule

Tensor = torch.Tensor
NAMES = list(EVERY)
MEAN, STD = 0.3, 0.5
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def standard(schedule: Schedule, t: float, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """Mean and standard deviation of q(x_t) for data N(mean, std²)."""
    alpha, sigma = float(schedule.alpha(time(t))), float(schedule.sigma(time(t)))
    return alpha * mean, math.hypot(alpha * std, sigma)


def carried(schedule: Schedule, x: Tensor, t: float, s: float, mean: float = MEAN, std: float = STD) -> Tensor:
    """x_s of the flow through x_t for Gaussian data: it keeps (x − α m)/√(α² c² + σ²)."""
    (m_t, v_t), (m_s, v_s) = (standard(schedule, u, mean, std) for u in (t, s))
    return m_s + v_s / v_t * (x - m_t)


# ---- the flow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loose", ["rtol", "atol"])
def test_each_tolerance_loosens_the_solver(loose: str) -> None:
    """With one of them large a step is accepted sooner: fewer evaluations, and a larger error."""
    schedule, start = EVERY["vp-sde"](), randn(4, 8, 1, 2, 2)
    found = {}
    for value in (1e-9, 1e-1):
        denoiser = GaussianDenoiser(schedule, MEAN, STD)
        tolerances = {"rtol": 1e-9, "atol": 1e-9} | {loose: value}
        (x,) = probability_flow.solve(denoiser, start, times(1000, 1), NOTHING, **tolerances)
        found[value] = denoiser.evaluated, float((x - carried(schedule, start, 1000, 1)).abs().max())
    assert found[1e-1][0] < 0.7 * found[1e-9][0] and found[1e-1][1] > 10 * found[1e-9][1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", [(1000.0, 600.0, 30.5, 1.0), (0.4, 2.0, 1000.0)])
def test_flow_of_a_gaussian(path: tuple[float, ...], name: str) -> None:
    """x at every asked time, in either direction, also below 1; one batch of images."""
    schedule = EVERY[name]()
    x = randn(0, 3, 1, 2, 2) * standard(schedule, path[0])[1]
    found = list(probability_flow.solve(GaussianDenoiser(schedule, MEAN, STD), x, times(*path), NOTHING, **TIGHT))
    assert len(found) == len(path) - 1
    for value, t in zip(found, path[1:], strict=True):
        torch.testing.assert_close(value, carried(schedule, x, path[0], t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_velocity(name: str) -> None:
    """dz/dℓ of the exact flow at ℓ = ln(σ/α), by central differences in t, and its derivative in z."""
    schedule, x = EVERY[name](), randn(1, 4, 2)
    denoiser, probe = GaussianDenoiser(schedule, MEAN, STD), torch.ones(4, 2, dtype=torch.float64)
    for t in (1.7, 250.3, 900.6):

        def z_and_ell(u: float, t: float = t) -> tuple[Tensor, float]:
            alpha, sigma = float(schedule.alpha(time(u))), float(schedule.sigma(time(u)))
            return carried(schedule, x, t, u) / math.hypot(alpha, sigma), math.log(sigma / alpha)

        (after, ell_after), (before, ell_before) = z_and_ell(t + 1e-5), z_and_ell(t - 1e-5)
        slope = (after - before) / (ell_after - ell_before)
        z, ell = z_and_ell(t)
        velocity, trace = probability_flow.Velocity(denoiser, None, probe)(
            torch.tensor(ell, dtype=torch.float64), (z, None)
        )
        torch.testing.assert_close(velocity, slope, rtol=1e-5, atol=1e-6)
        # The mean's part moves all z alike: the derivative is that of two neighbours.
        rate = (slope[0, 0] - slope[1, 0]) / (z[0, 0] - z[1, 0])
        torch.testing.assert_close(trace, (2 * rate).expand(4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
@pytest.mark.parametrize("name", NAMES)
def test_no_step_leaps_over_the_data(name: str, tolerance: float) -> None:
    """Near the prior the flow stands still and steps grow; at any tolerance x is right to some multiple of it."""
    schedule, x = EVERY[name](), torch.linspace(-2, 2, 21, dtype=torch.float64).reshape(-1, 1)
    for mean, std in ((0.3, 0.5), (0.0, 0.05), (0.0, 1.0)):
        denoiser, start = GaussianDenoiser(schedule, mean, std), x * schedule.prior_std
        (found,) = probability_flow.solve(denoiser, start, times(1000, 1), NOTHING, tolerance, tolerance)
        assert float((found - carried(schedule, start, 1000, 1, mean, std)).abs().max()) < 3 * tolerance


@pytest.mark.parametrize("name", NAMES)
def test_solver_stays_inside_the_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No velocity is asked for above the level of T or below that of the last time."""
    schedule, seen = EVERY[name](), []
    at = probability_flow.Velocity.at
    monkeypatch.setattr(
        probability_flow.Velocity, "at", lambda self, ell, z: seen.append(float(ell)) or at(self, ell, z)
    )
    denoiser = GaussianDenoiser(schedule, 0.0, 1.0)
    list(probability_flow.solve(denoiser, randn(2, 3, 2) * schedule.prior_std, times(1000, 1), NOTHING, 1e-4, 1e-4))
    low, high = (float(schedule.level(time(t)).log()) for t in (1, 1000))
    assert min(seen) >= low - 1e-12 and max(seen) <= high + 1e-12
    assert denoiser.evaluated == 3 * len(seen) < 3 * 150


def test_labels_reach_the_network() -> None:
    """Every image follows its own class's flow, and has its class's density."""
    schedule, labels, x = EVERY["cosine"](), torch.tensor([0, 1, 1]), randn(3, 3, 2)
    laws = ((-0.5, 0.3), (0.7, 0.2))
    denoiser = ClassDenoiser(schedule, (0.4, 0.6), *zip(*laws, strict=True))
    (found,) = probability_flow.solve(denoiser, x, times(800, 100), Condition(labels), 1e-8, 1e-8)
    probe = torch.ones_like(x)
    density = probability_flow.log_density(denoiser, x, time(100), Condition(labels), probe, 1e-8, 1e-8)
    for i, label in enumerate(labels):
        torch.testing.assert_close(found[i], carried(schedule, x[i], 800, 100, *laws[label]), rtol=1e-6, atol=1e-6)
        expected = gaussian_density(schedule, x[i : i + 1], 100, *laws[label])
        torch.testing.assert_close(density[i : i + 1], expected, rtol=1e-5, atol=1e-5)


# ---- the density ------------------------------------------------------------------------------------------


def gaussian_density(schedule: Schedule, x: Tensor, t: float, mean: float = MEAN, std: float = STD) -> Tensor:
    """log p(x_t) of the prior N(0, prior_std² I) carried from T to t by the affine flow of Gaussian data."""
    stretch = standard(schedule, schedule.steps, mean, std)[1] / standard(schedule, t, mean, std)[1]
    end = carried(schedule, x, t, schedule.steps, mean, std)
    return (log_normal(end, 0.0, float(schedule.prior_std) ** 2) + math.log(stretch)).flatten(1).sum(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.5, 30.25])
def test_density_of_a_gaussian(t: float, name: str) -> None:
    """log p(x_t) in nats, summed over an image's dimensions; every one of 200 is right to 5e-8."""
    schedule = EVERY[name]()
    x = MEAN + randn(4, 3, 2, 10, 10) * standard(schedule, t)[1]
    probe = 2.0 * (randn(5, *x.shape) > 0) - 1
    found = probability_flow.log_density(GaussianDenoiser(schedule, MEAN, STD), x, time(t), NOTHING, probe, **TIGHT)
    assert found.shape == (3,) and found.dtype == torch.float64
    torch.testing.assert_close(found, gaussian_density(schedule, x, t), rtol=0, atol=200 * 5e-8)


@pytest.mark.parametrize("name", NAMES)
def test_density_of_a_mixture(name: str, t: float = 1.0) -> None:
    """In one dimension x_T = F_T⁻¹(F_t(x_t)), so p(x_t) = N(x_T; 0, prior_std²) q_t(x_t)/q_T(x_T)."""
    schedule = EVERY[name]()
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    scales = [(float(schedule.alpha(time(u))), float(schedule.sigma(time(u)))) for u in (t, 1000)]
    parts = list(zip(WEIGHTS, MEANS, STDS, strict=True))

    def law(kind: str, x: float, at: int) -> float:
        alpha, sigma = scales[at]
        return sum(w * getattr(stats.norm, kind)(x, alpha * m, math.hypot(alpha * c, sigma)) for w, m, c in parts)

    x = np.array([-1.1, -0.75, -0.3, 0.2, 0.6, 1.3])
    ends = [
        optimize.brentq(lambda u, v=v: law("cdf", u, 1) - law("cdf", v, 0), -600, 600, xtol=1e-14, rtol=1e-14)
        for v in x
    ]
    prior = stats.norm(0, float(schedule.prior_std))
    expected = [math.log(prior.pdf(e) * law("pdf", v, 0) / law("pdf", e, 1)) for e, v in zip(ends, x, strict=True)]
    points = torch.from_numpy(x).reshape(-1, 1)
    found = probability_flow.log_density(denoiser, points, time(t), NOTHING, torch.ones_like(points), **TIGHT)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_density_is_that_of_the_data(name: str) -> None:
    """The flow keeps KL(q_1 ‖ p_1) = KL(q_T ‖ prior): below 1e-3 nats per dimension, so log p(x_1) is the data's."""
    schedule = EVERY[name]()
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    x = torch.linspace(-2, 2.2, 401, dtype=torch.float64).reshape(-1, 1)
    log_q = denoiser.log_likelihood(x, time(1))[:, 0]
    log_p = probability_flow.log_density(denoiser, x, time(1), NOTHING, torch.ones_like(x), 1e-8, 1e-8)
    found = float((log_q.exp() * (log_q - log_p)).sum() * (x[1] - x[0]))
    end = torch.linspace(-10, 10, 4001, dtype=torch.float64) * schedule.prior_std
    log_q, log_p = denoiser.log_likelihood(end, time(1000)), log_normal(end, 0.0, float(schedule.prior_std) ** 2)
    expected = float((log_q.exp() * (log_q - log_p)).sum() * (end[1] - end[0]))
    assert 0 <= expected < 1e-3 and found == pytest.approx(expected, abs=1e-6)


def plane(name: str = "linear") -> VectorDenoiser:
    """A mixture in the plane whose flow has a Jacobian that is not diagonal."""
    covariances = [[[0.3, 0.2], [0.2, 0.25]], [[0.1, -0.05], [-0.05, 0.2]]]
    return VectorDenoiser(EVERY[name](), [0.4, 0.6], [[0.5, 0.2], [-0.6, 0.1]], np.array(covariances))


@pytest.mark.parametrize("name", ["linear", "karras"])
def test_trace_estimate_is_unbiased(name: str) -> None:
    """Its mean over all signs is log N(x_T) + log |det ∂x_T/∂x_t|, the determinant by differentiating the solver."""
    denoiser, t = plane(name), 200.0
    schedule, x = denoiser.schedule, torch.tensor([[0.4, -0.3], [-0.7, 0.5], [0.1, 0.1]], dtype=torch.float64)

    x.requires_grad_()
    (end,) = probability_flow.solve(denoiser, x, times(t, 1000), NOTHING, 1e-7, 1e-7)
    rows = [torch.autograd.grad(end[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    expected = log_normal(end, 0.0, float(schedule.prior_std) ** 2).sum(1) + torch.stack(rows, dim=1).det().log()
    found = torch.stack(
        [
            probability_flow.log_density(denoiser, x, time(t), NOTHING, times(*signs).expand(3, 2), 1e-7, 1e-7)
            for signs in product((-1, 1), repeat=2)
        ]
    )
    # One probe alone is far off.
    assert float((found[0] - expected).detach().abs().min()) > 1e-2
    torch.testing.assert_close(found.mean(0), expected, rtol=0, atol=1e-5)


# ---- where it fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["nan", "rough"])
def test_a_solver_that_does_not_converge_gives_nan(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN from the network, or an answer that jumps at every call: NaN, which ends a cell as `diverged`."""
    schedule, x = EVERY["linear"](), randn(6, 2, 2)
    monkeypatch.setattr(probability_flow, "MOST_STEPS", 50)
    generator = torch.Generator().manual_seed(0)

    def network(x: Tensor, *_: object) -> Tensor:
        if broken == "nan":
            return x * math.nan
        return x + torch.randn(x.shape, generator=generator, dtype=torch.float64)

    denoiser = Denoiser(network, make_objective(target="eps"), schedule)
    assert last(AdaptiveODE(steps=3), denoiser, x).isnan().all()
    assert probability_flow.log_density(denoiser, x, time(1), NOTHING, torch.ones_like(x), 1e-4, 1e-4).isnan().all()


@pytest.mark.parametrize("target", ["x0", "eps", "score", "v", "mu", "F"])
@pytest.mark.parametrize("name", ["linear", "karras"])
def test_every_target_in_single_precision(name: str, target: str) -> None:
    """The last time may be rounded below 1, where µ̃ must still have a meaning; the result is that of float64."""
    schedule = EVERY[name]()
    objective = make_objective(target=target)
    exact = GaussianDenoiser(schedule, MEAN, STD)

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        t = schedule.time_at((-log_snr[0].double() / 2).exp())
        x_t = x.double() / objective.target.input_scale(schedule, t)
        found = exact(x_t, t)
        return objective.target.of(schedule, found.x0, found.eps, t).to(x.dtype)

    x = randn(7, 5, 2).float() * float(schedule.prior_std)
    sampler = AdaptiveODE(steps=2, rtol=1e-5, atol=1e-5)
    single = last(sampler, Denoiser(network, objective, schedule, clip=False), x)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), last(sampler, exact, x.double()), rtol=0, atol=2e-3)
