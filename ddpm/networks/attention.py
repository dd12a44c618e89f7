"""Attention, as every network here computes it."""

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v over the last but one dimension, of q, k, v (…, N, d) (Vaswani et al. 2017, eq. 1).

    On a CPU in float32 also under autocast: torch's bfloat16 gradient of it takes ten times as long there.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    exact = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.to(exact), k.to(exact), v.to(exact))
