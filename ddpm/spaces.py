"""Spaces: what stands between the data, as they are stored, and the model, which knows x alone.

`encode` makes x of stored images, `decode` stored images of x; the forward process, the networks and the samplers see
x and nothing else. A further space is one more class below `Space`; the dataset names it (`ddpm.datasets.dataset`), and
the stored dataset and the record of training say all that rebuilds it (`Space.spec`, `Space.read`). `ddpm.latents`
has one that is trained.
"""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Self

import torch
from torch.special import log_ndtr

from ddpm.extensions import file_of
from ddpm.methods import Method
from ddpm.parameters import Interval

Tensor = torch.Tensor


def log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std²) of every element, in nats."""
    return -0.5 * ((x - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Space(Method):
    """Base of the spaces.

    images:   whether what is stored are images; otherwise they are points.
    discrete: whether `log_prob` is that of a probability; otherwise it is that of a density.
    clips:    whether x has bounds that x̂0 is clipped to.
    shape:    of one x: (C, H, W) or (D,).
    """

    images: ClassVar[bool] = True
    discrete: ClassVar[bool] = False
    clips: ClassVar[bool] = False
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, spec: dict, train: Tensor) -> Self:
        """The space that a dataset declares as `spec`, for a training split that is stored as `train` (N, ...)."""
        return cls.read(spec | cls.named(spec["method"]).measure(train))

    @classmethod
    def read(cls, spec: dict) -> Self:
        """The space that `spec` describes, as JSON gives it back."""
        return cls.make({k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})

    @staticmethod
    def measure(train: Tensor) -> dict[str, object]:
        """The parameters that follow from the stored training split."""
        return {"shape": tuple(train.shape[1:])}

    @property
    def spec(self) -> dict[str, object]:
        """All that rebuilds this space, for JSON: with its file in `modules`, where that is one of the user's own."""
        own = {"modules": files} if (files := file_of(type(self))) else {}
        return (
            {"method": self.method} | own | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        )

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of x, of every coordinate or of all alike."""
        raise NotImplementedError

    @property
    def deviation(self) -> float | None:
        """The standard deviation of x over the training split, as in `Data.deviation`, where the space knows it."""
        return None

    @property
    def width(self) -> float:
        """The width of the bins that uniform dequantisation spreads x over; 0 where x is continuous."""
        return 0.0

    def encode(self, stored: Tensor) -> Tensor:
        """Stored images → x, float32, (N, *shape)."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """x (N, *shape) → what is stored of it."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """The decoder's log p(x0 | x1) at x0 = x, in nats, of every element: the logarithm of a probability, or of a
        density (`discrete`)."""
        raise NotImplementedError

    def to_images(self, stored: Tensor) -> Tensor:
        """Stored images as feature extractors and pictures take them: uint8, 0 … 255; points as they are."""
        raise NotImplementedError

    def uniform(self, u: Tensor) -> Tensor:
        """Uniform noise as it would be stored, from uniform numbers u in (0, 1) of the stored images' shape."""
        raise NotImplementedError

    @property
    def uniform_bits(self) -> float | None:
        """−log2 of the probability of uniform noise, per dimension; None where it has no probability."""
        return None


@dataclass(frozen=True)
class Pixels(Space):
    """Grey levels 0 … levels − 1, stored as uint8; level k is x = 2k/(levels − 1) − 1 in [−1, 1]."""

    method = "pixels"
    discrete = True
    clips = True
    levels: Annotated[int, Interval(ge=2, le=256)] = 256

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(-1.0), torch.tensor(1.0)

    @property
    def width(self) -> float:
        return 2 / (self.levels - 1)

    def encode(self, stored: Tensor) -> Tensor:
        return stored.float() * (2 / (self.levels - 1)) - 1

    def decode(self, x: Tensor) -> Tensor:
        """The nearest grey level, uint8; what lies beyond the bounds gets the outermost."""
        return ((x + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1).to(torch.uint8)

    def log_prob(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """log P(x): the mass of N(mean, std²) in the level's bin, the outer bins reaching to infinity.

        Ho et al. 2020, eq. 13. The exact Φ through log_ndtr: log(Φ(b) − Φ(a)) = log Φ(b) + log(1 − Φ(a)/Φ(b)), taken in
        the lower tail by symmetry, where it does not cancel.
        """
        half_bin = 1 / (self.levels - 1)
        inverse_std = (-log_std).exp()
        upper = (x - mean + half_bin) * inverse_std
        lower = (x - mean - half_bin) * inverse_std
        upper = torch.where(x > 1 - half_bin, math.inf, upper)
        lower = torch.where(x < half_bin - 1, -math.inf, lower)
        flip = lower + upper > 0
        a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        log_b = log_ndtr(b)
        # Φ(a) = 0 at a = −inf: the stand-ins keep the gradient of the branch that is not taken finite.
        finite = a > -math.inf
        ratio = torch.where(finite, log_ndtr(torch.where(finite, a, b)) - log_b, -1)
        return torch.where(finite, log_b + torch.log(-torch.expm1(ratio)), log_b)

    def to_images(self, stored: Tensor) -> Tensor:
        return (stored.double() * (255 / (self.levels - 1))).round().to(torch.uint8)

    def uniform(self, u: Tensor) -> Tensor:
        return (u * self.levels).floor().to(torch.uint8)

    @property
    def uniform_bits(self) -> float:
        return math.log2(self.levels)


@dataclass(frozen=True)
class Points(Space):
    """Points of continuous coordinates without bounds, stored as float32: x is the point itself.

    low, high: the smallest and the largest value of every coordinate in the training split, which bound uniform noise
    and say how far samples reach.
    """

    method = "points"
    images = False
    low: tuple[float, ...]
    high: tuple[float, ...]

    @staticmethod
    def measure(train: Tensor) -> dict[str, object]:
        low, high = (tuple(edge.flatten().tolist()) for edge in (train.amin(0), train.amax(0)))
        return {"shape": tuple(train.shape[1:]), "low": low, "high": high}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.low).reshape(self.shape), torch.tensor(self.high).reshape(self.shape)

    def encode(self, stored: Tensor) -> Tensor:
        return stored.float()

    def decode(self, x: Tensor) -> Tensor:
        """The point itself, float32."""
        return x.float()

    def log_prob(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """log N(x; mean, std²)."""
        return log_normal(x, mean, log_std)

    def to_images(self, stored: Tensor) -> Tensor:
        return stored

    def uniform(self, u: Tensor) -> Tensor:
        """Uniform over the rectangle that the bounds span."""
        return torch.lerp(*self.bounds, u.float())
