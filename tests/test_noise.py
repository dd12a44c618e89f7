"""Philox 4x32-10 and the numbers made from it."""

import hashlib
import math
from itertools import combinations

import numpy as np
import oracles  # noqa: F401
import pytest
import torch
from scipy import stats

from ddpm import rng

Tensor = torch.Tensor
KEY = rng.key("test", 0)


def words(*values: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([v], dtype=torch.int64) for v in values)


def philox_reference(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 3.3, in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    """Random123's kat_vectors for philox4x32-10."""
    result = rng.philox(words(*counter), key[0] | key[1] << 32)
    assert tuple(int(w) for w in result) == expected
    assert philox_reference(list(counter), list(key)) == list(expected)


def test_philox_on_tensors() -> None:
    """Random counters, all at once, against plain Python integers."""
    generator = torch.Generator().manual_seed(0)
    counter = tuple(torch.randint(2**32, (64,), generator=generator) for _ in range(4))
    result = torch.stack(rng.philox(counter, KEY), dim=1).tolist()
    expected = [philox_reference([int(c[i]) for c in counter], [KEY & (2**32 - 1), KEY >> 32]) for i in range(64)]
    assert result == expected


def test_key() -> None:
    """A key is the first 8 bytes of SHA-256 of the parts, NUL between them."""
    expected = int.from_bytes(hashlib.sha256(b"a\x001").digest()[:8], "big")
    assert rng.key("a", 1) == expected
    assert len({rng.key("a", 1), rng.key("a1"), rng.key("a", 2), rng.key("b", 1), rng.key(1, "a")}) == 5


def test_uniform_uses_counter_block_draw_image() -> None:
    """u = (word + ½)/2³² of the counter (block, draw, low and high word of the image's index)."""
    index, draw = 5 * 2**32 + 7, 11
    u = rng.uniform(KEY, torch.tensor([index]), draw, (8,))[0]
    key = [KEY & (2**32 - 1), KEY >> 32]
    expected = [w for block in range(2) for w in philox_reference([block, draw, 7, 5], key)]
    assert u.dtype == torch.float64
    assert u.tolist() == [(w + 0.5) / 2**32 for w in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_box_muller(dtype: torch.dtype) -> None:
    """Box & Muller 1958: √(−2 ln u1) (cos, sin) 2π u2, u1 the first half of the words and u2 the second."""
    index = torch.arange(500)
    u = rng.uniform(KEY, index, 3, (12,)).numpy()
    radius, angle = np.sqrt(-2 * np.log(u[:, :6])), 2 * np.pi * u[:, 6:]
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    z = rng.normal(KEY, index, 3, (3, 4), dtype)
    assert z.dtype == dtype
    # In float32 a radius near 0 comes from u1 near 1, known to 2^-25 only: √(2 · 2^-25) = 2.4e-4.
    tolerance = 3e-4 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(z.flatten(1).numpy(), expected, rtol=0, atol=tolerance)
    assert np.median(np.abs(z.flatten(1).numpy() - expected)) < 2e-7


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1,), (2, 3)])
def test_an_images_numbers_do_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    """Image i gets the same bytes alone, in any batch and in any order."""
    together = rng.normal(KEY, torch.arange(10), 2, shape)
    shuffled = torch.tensor([7, 3, 9, 0])
    assert torch.equal(rng.normal(KEY, shuffled, 2, shape), together[shuffled])
    assert torch.equal(rng.normal(KEY, torch.tensor([4]), 2, shape)[0], together[4])
    u = rng.uniform(KEY, torch.arange(10), 2, shape)
    assert torch.equal(rng.uniform(KEY, shuffled, 2, shape), u[shuffled])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 9, 63])
def test_odd_sizes(size: int) -> None:
    """Any number of elements, none of them equal, zero or infinite."""
    z = rng.normal(KEY, torch.arange(3), 0, (size,))
    assert z.shape == (3, size) and z.isfinite().all()
    assert z.unique().numel() == z.numel()
    assert rng.uniform(KEY, torch.arange(3), 0, (size,)).unique().numel() == 3 * size


def test_scalar_uniform() -> None:
    """The default shape is one number per image."""
    assert rng.uniform(KEY, torch.arange(3), 0).shape == (3,)


def test_keys_draws_and_images_are_independent() -> None:
    """Correlations of z and of z² between different keys, draws and images stay within 5/√n."""
    count = 2**16
    near, far = torch.tensor([0]), torch.tensor([2**32])
    streams = [
        rng.normal(KEY, near, 0, (count,)),
        rng.normal(KEY, near, 1, (count,)),
        rng.normal(KEY, near, 2**31, (count,)),
        rng.normal(KEY, near + 1, 0, (count,)),
        rng.normal(KEY, far, 0, (count,)),
        rng.normal(KEY + 1, near, 0, (count,)),
        rng.normal(KEY ^ (1 << 40), near, 0, (count,)),
    ]
    for a, b in combinations((s[0].double().numpy() for s in streams), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(count)
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 5 / math.sqrt(count)


@pytest.mark.parametrize("lag", [1, 2, 4, 2**15])
def test_pixels_of_an_image_are_independent(lag: int) -> None:
    """Correlations along one stream, also between the two splits of the Box–Muller pairs (lag n/2)."""
    z = rng.normal(KEY, torch.tensor([3]), 0, (2**16,))[0].double().numpy()
    bound = 5 / math.sqrt(len(z) - lag)
    assert abs(np.corrcoef(z[lag:], z[:-lag])[0, 1]) < bound
    assert abs(np.corrcoef(z[lag:] ** 2, z[:-lag] ** 2)[0, 1]) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_distribution(dtype: torch.dtype) -> None:
    """Moments 0, 1, 0, 3 within 4 standard errors (√(1, 2, 15, 96)/√n), and Kolmogorov–Smirnov."""
    z = rng.normal(KEY, torch.arange(100), 0, (5000,), dtype).flatten().double().numpy()
    for power, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((z**power).mean() - expected) < 4 * math.sqrt(variance / len(z)), power
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert np.abs(z).max() < 6.8


def test_uniform_distribution() -> None:
    """Open interval, moments 1/2 and 1/12, Kolmogorov–Smirnov."""
    u = rng.uniform(KEY, torch.arange(100), 1, (2000,)).flatten().numpy()
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / len(u))
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / len(u))
    assert stats.kstest(u, "uniform").pvalue > 0.01


def test_extreme_words_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest word give u in (0, 1) and finite normal numbers in both types."""
    extreme = torch.tensor([[0, 2**32 - 1, 0, 2**32 - 1, 0, 2**32 - 1, 2**32 - 1, 0]])
    monkeypatch.setattr(rng, "_words", lambda key, index, draw, size: extreme)
    u = rng.uniform(KEY, torch.tensor([0]), 0, (8,))
    assert float(u.min()) > 0 and float(u.max()) < 1
    for dtype in (torch.float32, torch.float64):
        z = rng.normal(KEY, torch.tensor([0]), 0, (8,), dtype)
        assert z.isfinite().all() and z.abs().max() < 6.8


def test_permutation() -> None:
    """Every index once; the order depends on the parts alone."""
    order = rng.permutation(1000, "order", 1)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, rng.permutation(1000, "order", 1))
    assert not torch.equal(order, rng.permutation(1000, "order", 2))
