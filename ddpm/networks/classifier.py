"""Two small convolutional classifiers: the feature extractor of FID, and the guide, which sees noisy images."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ddpm.condition import NOTHING
from ddpm.networks.embedding import ConditionEmbedding
from ddpm.networks.unet import normalise

Tensor = torch.Tensor


class Classifier(nn.Module):
    """(images in [−1, 1] (B, C, H, W), or points (B, D)) → logits (B, classes); `features` gives the ReLU layer below.

    Three times convolution, batch norm, ReLU, 2×2 max pooling with `width`, 2 `width`, 4 `width` channels
    (as often as the image can be halved down to 2 pixels; never for points), then `features` hidden units.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 16, features: int = 64):
        super().__init__()
        (channels, *size), layers, out = shape, [], width
        for _ in range(3):
            if min(size, default=0) < 4:
                break
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
            channels, size, out = out, [pixels // 2 for pixels in size], 2 * out
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(size), features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class NoisyClassifier(nn.Module):
    """(noisy images (B, C, H, W), log SNR (B,)) → logits (B, classes): p(y | x_t) for classifier guidance.

    Three convolutions with `width`, 2 `width` and 4 `width` channels, each halving the image (as often as that leaves 2
    pixels), normalised, then scaled and shifted by the noise level; the mean over the image; one linear layer.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 32):
        super().__init__()
        widths = [shape[0], width, 2 * width, 4 * width]
        strides = [2 if min(shape[1:]) >= 4 << i else 1 for i in range(3)]
        self.condition = ConditionEmbedding(4 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nn.ModuleList(map(normalise, widths[1:]))
        self.shifts = nn.ModuleList(nn.Linear(4 * width, 2 * w) for w in widths[1:])
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        embedding = self.condition(log_snr, NOTHING)
        for convolution, norm, shift in zip(self.convolutions, self.norms, self.shifts, strict=True):
            scale, offset = shift(embedding)[:, :, None, None].chunk(2, dim=1)
            x = F.silu(norm(convolution(x)) * (1 + scale) + offset)
        return self.head(x.mean((2, 3)))
