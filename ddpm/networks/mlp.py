"""A residual perceptron for points in the plane and very small images."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ddpm.condition import NOTHING, Condition
from ddpm.networks.embedding import ConditionEmbedding
from ddpm.networks.network import Network
from ddpm.parameters import Count, Index

Tensor = torch.Tensor


class Block(nn.Module):
    """Normalise, scale and shift by the condition, two linear layers, add."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 2 * width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition).chunk(2, dim=1)
        h = self.norm(x) * (1 + scale) + shift
        return x + self.outer(F.silu(self.inner(h)))


class MLP(Network):
    """(x (B, *shape), log SNR (B,), condition) → (B, heads · shape[0], *shape[1:]).

    width:  of every hidden layer and of the condition;  depth: number of residual blocks.
    """

    method = "mlp"
    images = False

    def __init__(
        self, shape: tuple[int, ...], heads: int = 1, classes: int = 0, *, width: Count = 128, depth: Index = 3
    ):
        super().__init__()
        self.shape = (heads * shape[0], *shape[1:])
        self.classes = classes
        self.condition = ConditionEmbedding(width, classes)
        self.first = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, heads * math.prod(shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition = NOTHING) -> Tensor:
        embedding = self.condition(log_snr, condition)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(self.norm(h)).reshape(-1, *self.shape)
