"""What a network is told of an image beside its noise level."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What the images of a batch are to show: `labels`, int64 (B,), the class of each; without them, nothing.

    What is done with a condition is done with every field that is there, so that another kind of condition is a class
    with more fields.
    """

    labels: Tensor | None = None

    def each(self, change: Callable[..., Tensor], *others: Self) -> Self:
        """`change` of every field that is there, and of the same field of the others, which must be there too."""
        found: dict[str, Tensor | None] = {}
        for name in (f.name for f in fields(self)):
            values = [getattr(condition, name) for condition in (self, *others)]
            found[name] = None if values[0] is None else change(*values)
        return type(self)(**found)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """That of the images `index`."""
        return self.each(lambda value: value[index])

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return self.each(lambda value: value.to(device))

    def join(self, other: Self) -> Self:
        """That of two batches, one after the other."""
        return self.each(lambda *values: torch.cat(values), other)

    def where(self, chosen: Tensor, other: Self) -> Self:
        """This one for the images `chosen`, bool (B,), and the other for the rest of them."""
        return self.each(lambda a, b: torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), other)


@dataclass(frozen=True, eq=False)
class LowResolution(Condition):
    """With the low-resolution image that each is to be an enlarged version of (`ddpm.cascade`).

    image: (B, C, h, w), with noise, scaled to about unit variance;  noise: its share of that, σ/√(α² + σ²), (B,).
    """

    image: Tensor | None = None
    noise: Tensor | None = None


# No condition: what unconditional networks and guidances have, and what a conditional network takes as its null.
NOTHING = Condition()
