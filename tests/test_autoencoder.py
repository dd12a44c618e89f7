"""The autoencoder: its loss by the formula, the best linear one, and what it makes of images."""

import math

import pytest
import torch
from torch import nn

from ddpm import latents
from ddpm.networks.autoencoder import Autoencoder
from ddpm.spaces import Pixels
from ddpm.stages import autoencoder

torch.set_num_threads(1)

Tensor = torch.Tensor


# ---- the loss -----------------------------------------------------------------------------------------------


def test_the_loss_is_its_formula() -> None:
    """‖x − x̂‖² + β KL(q ‖ N(0, I)) per dimension, the KL against torch.distributions."""
    torch.manual_seed(0)
    network = Autoencoder((2, 8, 12), 4, 3, 4).double()
    x, eps = torch.randn(3, 2, 8, 12, dtype=torch.float64), torch.randn(3, *network.shape, dtype=torch.float64)
    mean, log_variance = network.encode(x)
    q = torch.distributions.Normal(mean, log_variance.exp().sqrt())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    decoded = network.decode(mean + q.stddev * eps)
    expected = (((x - decoded) ** 2).sum((1, 2, 3)) + 0.3 * kl) / (2 * 8 * 12)
    torch.testing.assert_close(autoencoder.loss(network, x, eps, 0.3), expected, rtol=1e-12, atol=0)


class Linear(nn.Module):
    """mean = V x, of constant variance, and x̂ = W z, for images of D × 1 × 1."""

    def __init__(self, down: Tensor, up: Tensor, log_variance: Tensor):
        super().__init__()
        self.down, self.up, self.log_variance = map(nn.Parameter, (down, up, log_variance))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.flatten(1) @ self.down.T
        return mean, self.log_variance.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.up.T)[:, :, None, None]


def test_the_best_linear_autoencoder_of_gaussian_data() -> None:
    """Its loss is that of probabilistic PCA (Tipping & Bishop 1999; Lucas et al. 2019), and is stationary there.

    With noise σ² = β/2 and the K largest eigenvalues λ above it, W = U (Λ − σ²)^½, the posterior's mean is
    M^−1 Wᵀ x with M = Λ, its variance σ²/λ, and D · loss = Σ_{k ≤ K} σ² (1 + log(λ_k/σ²)) + Σ_{k > K} λ_k.
    """
    generator = torch.Generator().manual_seed(1)
    values, dim, kept, beta = torch.tensor([4.0, 1.5, 0.7, 0.2], dtype=torch.float64), 4, 2, 0.1
    noise = beta / 2
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    # Data and noise whose second moments are exactly those of the law: ± every axis of both.
    x = torch.cat([s * axes.T * (dim * values).sqrt()[:, None] for s in (1, -1)])
    eps = torch.cat([s * math.sqrt(kept) * torch.eye(kept, dtype=torch.float64) for s in (1, -1)])
    pairs = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(eps)))
    up = axes[:, :kept] * (values[:kept] - noise).sqrt()
    network = Linear(up.T / values[:kept, None], up, (noise / values[:kept]).log())
    value = autoencoder.loss(network, x[pairs[:, 0], :, None, None], eps[pairs[:, 1]], beta).mean()
    exact = (noise * (1 + (values[:kept] / noise).log())).sum() + values[kept:].sum()
    torch.testing.assert_close(dim * value, exact, rtol=1e-12, atol=0)
    value.backward()
    for parameter in network.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-12)


# ---- the space ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
def test_images_become_smaller_and_come_back(factor: int) -> None:
    """Of images that are no squares, as uint8; x is the scaled mean, and what lies between does not count."""
    torch.manual_seed(0)
    pixels, network = Pixels((3, 8, 12), 16), Autoencoder((3, 8, 12), 4, 5, factor).eval()
    space = latents.Latents(network.shape, 2.5, -1.0, 1.0, 0.9, pixels, network)
    stored = (torch.arange(4 * 3 * 8 * 12).reshape(4, 3, 8, 12) * 7 % 16).to(torch.uint8)
    x = space.encode(stored)
    assert space.shape == x.shape[1:] == (5, 8 // factor, 12 // factor) and not space.clips and not space.discrete
    torch.testing.assert_close(x, 2.5 * network.encode(pixels.encode(stored))[0])
    found = space.decode(3 * x)
    assert found.dtype == torch.uint8 and torch.equal(found, pixels.decode(network.decode(3 * x / 2.5)))
    torch.testing.assert_close(space.encode(stored[2:3]), x[2:3])
