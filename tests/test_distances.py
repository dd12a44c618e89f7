"""The Fréchet distance against closed forms, its statistics, and the sliced distance of points."""

import math

import numpy as np
import pytest
import torch
from measuring import closed_form
from oracles import randn

from ddpm.errors import UserError
from ddpm.metrics import distances

torch.set_num_threads(1)


# ---- the distance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 7, 40])
def test_frechet_is_the_closed_form(size: int) -> None:
    """Two correlated samples with different means, against scipy's matrix root."""
    generator = np.random.default_rng(size)
    sets = [
        generator.normal(size=(5 * size, size)) @ generator.normal(size=(size, size)) + shift for shift in (0.0, 0.3)
    ]
    a, b = (distances.statistics(torch.from_numpy(s)) for s in sets)
    assert distances.frechet(a, b) == pytest.approx(closed_form(a, b), rel=1e-8, abs=1e-8)
    assert distances.frechet(a, b) == pytest.approx(distances.frechet(b, a), rel=1e-8, abs=1e-8)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-5)


def test_frechet_of_gaussians_whose_covariances_commute() -> None:
    """With one basis for both, it is Σ (µ_a − µ_b)² + Σ (√λ_a − √λ_b)²."""
    generator = np.random.default_rng(1)
    basis, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    one, two = np.array([4.0, 1.0, 9.0, 0.25, 2.0, 1.0]), np.array([1.0, 1.0, 4.0, 2.25, 3.0, 0.01])
    shift = np.array([1.0, 0.0, -2.0, 0.5, 0.0, 0.0])
    a = {"mu": np.zeros(6), "sigma": basis * one @ basis.T}
    b = {"mu": basis @ shift, "sigma": basis * two @ basis.T}
    expected = (shift**2).sum() + ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_statistics_are_mean_and_unbiased_covariance() -> None:
    """Division by N − 1, features along the second axis, float64."""
    x = torch.tensor([[1.0, 0.0], [2.0, 4.0], [6.0, 2.0]], dtype=torch.float64)
    found = distances.statistics(x)
    assert found["mu"].tolist() == [3.0, 2.0]
    assert found["sigma"].tolist() == [[7.0, 1.0], [1.0, 4.0]]


@pytest.mark.parametrize(("count", "size"), [(8, 8), (3, 8), (1, 1)])
def test_too_few_images_are_refused(count: int, size: int) -> None:
    """A covariance of N ≤ D features has no full rank: the key, both numbers and what would be right."""
    with pytest.raises(UserError) as caught:
        distances.statistics(torch.randn(count, size, dtype=torch.float64))
    message = str(caught.value)
    assert "sampling.images" in message and f"{count} images" in message and f"{size} features" in message
    assert distances.statistics(torch.randn(size + 1, size, dtype=torch.float64))["mu"].shape == (size,)


# ---- points ------------------------------------------------------------------------------------------


def test_sliced_wasserstein() -> None:
    """Zero for one set in another order; a shift d costs the mean of |uᵀd|, 2‖d‖/π; sizes may differ."""
    x = randn(11, 300, 2)
    assert distances.sliced_wasserstein(x, x.flip(0)) == 0
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert distances.sliced_wasserstein(x, x + shift, 5000) == pytest.approx(2 * 5 / math.pi, rel=0.02)
    assert distances.sliced_wasserstein(x, x.repeat(2, 1)) == pytest.approx(0, abs=1e-12)
    assert distances.sliced_wasserstein(2 * x, 2 * x + 2 * shift) == pytest.approx(
        2 * distances.sliced_wasserstein(x, x + shift), rel=1e-12
    )
