"""A U-Net of diffusers that was trained elsewhere."""

from typing import Annotated

import torch

from ddpm.condition import NOTHING, Condition
from ddpm.errors import UserError
from ddpm.networks.network import Network
from ddpm.parameters import Count, Fraction, Len
from ddpm.pipeline.imports import architecture, misfit

Tensor = torch.Tensor


class DiffusersUNet(Network):
    """(x (B, C, H, W), log SNR (B,), condition) → ε̂ (B, C, H, W) by diffusers' `UNet2DModel`, imported and not trained.

    path: a folder with config.json and diffusion_pytorch_model.safetensors, such as a copy of google/ddpm-cifar10-32.
    steps, beta_first, beta_last: of the linear β_0 … β_{steps−1} that it was trained with.

    What it is told of the time is the index i of that schedule: i(log SNR) is interpolated between the
    log SNR_i = log ᾱ_i/(1 − ᾱ_i), ᾱ_i = Π_{j≤i} (1 − β_j), so that it works on other schedules too. On its own, t is
    i + 1.
    """

    method = "diffusers"
    imported = True
    reads = {
        "architecture": ("path", "config.json"),
        "network": ("path", "diffusion_pytorch_model.safetensors"),
    }
    requires = (
        ("objective", "target", "eps", "an imported network of diffusers predicts ε: the target must be eps"),
        ("objective", "variance", "fixed", "an imported network of diffusers has no variance: it must be fixed"),
        ("guidance", "labels", "unconditional", "an imported network of diffusers takes no labels"),
    )

    def __init__(
        self,
        shape: tuple[int, int, int],
        heads: int = 1,
        classes: int = 0,
        *,
        path: Annotated[str, Len(1)],
        steps: Count = 1000,
        beta_first: Fraction = 1e-4,
        beta_last: Fraction = 0.02,
    ):
        super().__init__()
        found = architecture(path)
        if (wrong := misfit(path, found, shape)) or heads != 1 or classes:
            raise UserError(f"network.{wrong or 'method: diffusers; it has neither a variance nor labels'}")
        try:
            from diffusers import UNet2DModel
        except ImportError:
            raise UserError(
                f"network.path: {path!r} is read with the package diffusers: `pip install diffusers`"
            ) from None
        self.unet = UNet2DModel.from_config(found)
        kept = (1 - torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)).cumprod(0)
        self.register_buffer("own_log_snr", (kept / (1 - kept)).log(), persistent=False)

    def index(self, log_snr: Tensor) -> Tensor:
        """i of every log SNR (B,), float32, between 0 and steps − 1; a thousandth off a whole number is that number."""
        falling = -self.get_buffer("own_log_snr")
        at = torch.searchsorted(falling, -log_snr.double()).clamp(1, len(falling) - 1)
        below, above = falling[at - 1], falling[at]
        i = (at - 1 + (-log_snr.double() - below) / (above - below)).clamp(0, len(falling) - 1)
        return torch.where((i - i.round()).abs() < 1e-3, i.round(), i).float()

    def forward(self, x: Tensor, log_snr: Tensor, condition: Condition = NOTHING) -> Tensor:
        return self.unet(x, self.index(log_snr), return_dict=False)[0]
