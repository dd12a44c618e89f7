"""A convolutional autoencoder of images with a Gaussian code (Kingma & Welling 2014; Rombach et al. 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

from ddpm.networks.unet import normalise, zeroed

Tensor = torch.Tensor
# A resolution has twice the channels of the one above it, up to this multiple of the first's.
WIDEST = 4


class Residual(nn.Module):
    """Two convolutions with group normalisation and a residual connection."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = normalise(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = normalise(width), zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Autoencoder(nn.Module):
    """q(z | x) = N(mean, diag exp(log variance)) of images x (B, C, H, W), and x̂ of z (B, channels, H/f, W/f).

    shape:    (C, H, W), whose height and width `factor` divides.
    width:    channels at half the images' size; at half that again twice as many, up to four times.
    channels: of z.
    factor:   f, a power of 2. Four pixels become channels (Shi et al. 2016) as often as it says, each time with a
              residual block behind, so that no convolution works at full size.
    """

    def __init__(self, shape: tuple[int, ...], width: int, channels: int, factor: int):
        super().__init__()
        image, *size = shape
        self.shape = (channels, *(side // factor for side in size))
        widths = [width * min(1 << i, WIDEST) for i in range(factor.bit_length() - 1)]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for into, out in zip([image, *widths], widths, strict=False):
            down += [nn.PixelUnshuffle(2), nn.Conv2d(4 * into, out, 3, padding=1), Residual(out)]
            up = [Residual(out), nn.Conv2d(out, 4 * into, 3, padding=1), nn.PixelShuffle(2), *up]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * channels, 1))
        self.decoder = nn.Sequential(nn.Conv2d(channels, widths[-1], 3, padding=1), *up)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """x̂ of z."""
        return self.decoder(z)
