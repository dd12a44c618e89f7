"""Spaces: between stored images and the model's x, and what rebuilds them."""

import json
import math

import pytest
import torch
from oracles import DIGITS, PLANE, randn
from torch.distributions import Normal

from ddpm.datasets.points import Ring
from ddpm.spaces import Pixels, Points, Space

torch.set_num_threads(1)


def pixels(levels: int) -> Pixels:
    return Pixels((1, 2, 2), levels)


# ---- grey levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_grey_level_survives(levels: int) -> None:
    """`encode` is evenly spaced on [−1, 1], `decode` its inverse; the bounds are its ends."""
    every, space = torch.arange(levels).to(torch.uint8), pixels(levels)
    x = space.encode(every)
    assert x.dtype == torch.float32 and (x[0], x[-1]) == space.bounds == (-1, 1)
    assert torch.allclose(x.double(), torch.linspace(-1, 1, levels, dtype=torch.float64), atol=2e-7, rtol=0)
    back = space.decode(x)
    assert back.dtype == torch.uint8
    assert torch.equal(back, every)


@pytest.mark.parametrize("levels", [17, 256])
def test_decoding_takes_the_nearest_level(levels: int) -> None:
    """Up to just under half a bin either way the level is kept; beyond the range it is cut."""
    every, space = torch.arange(levels).to(torch.uint8), pixels(levels)
    assert space.width == 2 / (levels - 1)
    for shift in (-0.49, 0.49):
        assert torch.equal(space.decode(space.encode(every) + shift * space.width), every)
    assert torch.equal(space.decode(space.encode(every[:-1]) + 0.51 * space.width), every[1:])
    assert space.decode(torch.tensor([-9.0, 9.0])).tolist() == [0, levels - 1]


def test_grey_levels_become_bytes() -> None:
    """0 … 16 is spread evenly over 0 … 255 and rounded; 256 levels stay as they are."""
    expected = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert DIGITS.to_images(torch.arange(17, dtype=torch.uint8)).tolist() == expected
    assert DIGITS.to_images(torch.arange(17, dtype=torch.uint8)).dtype == torch.uint8
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(pixels(256).to_images(every), every)
    assert pixels(2).to_images(torch.tensor([0, 1], dtype=torch.uint8)).tolist() == [0, 255]


def test_uniform_grey_levels() -> None:
    """Each level has a part 1/levels of (0, 1), which costs log2 of their number."""
    u = torch.tensor([1e-9, 0.249, 0.251, 0.5001, 0.999999], dtype=torch.float64)
    assert pixels(4).uniform(u).tolist() == [0, 0, 1, 2, 3] and pixels(4).uniform(u).dtype == torch.uint8
    assert pixels(4).uniform_bits == 2 and DIGITS.uniform_bits == math.log2(17)


@pytest.mark.parametrize("levels", [1, 0, 257])
def test_grey_levels_that_a_byte_cannot_hold_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"pixels: levels: {levels}; it must lie in 2 … 256"):
        pixels(levels)


# ---- points -----------------------------------------------------------------------------------------------


def test_points_stay_as_they_are() -> None:
    """Neither scaled nor rounded nor cut; a density; no bins, and uniform noise has no probability."""
    x = 100 * randn(0, 20, 2).float()
    assert all(torch.equal(f(x), x) for f in (PLANE.encode, PLANE.decode, PLANE.to_images))
    assert PLANE.decode(x.double()).dtype == torch.float32
    mean, log_std = randn(1, 20, 2), randn(2, 20, 2)
    expected = Normal(mean, log_std.exp()).log_prob(x.double())
    torch.testing.assert_close(PLANE.log_prob(x.double(), mean, log_std), expected, rtol=1e-12, atol=1e-12)
    assert (PLANE.width, PLANE.uniform_bits, PLANE.clips, PLANE.discrete, PLANE.images) == (0, None, *[False] * 3)


def test_points_are_bounded_by_the_training_split() -> None:
    """Coordinate by coordinate, exactly; uniform noise fills their rectangle."""
    train = Ring(train=100, test=2).load()[0].images
    space = Space.fit({"method": "points"}, train)
    assert torch.equal(space.bounds[0], train.amin(0)) and torch.equal(space.bounds[1], train.amax(0))
    assert torch.equal(space.uniform(torch.zeros(3, 2)), train.amin(0).expand(3, 2))
    centre = (train.amin(0) + train.amax(0)) / 2
    torch.testing.assert_close(space.uniform(torch.full((3, 2), 0.5)), centre.expand(3, 2))


# ---- what rebuilds them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [DIGITS, pixels(256), Space.fit({"method": "points"}, torch.rand(9, 2) / 3)])
def test_a_space_is_rebuilt_from_json(space: Space) -> None:
    """The same class with the same bounds, to the last bit."""
    found = Space.read(json.loads(json.dumps(space.spec)))
    assert found == space and type(found) is type(space)
    assert all(torch.equal(a, b) for a, b in zip(found.bounds, space.bounds, strict=True))


def test_a_dataset_gives_the_shape() -> None:
    """What it declares, and what its training split shows."""
    found = Space.fit({"method": "pixels", "levels": 17}, torch.zeros(5, 1, 8, 6, dtype=torch.uint8))
    assert found == Pixels((1, 8, 6), 17)
    assert isinstance(Space.fit({"method": "points"}, torch.zeros(5, 3)), Points)
    with pytest.raises(ValueError, match=r"method: 'voxels'; known are .*pixels, points"):
        Space.fit({"method": "voxels"}, torch.zeros(5, 3))
