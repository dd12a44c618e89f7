"""The diffusion transformer of Peebles & Xie 2023 (Sedykh 2024, 001, section 5.3): DiT, with adaLN-Zero blocks."""

from typing import Annotated, Literal

import torch
from annotated_types import MultipleOf
from torch import nn
from torch.nn import functional as F

from ddpm.condition import NOTHING, Condition
from ddpm.networks.attention import attention
from ddpm.networks.embedding import ConditionEmbedding
from ddpm.networks.network import Network
from ddpm.parameters import Count

Tensor = torch.Tensor
# Width, depth and heads by name (Peebles & Xie 2023, table 1).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed embeddings of a grid's places, float64 (rows · columns, width), row after row.

    The first half holds sin(c ω_k) and cos(c ω_k) of the column c, the second those of the row, with
    ω_k = 10000^(−4k/width), k = 0 … width/4 − 1 (Vaswani et al. 2017, for each axis).
    """
    frequency = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, width), normalised over its width, times 1 + scale (B, width), plus shift (B, width)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """x ← x + γ₁ attention(x̃₁), x ← x + γ₂ mlp(x̃₂), each x̃ normalised, scaled and shifted; the embedding of the
    condition gives the scales, the shifts and γ, all 0 at first, so that a block begins as the identity (adaLN-Zero).

    mlp: one hidden layer of four times the width, with GELU in its tanh form.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over all places."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attend(modulated(x, shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulated(x, shift2, scale2))


class DiT(Network):
    """(x (B, C, H, W), log SNR (B,), condition) → (B, heads · C, H, W) for images of `shape` (C, H, W).

    size:  S, B, L or XL: width, depth and heads as in the paper; null: those below.
    patch: the height and width of the pixels that are one token; the paper has 2, 4 and 8.
    width: of every token and of the condition's embedding;  depth: number of blocks;  attention_heads: of each.
    """

    method = "dit"
    patched = "patch"
    instead = {"size": ("width", "depth", "attention_heads")}
    multiples = (("width", "attention_heads"),)

    def __init__(
        self,
        shape: tuple[int, int, int],
        heads: int = 1,
        classes: int = 0,
        *,
        size: Literal["S", "B", "L", "XL"] | None = None,
        patch: Count = 2,
        width: Annotated[int, MultipleOf(4)] = 128,
        depth: Count = 6,
        attention_heads: Count = 4,
    ):
        super().__init__()
        self.classes, self.patch = classes, patch
        if size:
            width, depth, attention_heads = SIZES[size]
        (channels, *pixels), out = shape, heads * shape[0] * patch**2
        self.grid = pixels[0] // patch, pixels[1] // patch
        self.condition = ConditionEmbedding(width, classes)
        self.first = nn.Conv2d(channels, width, patch, stride=patch)
        self.register_buffer("position", positions(*self.grid, width).float(), persistent=False)
        self.blocks = nn.ModuleList(Block(width, attention_heads) for _ in range(depth))
        self.modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, out)
        self._initialise()

    def _initialise(self) -> None:
        """As in the paper's code: 0 for modulations, the last layer and biases, N(0, 0.02²) for the condition's
        embedding, and Xavier's uniform law for all else."""
        for name, parameter in self.named_parameters():
            layer = name.split(".")[-2]
            if layer in ("modulation", "last") or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("condition."):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition = NOTHING) -> Tensor:
        embedding = self.condition(log_snr, condition)
        tokens = self.first(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, embedding)
        tokens = self.last(modulated(tokens, *self.modulation(embedding).chunk(2, dim=1)))
        # Token (i, j) holds the pixels (i · patch + k, j · patch + l), their channels last.
        pixels = tokens.unflatten(1, self.grid).unflatten(3, (self.patch, self.patch, -1))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
