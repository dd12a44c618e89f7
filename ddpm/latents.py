"""Latents: the space of an autoencoder's codes, in which diffusion costs less (Rombach et al. 2022; Sedykh 2024, 001,
section 5.2)."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.errors import UserError
from ddpm.networks.autoencoder import Autoencoder
from ddpm.pipeline.records import read_tensors
from ddpm.spaces import Space, log_normal

Tensor = torch.Tensor
# Images that are encoded or decoded at once.
BATCH = 256


@dataclass(frozen=True, eq=False)
class Latents(Space):
    """x = s z, z the mean of q(z | image), s = 1/std of all z of the training split (Rombach et al. 2022, appendix G).

    Images are stored as of `pixels`, the data's own space; x has no bounds that x̂0 would be clipped to.
    scale:    s.
    low, high: the smallest and the largest x of the training split, which say how far samples reach.
    measured: the standard deviation of x over the training split, see `deviation`; it is at most 1, because s counts
              what the coordinates' means differ by as well.
    """

    method = "latents"
    scale: float
    low: float
    high: float
    measured: float
    pixels: Space
    network: Autoencoder

    def __post_init__(self) -> None:
        """Nothing: it is made by `read` alone, and no configuration says its fields."""

    @property
    def spec(self) -> dict[str, object]:
        """For the record; what rebuilds it is the autoencoder's file."""
        return {"method": self.method, "shape": list(self.shape), "scale": self.scale}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.low), torch.tensor(self.high)

    @property
    def deviation(self) -> float:
        return self.measured

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode(self, stored: Tensor) -> Tensor:
        x = [self.network.encode(self.pixels.encode(part.to(self.device)))[0] for part in stored.split(BATCH)]
        return (self.scale * torch.cat(x)).to(stored.device)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """The images of x, uint8."""
        z = (x / self.scale).float().to(self.device)
        images = [self.pixels.decode(self.network.decode(part)) for part in z.split(BATCH)]
        return torch.cat(images).to(x.device)

    def log_prob(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """log N(x; mean, std²)."""
        return log_normal(x, mean, log_std)

    def to_images(self, stored: Tensor) -> Tensor:
        return self.pixels.to_images(stored)

    def uniform(self, u: Tensor) -> Tensor:
        return self.pixels.uniform(u)


@torch.no_grad()
def measure(network: Autoencoder, pixels: Space, stored: Tensor) -> dict[str, float]:
    """`scale`, `low`, `high` and `measured` of `Latents`, of the stored training split (N, ...).

    UserError where z does not depend on the image.
    """
    device = next(network.parameters()).device
    total, squares = torch.zeros(2, *network.shape, dtype=torch.float64)
    low, high, count = math.inf, -math.inf, len(stored)
    for part in stored.split(BATCH):  # the split may be larger than memory
        z = network.encode(pixels.encode(part.to(device)))[0].double().cpu()
        total, squares = total + z.sum(0), squares + z.square().sum(0)
        low, high = min(low, float(z.min())), max(high, float(z.max()))
    variance = float(squares.mean() / count - (total.mean() / count) ** 2)
    own = float(((squares - total.square() / count) / (count - 1)).mean().clamp(min=0).sqrt())
    if variance <= 0:
        raise UserError("autoencoder.kl_weight: every image has the same latents; it must be smaller")
    scale = variance**-0.5
    return {"scale": scale, "low": scale * low, "high": scale * high, "measured": scale * own}


def read(path: Path, pixels: Space, device: str = "cpu") -> Latents:
    """The latents of the autoencoder that is stored there; UserError where it is one of other data than those of the
    space `pixels`."""
    tensors, about = read_tensors(path)
    if not {"pixels", "settings", "measured"} <= about.keys():
        raise UserError(f"{path}: does not say what it encodes; delete it and run again")
    if (theirs := Space.read(about["pixels"])) != pixels:
        found, wanted = (", ".join(f"{k}: {v}" for k, v in space.spec.items()) for space in (theirs, pixels))
        raise UserError(f"{path}: an autoencoder of other data ({found}; these are {wanted}); delete it and run again")
    network = Autoencoder(pixels.shape, **about["settings"])
    network.load_state_dict(tensors)
    network = network.to(device).eval().requires_grad_(False)
    return Latents(network.shape, pixels=pixels, network=network, **about["measured"])
