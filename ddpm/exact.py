"""Mixtures of Gaussians, whose diffusion is known in closed form: density, score, denoiser and flow.

With x0 ~ Σ_k w_k N(m_k, C_k) and x_t = α x0 + σ ε, for any pair α, σ,

    x_t ~ Σ_k w_k N(α m_k, V_k),    V_k = α² C_k + σ² I,
    π_k(x) = w_k N(x; α m_k, V_k) / Σ_j w_j N(x; α m_j, V_j),
    ∇ log p(x) = −Σ_k π_k(x) V_k⁻¹ (x − α m_k),
    E[x0 | x_t = x] = Σ_k π_k(x) [m_k + α C_k V_k⁻¹ (x − α m_k)],

the last two tied by Tweedie's formula α E[x0 | x] = x + σ² ∇ log p(x) (Efron 2011). The mixture is what Song & Ermon
2019 draw their figures 2 and 3 from (001, figures 3.1 and 3.2), and the primary oracle of this package.
"""

import torch

from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.schedules import Schedule

Tensor = torch.Tensor


class Mixture:
    """Σ_k w_k N(m_k, C_k) in D dimensions, and what diffusion makes of it; everything in float64.

    weights (K,), positive, of sum 1; means (K, D); covariances (K, D, D), or (K, D) where they are diagonal. A variance
    of 0 is allowed: its component is a point (or flat), which has a density at σ > 0 only. α and σ are one number, or
    (B, 1): one per point.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        self.weights, self.means = weights.double(), means.double()
        covariances = covariances.double()
        self.covariances = covariances if covariances.ndim == 3 else torch.diag_embed(covariances)
        # C_k = Q_k diag(λ_k) Q_kᵀ, so that V_k = Q_k diag(α² λ_k + σ²) Q_kᵀ at every α and σ.
        variances, self._axes = torch.linalg.eigh(self.covariances)
        self._variances = variances.clamp(min=0)

    def draw(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points x0 (N, D) and their components (N,) from uniform (N,) and standard normal (N, D) numbers."""
        k = torch.searchsorted(self.weights.cumsum(0), u.contiguous()).clamp(max=len(self.weights) - 1)
        return self.means[k] + torch.einsum("nij,nj->ni", self._axes[k], self._variances[k].sqrt() * z), k

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q_kᵀ (x − α m_k) and the variances α² λ_k + σ² along the same axes, (B, K, D); log (w_k N(x; …)), (B, K)."""
        offset = torch.einsum("kij,bki->bkj", self._axes, x.double()[:, None] - alpha * self.means)
        variance = (alpha**2 * self._variances + sigma**2).expand_as(offset)
        log_normal = -0.5 * (offset**2 / variance + (2 * torch.pi * variance).log()).sum(-1)
        return offset, variance, self.weights.log() + log_normal

    def log_density(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """log p of α x0 + σ ε at the points x (B, D), in nats, (B,); without α and σ that of x0 itself."""
        return self._components(x, *_columns(alpha, sigma))[2].logsumexp(-1)

    def responsibilities(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """π_k(x), the probability that x (B, D) comes from the component k; (B, K)."""
        return self._components(x, *_columns(alpha, sigma))[2].softmax(-1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """∇ log p of α x0 + σ ε at the points x (B, D); (B, D)."""
        offset, variance, log_joint = self._components(x, *_columns(alpha, sigma))
        return -torch.einsum("bk,kij,bkj->bi", log_joint.softmax(-1), self._axes, offset / variance)

    def posterior_mean(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | α x0 + σ ε = x] at the points x (B, D); (B, D)."""
        alpha, sigma = _columns(alpha, sigma)
        offset, variance, log_joint = self._components(x, alpha, sigma)
        share = log_joint.softmax(-1)
        return share @ self.means + torch.einsum(
            "bk,kij,bkj->bi", share, self._axes, alpha * self._variances / variance * offset
        )

    def flow(
        self,
        x: Tensor,
        alpha: Tensor | float,
        sigma: Tensor | float,
        alpha_to: Tensor | float,
        sigma_to: Tensor | float,
    ) -> Tensor:
        """Where the probability flow takes x (B, D) from α, σ to α′, σ′, in either direction, if K = 1; (B, D).

        It keeps the standardised point: x′ = α′ m + V′^½ V^−½ (x − α m) (Shariatian & Conforti 2025, 003, "SDE
        Formulation - Backward Process", solved for a Gaussian).
        """
        if len(self.weights) != 1:
            raise ValueError(f"flow: {len(self.weights)} components; its closed form is known for one")
        alpha, sigma, alpha_to, sigma_to = _columns(alpha, sigma, alpha_to, sigma_to)
        offset, variance, _ = self._components(x, alpha, sigma)
        moved = ((alpha_to**2 * self._variances + sigma_to**2) / variance).sqrt() * offset
        return (alpha_to * self.means + torch.einsum("kij,bkj->bki", self._axes, moved))[:, 0]

    def along(self, direction: Tensor) -> "Mixture":
        """The distribution of uᵀx0 for a unit vector u (D,): a mixture in one dimension."""
        u = direction.double()
        variances = torch.einsum("i,kij,j->k", u, self.covariances, u)
        return Mixture(self.weights, (self.means @ u)[:, None], variances[:, None])


def _columns(*values: Tensor | float) -> tuple[Tensor, ...]:
    """One number, or one per point (B, 1), as what broadcasts against (B, K, D)."""
    tensors = (torch.as_tensor(v, dtype=torch.float64) for v in values)
    return tuple(v.reshape(-1, 1, 1) if v.ndim else v for v in tensors)


class ExactDenoiser(Denoiser):
    """E[x0 | x_t] of a mixture: what a perfect network would answer, at one evaluation per call.

    Every sampler, the variational bound and the probability flow run on it. Computed in float64, answered in the type
    of x_t, whose points may have any shape of D numbers.
    """

    def __init__(self, mixture: Mixture, schedule: Schedule):
        # Neither a network nor its objective stands behind it: what the base makes of them, `predict`, is its own here.
        self.mixture, self.schedule, self.clip, self.evaluated = mixture, schedule, False, 0

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, None]:
        x0 = self.mixture.posterior_mean(x_t.flatten(1), self.schedule.alpha(t), self.schedule.sigma(t))
        return x0.reshape(x_t.shape).to(x_t.dtype), None

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """∇ log p(x_t), float64, of x_t's shape."""
        score = self.mixture.score(x_t.flatten(1), self.schedule.alpha(t), self.schedule.sigma(t))
        return score.reshape(x_t.shape)

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t) of every point in nats, (B,), float64; at t = 0 that of the data."""
        return self.mixture.log_density(x_t.flatten(1), self.schedule.alpha(t), self.schedule.sigma(t))

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s of the probability-flow ODE through x_t, float64, of x_t's shape, where the mixture is one Gaussian."""
        at = (self.schedule.alpha(t), self.schedule.sigma(t), self.schedule.alpha(s), self.schedule.sigma(s))
        return self.mixture.flow(x_t.flatten(1), *at).reshape(x_t.shape)
