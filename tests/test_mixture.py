"""Mixtures of Gaussians: density, score, denoiser and flow against integration and independent libraries."""

import math

import numpy as np
import pytest
import torch
from oracles import independent, randn, time
from torch.distributions import MultivariateNormal

from ddpm import probability_flow
from ddpm.condition import NOTHING
from ddpm.exact import ExactDenoiser, Mixture
from ddpm.schedules import Geometric, Karras, Linear

torch.set_num_threads(1)

SCHEDULES = {"linear": Linear(), "karras": Karras(), "geometric": Geometric(sigma_min=0.3, sigma_max=15.0)}


def mixture() -> Mixture:
    """Three Gaussians in the plane with correlated coordinates, one of them thin."""
    means = torch.tensor([[1.0, -0.5], [-1.5, 0.3], [0.2, 2.0]])
    roots = torch.tensor([[[0.6, 0.0], [0.4, 0.3]], [[0.2, 0.0], [-0.7, 0.5]], [[1.1, 0.0], [1.0, 0.05]]])
    return Mixture(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), means, roots @ roots.mT)


@pytest.mark.parametrize("at", [0.02, 0.4, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_density_at_every_noise_level(name: str, at: float) -> None:
    """log p(x_t) is that of Σ w_k N(α m_k, α² C_k + σ² I); one time for all points, or one per point."""
    law, schedule, x = mixture(), SCHEDULES[name], 2 * randn(1, 50, 2)
    denoiser, t = ExactDenoiser(law, schedule), time(round(at * schedule.steps))
    expected = independent(law, float(schedule.alpha(t)), float(schedule.sigma(t))).log_prob(x)
    torch.testing.assert_close(denoiser.log_density(x, t), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(denoiser.log_density(x, t.expand(50, 1)), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(denoiser.log_density(x, time(0)), independent(law).log_prob(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SCHEDULES)
def test_denoiser_against_integration(name: str) -> None:
    """E[x0 | x_t] = ∫ x0 p(x0) N(x_t; α x0, σ²) dx0 / ∫ p(x0) N(x_t; α x0, σ²) dx0, summed over a fine grid."""
    law = Mixture(torch.tensor([0.7, 0.3]), *(m[:2] for m in (mixture().means, mixture().covariances)))
    schedule, side = SCHEDULES[name], torch.linspace(-8, 8, 641, dtype=torch.float64)
    x0 = torch.cartesian_prod(side, side)
    prior, x = independent(law).log_prob(x0).exp(), randn(2, 7, 2)
    for wanted in (0.3, 1.0, 4.0):
        t = schedule.time_at(torch.tensor(wanted, dtype=torch.float64))
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x_t = x * (alpha**2 + sigma**2).sqrt()
        joint = prior * (-0.5 * (x_t[:, None] - alpha * x0).square().sum(-1) / sigma**2).exp()
        expected = joint @ x0 / joint.sum(1, keepdim=True)
        torch.testing.assert_close(ExactDenoiser(law, schedule)(x_t, t).x0, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_score_is_the_gradient_of_the_density(name: str) -> None:
    """By automatic differentiation of torch's density; and −ε̂/σ is the same (Tweedie's formula)."""
    law, schedule = mixture(), SCHEDULES[name]
    denoiser, t = ExactDenoiser(law, schedule), time(300)
    x = (3 * randn(3, 40, 2) * (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()).requires_grad_()
    density = independent(law, float(schedule.alpha(t)), float(schedule.sigma(t)))
    (expected,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(denoiser.score(x.detach(), t), expected, rtol=1e-10, atol=1e-10)
    by_eps = -denoiser(x.detach(), t).eps / schedule.sigma(t)
    torch.testing.assert_close(by_eps, expected, rtol=1e-8, atol=1e-8)


def test_points_of_any_shape_and_type() -> None:
    """An image of D pixels is a point in D dimensions; a float32 question has a float32 answer."""
    law, t = Mixture(torch.ones(1), randn(4, 1, 6), 0.1 + randn(5, 1, 6) ** 2), time(200)
    denoiser, x = ExactDenoiser(law, Linear()), randn(6, 3, 1, 2, 3)
    assert torch.equal(denoiser(x, t).x0, denoiser(x.flatten(1), t).x0.reshape(x.shape))
    found = denoiser(x.float(), t)
    assert found.x0.dtype == found.eps.dtype == torch.float32
    torch.testing.assert_close(found.x0.double(), denoiser(x.float().double(), t).x0, rtol=1e-7, atol=1e-7)


def test_limits_of_a_mixture() -> None:
    """One Gaussian: linear in x. Points without width: their weighted mean. No noise: x/α. All noise: the mean."""
    law, x, one = mixture(), randn(7, 9, 2), torch.ones((), dtype=torch.float64)
    single = Mixture(one[None], law.means[:1], law.covariances[:1])
    alpha, sigma, (m,), (c,) = 0.6 * one, 0.8 * one, single.means, single.covariances
    gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(2))
    torch.testing.assert_close(single.posterior_mean(x, alpha, sigma), m + (x - alpha * m) @ gain.T)
    dirac = Mixture(law.weights, law.means, torch.zeros(3, 2))
    share = (law.weights.log() - (x[:, None] - alpha * law.means).square().sum(-1) / (2 * sigma**2)).softmax(1)
    torch.testing.assert_close(dirac.posterior_mean(x, alpha, sigma), share @ law.means)
    torch.testing.assert_close(law.posterior_mean(x, 0.5 * one, 1e-7 * one), 2 * x, rtol=1e-6, atol=1e-6)
    mean = (law.weights @ law.means).expand_as(x)
    torch.testing.assert_close(law.posterior_mean(1e6 * x, one, 1e6 * one), mean, rtol=1e-4, atol=1e-4)
    diagonal, full = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)), Mixture
    by_diagonal = full(law.weights, law.means, diagonal).log_density(x)
    torch.testing.assert_close(by_diagonal, full(law.weights, law.means, torch.diag_embed(diagonal)).log_density(x))


def test_responsibilities_are_bayes_rule() -> None:
    """π_k = w_k p_k/Σ_j w_j p_j, far from every component too."""
    law, x = mixture(), torch.cat([randn(8, 20, 2), 50 * randn(9, 5, 2)])
    parts = torch.stack(
        [
            w.log() + MultivariateNormal(m, c).log_prob(x)
            for w, m, c in zip(law.weights, law.means, law.covariances, strict=True)
        ],
        1,
    )
    expected = (parts - parts.logsumexp(1, keepdim=True)).exp()
    torch.testing.assert_close(law.responsibilities(x), expected, rtol=1e-9, atol=1e-12)


def test_projection_and_draws() -> None:
    """uᵀx0 of a million draws has the moments and the density that `along` states; so have the draws themselves."""
    law, count = mixture(), 1_000_000
    generator = torch.Generator().manual_seed(2)
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    x, k = law.draw(u, torch.randn(count, 2, generator=generator, dtype=torch.float64))
    assert (torch.bincount(k) / count - law.weights).abs().max() < 4 * 0.5 / math.sqrt(count)
    expected = independent(law)
    error = (expected.variance / count).sqrt()
    assert ((x.mean(0) - expected.mean).abs() < 4 * error).all()
    for part in range(3):
        torch.testing.assert_close(x[k == part].T.cov(), law.covariances[part], rtol=0.01, atol=0.005)
    line = torch.tensor([0.6, 0.8], dtype=torch.float64)
    seen, edges = np.histogram((x @ line).numpy(), 40, (-3, 3))
    centre = torch.from_numpy((edges[1:] + edges[:-1]) / 2)
    density = law.along(line).log_density(centre[:, None]).exp().numpy()
    assert np.abs(seen / count / 0.15 - density).max() < 0.01


@pytest.mark.parametrize("name", SCHEDULES)
def test_flow_of_a_gaussian(name: str) -> None:
    """The closed form is what the adaptive solver finds, backwards and forwards, and is the identity for s = t."""
    law, schedule = mixture(), SCHEDULES[name]
    single = Mixture(torch.ones(1), law.means[:1], law.covariances[:1])
    denoiser, t, s = ExactDenoiser(single, schedule), time(900), time(30)
    x = randn(10, 6, 2) * (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()
    (solved,) = probability_flow.solve(denoiser, x, torch.stack([t, s]), NOTHING, 1e-9, 1e-9)
    x_s = denoiser.flow(x, t, s)
    torch.testing.assert_close(x_s, solved, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(denoiser.flow(x_s, s, t), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denoiser.flow(x, t, t), x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="3 components"):
        ExactDenoiser(law, schedule).flow(x, t, s)


def test_flow_carries_the_density_of_a_mixture() -> None:
    """log p at t = 1 by the ODE is the closed form's; with (1, 1) and (1, −1) the trace of a plane is exact.

    The flow starts from N(0, σ_T²) instead of the law of x_T: that misses the law's mean by a ten-thousandth of σ_T.
    """
    law, schedule = mixture(), Geometric(sigma_min=0.1, sigma_max=5000.0)
    denoiser, x, t = ExactDenoiser(law, schedule), mixture().means, time(1)
    found = [
        probability_flow.log_density(
            denoiser, x, t, None, torch.tensor(v, dtype=torch.float64).expand_as(x), 1e-6, 1e-6
        )
        for v in ([1.0, 1.0], [1.0, -1.0])
    ]
    torch.testing.assert_close(sum(found) / 2, denoiser.log_density(x, t), rtol=0, atol=5e-4)
