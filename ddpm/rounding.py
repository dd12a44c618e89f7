"""How far what other hardware made may lie from what is computed here: the one place that says so.

On one kind of processor everything comes out byte for byte. Another one adds in another order, and what it rounds
otherwise grows over the steps of a sampler, in bfloat16 most. The same weights, noise and precision with the kernels of
an older processor (AVX2 in place of AVX-512 with bfloat16; three cells of the digits and three of MNIST) drew images
that differ in up to half of their pixels, but little in size, and in no direction. Beside each bound stands what they
differed by, and what another sample of the same cell did. Metrics of the same samples agreed up to 4·10⁻⁵ of their
value.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

Tensor = torch.Tensor
# Mean difference of an image's values, of the span of the data: up to 0.007; another image at least 0.08.
MEAN = 0.02
# Share of an image's values that differ by more than a tenth of the span: up to 0.003; another image at least 0.14.
LARGE, FEW = 0.1, 0.02
# Mean of all differences with their sign, in grey levels: up to 0.03; images one level brighter nearly 1.
SHIFT = 0.1
# Metrics and bits/dim: relative, and absolute where they may be near 0. GPUs may multiply with ten bits (TF32).
RELATIVE, ABSOLUTE = 0.01, 0.001
# Of the classifier, trained again: the norm of its weights' difference, relative; how many more it labels rightly, as a
# share of the test split: 0.003 of a hardly trained one.
WEIGHTS, ACCURACY = 0.05, 0.02
TILE = 32  # pixels of a picture that are compared as one image
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def unlike(stored: Tensor, drawn: Tensor, span: float) -> Tensor:
    """Which images (N, …) differ by more than rounding; span: the difference of the data's largest and least value."""
    by = (stored.double() - drawn.double()).flatten(1).abs() / span
    return (by.mean(1) > MEAN) | ((by > LARGE).double().mean(1) > FEW)


def shift(stored: Tensor, drawn: Tensor, level: float) -> float:
    """By how many grey levels images (N, …) are brighter on average, where that is more than rounding; else 0."""
    by = float((stored.double() - drawn.double()).mean()) / level
    return by if abs(by) > SHIFT else 0.0


def close(was: float, now: float, trained: bool = False) -> bool:
    """Whether a metric differs by rounding alone, or the accuracy of what was trained again; counts are to be the
    same."""
    if isinstance(was, int) and isinstance(now, int):
        return was == now
    return math.isclose(was, now, rel_tol=RELATIVE, abs_tol=ACCURACY if trained else ABSOLUTE)


def alike(found: Path, again: Path) -> bool:
    """Whether two files of texts, tensors or pictures differ by rounding alone."""
    if found.suffix == ".png":
        return _pictures(*(_tiles(path) for path in (found, again)))
    if found.suffix == ".safetensors":
        return _weights(load_file(found), load_file(again))
    if found.suffix in (".csv", ".svg"):
        was, now = (NUMBER.split(path.read_text(encoding="utf-8")) for path in (found, again))
        return was[::2] == now[::2] and all(
            close(float(a), float(b)) for a, b in zip(was[1::2], now[1::2], strict=True)
        )
    return found.read_bytes() == again.read_bytes()


def _tiles(path: Path) -> Tensor:
    """The picture in squares, (N, values); what is left over at its edges is white."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    height, width = ((size + TILE - 1) // TILE * TILE for size in pixels.shape[:2])
    whole = torch.full((height, width, 3), 255, dtype=torch.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(2).flatten(0, 1)


def _pictures(found: Tensor, again: Tensor) -> bool:
    return found.shape == again.shape and not unlike(found, again, 255).any()


def _weights(found: dict[str, Tensor], again: dict[str, Tensor]) -> bool:
    shapes = ({name: tensor.shape for name, tensor in of.items()} for of in (found, again))
    if next(shapes) != next(shapes):
        return False
    pairs = [(found[name].double(), again[name].double()) for name in found]
    by, of = (sum(float(t.square().sum()) for t in ts) for ts in ((a - b for a, b in pairs), (b for _, b in pairs)))
    return by <= WEIGHTS**2 * of
