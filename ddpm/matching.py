"""How a prediction is held against its target: denoising and sliced score matching."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm.methods import Component

Tensor = torch.Tensor
# x_t → ŷ and v or None; and what gives random signs of x_t's shape, or None.
Predict = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Signs = Callable[[], Tensor] | None


class Matching(Component):
    """How a prediction is held against its target."""

    default = "denoising"

    def error(self, predict: Predict, x_t: Tensor, y: Tensor, signs: Signs) -> tuple[Tensor, Tensor, Tensor | None]:
        """‖y − ŷ‖² by dimension, or what has its expectation up to a constant; then ŷ, and v or None."""
        raise NotImplementedError


class Denoising(Matching):
    """(y − ŷ)² (Sedykh 2024, 001, eq. 3.11)."""

    method = "denoising"

    def error(self, predict: Predict, x_t: Tensor, y: Tensor, signs: Signs) -> tuple[Tensor, Tensor, Tensor | None]:
        y_hat, v = predict(x_t)
        return (y_hat - y).square(), y_hat, v


class Sliced(Matching):
    """2 (vᵀ ∇(vᵀ s) + ½ ‖s‖²), with v of random signs, on x_t: up to a constant ‖s + ε/σ‖² on average.

    Song, Garg et al. 2019; Sedykh 2024, 001, eq. 3.12.

    Only a score has a divergence that stands in for its target.
    """

    method = "sliced"
    needs = {"target": "score", "variance": "fixed"}

    def error(self, predict: Predict, x_t: Tensor, y: Tensor, signs: Signs) -> tuple[Tensor, Tensor, Tensor | None]:
        if signs is None:
            raise ValueError("sliced: sliced score matching needs random signs")
        x_t, v = x_t.detach().requires_grad_(), signs()
        with sdpa_kernel(SDPBackend.MATH):  # of torch's ways to compute attention the one with second derivatives
            score, _ = predict(x_t)
        (product,) = torch.autograd.grad((v * score).sum(), x_t, create_graph=True)
        return 2 * v * product + score.square(), score, None
