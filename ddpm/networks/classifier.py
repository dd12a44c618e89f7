"""The small convolutional classifier that serves as feature extractor for FID."""

import torch
from torch import nn

Tensor = torch.Tensor


class Classifier(nn.Module):
    """(images in [−1, 1] (B, C, H, W)) → logits (B, classes); `features` gives the ReLU layer below, (B, D).

    Three times convolution, batch norm, ReLU, 2×2 max pooling with `width`, 2 `width`, 4 `width` channels
    (as often as the image can be halved down to 2 pixels), then `features` hidden units.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 16, features: int = 64):
        super().__init__()
        (channels, height, width_px), layers, out = shape, [], width
        for _ in range(3):
            if min(height, width_px) < 4:
                break
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width_px, out = out, height // 2, width_px // 2, 2 * out
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width_px, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
