"""The U-Net of Ho et al. 2020, appendix B (002), as it was published: 35.7 million parameters for CIFAR-10.

`unet` is our own after it, which ends at a lower loss after equal training time.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import nn
from torch.nn import functional as F

from ddpm import rng
from ddpm.condition import NOTHING, Condition
from ddpm.networks.attention import attention
from ddpm.networks.embedding import ConditionEmbedding
from ddpm.networks.network import Network
from ddpm.networks.unet import zeroed
from ddpm.parameters import Count, Index, Len

Tensor = torch.Tensor


def normalise(channels: int) -> nn.GroupNorm:
    """Group normalisation in 32 groups, or the most that divide both."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def seeds(x: Tensor) -> Tensor:
    """A number for every noisy image (B, …) that its noise draws, int64 (B,), so that what is dropped depends on the
    image alone, and no generator has a state to save."""
    first = x.detach().flatten(1)[:, :2].float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return first[:, 0] << 32 | first[:, -1]


@torch.library.custom_op("ddpm::kept", mutates_args=())
def kept(seed: Tensor, number: int, shape: list[int], dropout: float) -> Tensor:
    """Which values dropout leaves, bool (B, *shape), a function of each image's `seed` and the block's `number`.

    An operation of its own, which torch's compiler leaves alone: it would make other numbers of `ddpm.rng`.
    """
    return rng.uniform(rng.key("dropout"), seed, number, tuple(shape)) >= dropout


@kept.register_fake
def _(seed: Tensor, number: int, shape: list[int], dropout: float) -> Tensor:
    return seed.new_empty((len(seed), *shape), dtype=torch.bool)


class Attention(nn.Module):
    """Self-attention over all positions, of one head, with a residual connection."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = normalise(width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), zeroed(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        return h + self.out(attention(q, k, v).transpose(1, 2).reshape(h.shape))


class Block(nn.Module):
    """Two convolutions, between which the condition shifts, with dropout and a residual connection; then attention, if
    asked for. `number` tells the block's dropout from that of others."""

    def __init__(self, into: int, out: int, condition: int, dropout: float, attend: bool, number: int):
        super().__init__()
        self.norm1, self.conv1 = normalise(into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = normalise(out), zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.condition = nn.Linear(condition, out)
        self.skip = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        self.attention = Attention(out) if attend else nn.Identity()
        self.dropout, self.number = dropout, number

    def forward(self, h: Tensor, condition: Tensor, seed: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(h))) + self.condition(condition)[:, :, None, None]
        inner = F.silu(self.norm2(inner))
        if self.training and self.dropout:
            inner = inner * kept(seed, self.number, inner.shape[1:], self.dropout) / (1 - self.dropout)
        return self.attention(self.skip(h) + self.conv2(inner))


class DDPMUNet(Network):
    """(x (B, C, H, W), log SNR (B,), condition) → (B, heads · C, H, W) for images of `shape` (C, H, W).

    heads, classes: as of `unet`.
    width:       channels at full resolution; the condition has 4 × width.
    multipliers: channels of every resolution, as multiples of width; between two, the image is halved.
    blocks:      residual blocks per resolution on the way down; one more on the way up, and two in the middle, with
                 attention. Each block up sees the output of one on the way down as well.
    attention:   resolutions, counted from 0 (full), with self-attention after every block.
    dropout:     the share of the values inside a block that training sets to 0.
    """

    method = "ddpm-unet"
    attended = (("attention", "multipliers", "width", 1),)

    def __init__(
        self,
        shape: tuple[int, int, int],
        heads: int = 1,
        classes: int = 0,
        *,
        width: Count = 32,
        multipliers: Annotated[tuple[Count, ...], Len(1)] = (1, 2),
        blocks: Count = 1,
        attention: tuple[Index, ...] = (),
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ):
        super().__init__()
        self.classes, self.blocks, self.levels = classes, blocks, len(multipliers)
        self.condition = ConditionEmbedding(4 * width, classes, features=width // 2)
        widths, made = [width * m for m in multipliers], 0

        def block(into: int, out: int, attend: bool) -> Block:
            nonlocal made
            made += 1
            return Block(into, out, 4 * width, dropout, attend, made)

        # ---- down: every output is kept for the way up
        self.first, skips, channels = nn.Conv2d(shape[0], width, 3, padding=1), [width], width
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for i, out in enumerate(widths):
            self.down += [block(out if b else channels, out, i in attention) for b in range(blocks)]
            channels = out
            skips += [out] * blocks
            if i < len(widths) - 1:
                self.shrink.append(nn.Conv2d(out, out, 3, stride=2))
                skips.append(out)
        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])
        # ---- up
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(channels + skips.pop(), out, i in attention))
                channels = out
            if i:
                self.grow.append(nn.Conv2d(out, out, 3, padding=1))
        self.norm, self.last = normalise(width), zeroed(nn.Conv2d(channels, heads * shape[0], 3, padding=1))

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition = NOTHING) -> Tensor:
        told = self.condition(log_snr, condition), seeds(x)
        skips = [h := self.first(x)]
        for i in range(self.levels):
            if i:
                skips.append(h := self.shrink[i - 1](F.pad(h, (0, 1, 0, 1))))
            for block in self.down[i * self.blocks : (i + 1) * self.blocks]:
                skips.append(h := block(h, *told))
        for block in self.middle:
            h = block(h, *told)
        for i in range(self.levels):
            if i:
                h = self.grow[i - 1](F.interpolate(h, skips[-1].shape[-2:]))
            for block in self.up[i * (self.blocks + 1) : (i + 1) * (self.blocks + 1)]:
                h = block(torch.cat([h, skips.pop()], dim=1), *told)
        return self.last(F.silu(self.norm(h)))
