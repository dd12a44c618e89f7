"""The second network of a cascade: a U-Net that is shown a low-resolution image (Ho et al. 2022; Sedykh 2024, 001,
figure 5.1)."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import nn
from torch.nn import functional as F

from ddpm.condition import NOTHING, Condition, LowResolution
from ddpm.networks.unet import UNet
from ddpm.parameters import Fraction, Interval

Tensor = torch.Tensor


def enlarged(z: Tensor, shape: Sequence[int]) -> Tensor:
    """z at the height and width that `shape` ends with, bilinearly."""
    return F.interpolate(z, size=tuple(shape[-2:]), mode="bilinear")


class SuperResolution(UNet):
    """A U-Net that sees, beside x, the low-resolution image, enlarged bilinearly, and how noisy that is, as channels.

    base:         the network that draws the low-resolution images: another one of `networks`.
    factor:       how many pixels become one of them, along each side.
    augmentation: s/T of the noise that their samples get (`ddpm.cascade`); training covers all of it.
    The others are those of `unet`.
    """

    method = "super-resolution"
    upsamples = True
    requires = (
        ("guidance", "guide", False, "a classifier of images of one size cannot guide both networks of a cascade"),
        ("guidance", "guide_network", None, "a cascade has two networks, and autoguidance names a worse one of one"),
    )

    def __init__(
        self,
        shape: tuple[int, int, int],
        heads: int = 1,
        classes: int = 0,
        *,
        base: str = "",
        factor: Annotated[int, Interval(ge=2)] = 2,
        augmentation: Fraction = 0.1,
        **unet: Any,
    ):
        super().__init__(shape, heads, classes, **unet)
        channels, *sides = shape
        self.factor, self.small = factor, (channels, *(side // factor for side in sides))
        self.first = nn.Conv2d(2 * channels + 1, self.first.out_channels, 3, padding=1)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition = NOTHING) -> Tensor:
        if not isinstance(condition, LowResolution) or condition.image is None or condition.noise is None:
            raise ValueError("super-resolution: it needs the low-resolution image that it is to enlarge")
        large = enlarged(condition.image, x.shape)
        noise = condition.noise[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return super().forward(torch.cat([x, large, noise], dim=1), log_snr, condition)
