"""Points in the plane, all of about the same size: coordinates of a standard deviation near 4."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from ddpm import rng
from ddpm.datasets.dataset import Dataset, Split
from ddpm.exact import Mixture
from ddpm.parameters import Count, Index, Interval, Len, NonNegative

Tensor = torch.Tensor
# Of Gaussians and squares: not a point.
Width = Annotated[float, Interval(ge=1e-6)]


@dataclass(frozen=True)
class Points(Dataset):
    """Independent points in the plane: `train` of them for training, `test` others; `seed` draws them.

    A point's label says which part of the distribution it was drawn from.
    """

    space = {"method": "points"}
    std = 4.0
    shape = (2,)
    seed: Index = 0
    # Of other datasets a fact, here parameters.
    train: Count = 10000  # type: ignore[misc]
    test: Annotated[int, Interval(ge=2)] = 2000  # type: ignore[misc]

    def load(self) -> tuple[Split, Split]:
        splits = []
        for split, count in (("train", self.train), ("test", self.test)):
            key, index = rng.key("points", split, self.seed), torch.arange(count)
            u, z = rng.uniform(key, index, 0, (2,)), rng.normal(key, index, 1, (2,), torch.float64)
            points, labels = self.place(u, z)
            splits.append(Split(points.float(), labels))
        return splits[0], splits[1]

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points float64 (N, 2) and labels int64 (N,) from uniform (N, 2) and standard normal (N, 2) numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussians(Points):
    """Points of a mixture of Gaussians, whose diffusion is known in closed form (`ddpm.exact`)."""

    def density(self) -> Mixture:
        """The mixture itself."""
        raise NotImplementedError

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.density().draw(u[:, 0], z)

    def log_density(self, images: Tensor) -> Tensor:
        return self.density().log_density(images)


@dataclass(frozen=True)
class GaussianMixture(Gaussians):
    """Σ_k w_k N(m_k, s_k² I), with `weights` w (K), `means` m (K × 2) and `spreads` s (K).

    The default is that of Song & Ermon 2019, figures 2 and 3 (001, figures 3.1 and 3.2): modes so far apart that
    Langevin dynamics does not cross between them.
    """

    method = "mixture"
    paired = (("weights", "means", "spreads"),)
    shares = ("weights",)
    weights: Annotated[tuple[Annotated[float, Interval(ge=1e-9, le=1)], ...], Len(1)] = (0.8, 0.2)
    means: Annotated[tuple[tuple[float, float], ...], Len(1)] = ((5.0, 5.0), (-5.0, -5.0))
    spreads: Annotated[tuple[Width, ...], Len(1)] = (1.0, 1.0)

    @property
    def classes(self) -> int:  # type: ignore[override]  # of other datasets a fact, here a parameter's
        return len(self.weights)

    def density(self) -> Mixture:
        spreads = torch.tensor(self.spreads, dtype=torch.float64)[:, None]
        weights, means = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means))
        return Mixture(weights, means, (spreads**2).expand_as(means))


@dataclass(frozen=True)
class Ring(Gaussians):
    """`count` Gaussians of equal weight and standard deviation `spread` on a circle of `radius`."""

    method = "ring"
    count: Count = 8
    radius: NonNegative = 6.0
    spread: Width = 0.5

    @property
    def classes(self) -> int:  # type: ignore[override]  # of other datasets a fact, here a parameter's
        return self.count

    def density(self) -> Mixture:
        k = torch.arange(self.count, dtype=torch.float64)
        means = polar(self.radius, 2 * math.pi * k / self.count)
        return Mixture(torch.full_like(k, 1 / self.count), means, torch.full_like(means, self.spread**2))


def polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    """Points of the plane, (N, 2)."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


@dataclass(frozen=True)
class Moons(Points):
    """Two half circles of `radius`, each reaching into the other, with Gaussian noise of `spread`."""

    method = "moons"
    classes = 2
    radius: NonNegative = 5.0
    spread: NonNegative = 0.4

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        labels = (u[:, 0] < 0.5).long()
        sign = 1 - 2.0 * labels[:, None]
        centre = torch.tensor([-0.5, -0.25], dtype=torch.float64)
        return sign * self.radius * (polar(1.0, math.pi * u[:, 1]) + centre) + self.spread * z, labels


@dataclass(frozen=True)
class Circles(Points):
    """Two circles about the origin, of `radius` and half of it, with Gaussian noise of `spread`."""

    method = "circles"
    classes = 2
    radius: NonNegative = 6.0
    spread: NonNegative = 0.3

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        labels = (u[:, 0] < 0.5).long()
        return polar(self.radius / (1.0 + labels), 2 * math.pi * u[:, 1]) + self.spread * z, labels


@dataclass(frozen=True)
class Spiral(Points):
    """`arms` Archimedean spirals of `turns` turns out to `radius`, with Gaussian noise of `spread`.

    One arm is a Swiss roll. The points lie evenly in angle, so that an arm thins out as it grows.
    """

    method = "spiral"
    arms: Count = 2
    turns: NonNegative = 1.25
    radius: NonNegative = 8.0
    spread: NonNegative = 0.25

    @property
    def classes(self) -> int:  # type: ignore[override]  # of other datasets a fact, here a parameter's
        return self.arms

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        labels = (u[:, 0] * self.arms).long()
        angle = 2 * math.pi * (self.turns * u[:, 1] + labels / self.arms)
        return polar(self.radius * u[:, 1], angle) + self.spread * z, labels


@dataclass(frozen=True)
class Checkerboard(Points):
    """Uniform on the 8 dark squares, of side `side`, of a board of 4 × 4."""

    method = "checkerboard"
    classes = 8
    side: Width = 3.0

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        square = u[:, 0] * 8
        labels = square.long()
        row = labels // 2
        corner = torch.stack([2 * (labels % 2) + row % 2, row], dim=1) - 2
        # What is left of u after the square was chosen is uniform again.
        return self.side * (corner + torch.stack([square - labels, u[:, 1]], dim=1)), labels
