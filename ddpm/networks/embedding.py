"""The embedding of what every network is conditioned on: the noise level and, where there are classes, the label."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ddpm.condition import Condition

Tensor = torch.Tensor


class ConditionEmbedding(nn.Module):
    """(log SNR (B,), condition) → (B, width).

    Sines and cosines of log SNR at frequencies between 1/8 and 16 rad per nat, then two linear layers;
    log SNR instead of the index t serves every schedule, discrete or continuous. `classes` labels are
    embedded and added; the index `classes` is the null label, which all images have where the condition has none.
    """

    frequency: Tensor

    def __init__(self, width: int, classes: int = 0, features: int = 32):
        super().__init__()
        self.classes = classes
        frequency = torch.linspace(math.log(1 / 8), math.log(16), features).exp()
        self.register_buffer("frequency", frequency, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, log_snr: Tensor, condition: Condition) -> Tensor:
        angle = log_snr[:, None] * self.frequency
        embedding = self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))
        if self.label is not None:
            null = torch.full((len(log_snr),), self.classes, device=log_snr.device)
            embedding = embedding + self.label(null if condition.labels is None else condition.labels)
        return F.silu(embedding)
