"""Random numbers that depend only on what they are for: a key, the image, the draw.

Philox 4x32-10 (Salmon et al. 2011), a counter-based generator, on whole tensors. Image i gets the same
numbers in any batch, on any number of devices and after any interruption, and there is no state to save.
torch's own generators are sequential: one per image would mean a Python loop over images at every step.
"""

import hashlib
import math

import torch

Tensor = torch.Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key(*parts: object) -> int:
    """A 64-bit key from names and numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten Philox rounds on four words of counter; all words are int64 tensors in [0, 2³²)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32
    for _ in range(10):
        # A 32 × 32 bit product fills 64 bits: int64 wraps, the masked shift still yields its upper half.
        p0, p1 = _MULTIPLIER[0] * c0, _MULTIPLIER[1] * c2
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(key: int, index: Tensor, draw: int, size: int) -> Tensor:
    """`size` words (a multiple of 4) for every image index: int64, (B, size)."""
    index = index.to(torch.int64)
    block = torch.arange(size // 4, device=index.device)
    i, b = torch.broadcast_tensors(index[:, None], block[None, :])
    counter = (b, torch.full_like(b, draw), i & _MASK, i >> 32 & _MASK)
    return torch.stack(philox(counter, key), dim=-1).flatten(1)


def uniform(key: int, index: Tensor, draw: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in (0, 1), float64, shape (B, *shape), for images `index` (B,)."""
    size = math.prod(shape)
    words = _words(key, index, draw, -(-size // 4) * 4)[:, :size]
    return ((words.double() + 0.5) / 2**32).reshape(-1, *shape)


def normal(key: int, index: Tensor, draw: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, shape (B, *shape), for images `index` (B,), by Box and Muller's transform."""
    size = math.prod(shape)
    words = _words(key, index, draw, -(-size // 4) * 4)
    # The transform runs in float32 unless more is asked for: 2^-33 < u keeps |z| below 6.8 either way.
    u = (words.to(torch.float64 if dtype == torch.float64 else torch.float32) + 0.5) / 2**32
    u1, u2 = u.chunk(2, dim=1)
    radius, angle = (-2 * u1.log()).sqrt(), 2 * math.pi * u2
    z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return z[:, :size].to(dtype).reshape(-1, *shape)


def permutation(size: int, *parts: object) -> Tensor:
    """A permutation of 0 … size − 1 that depends on `parts` alone."""
    generator = torch.Generator().manual_seed(key(*parts) & (2**63 - 1))
    return torch.randperm(size, generator=generator)
