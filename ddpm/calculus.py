"""What a schedule needs of a function of time that it knows no closed form for: its derivative and its inverse."""

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Curve = Callable[[Tensor], Tensor]

# Of an interval [0, T]: to T · 2⁻⁸⁰, 1e-21 of T = 1000.
HALVINGS = 80


def derivative(f: Curve, t: Tensor, name: str) -> Tensor:
    """df/dt to the left of t, for every entry of t by itself, by automatic differentiation; float64, of t's shape.

    It is taken at the next float64 below t: where the pieces of f meet, as those of a table do at its indices, the
    piece before t counts, in the direction that samplers go.

    ValueError, with f's `name`, where torch cannot differentiate f: its value does not hang on t by torch's operations
    and yet is not constant, or the derivative is NaN (both sides of a `torch.where` must be finite).
    """
    before = torch.nextafter(t, torch.zeros_like(t)).requires_grad_()
    with torch.enable_grad():
        value = f(before)
        rate = torch.autograd.grad(value.sum(), before, allow_unused=True)[0] if value.requires_grad else None
    if rate is None:
        if torch.equal(value, f(torch.zeros_like(t)).expand_as(value)):
            return torch.zeros_like(t)
        raise ValueError(f"{name}: torch sees no dependence on t; compute it in torch, or state `slope` and `drift`")
    if rate.isnan().any():
        at = float(t[rate.isnan()].flatten()[0])
        raise ValueError(f"{name}: its derivative at t = {at:g} is NaN: both sides of a torch.where must be finite")
    return rate


def inverse(f: Curve, wanted: Tensor, end: float) -> Tensor:
    """The t in [0, end] with f(t) = `wanted`, for f that rises with t, by bisection of all entries at once.

    `end` where f(end) is smaller. To the last digits, but for what f's own rounding leaves undecided.
    """
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, end)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = f(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high
