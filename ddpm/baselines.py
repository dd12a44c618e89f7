"""The rows without a network, which say what a number means: real images, uniform noise, and histograms.

A baseline is sampled like a cell (`draw`) and, where its distribution is known, evaluated exactly (`bits_per_dim`), so
that it stands in the table with the same measures as the cells.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from ddpm import rng
from ddpm.datasets.dataset import Data, reference, stratified
from ddpm.methods import Named
from ddpm.metrics.toplines import by_chance
from ddpm.spaces import Pixels

Tensor = torch.Tensor


@dataclass(frozen=True)
class Baseline(Named):
    """Base of the baselines: each is a distribution of images, or points, and knows no more than the training split.

    title:   its name in the table, where that is not `method`.
    wants:   what the data must be or have, see `ddpm.pipeline.measures`.
    topline: how its classes come, `stratified` or `by chance`: the topline that it is divided by; empty where it is by
             none.
    real:    whether it is this topline itself, whose FID is the mean over many sets (`ddpm.metrics.toplines`).
    """

    title: ClassVar[str] = ""
    wants: ClassVar[tuple[str, ...]] = ()
    topline: ClassVar[str] = "by chance"
    real: ClassVar[bool] = False
    dataset: Data

    def draw(self, count: int) -> Tensor:
        """`count` images as the data are stored, the same at every call."""
        raise NotImplementedError

    def bits_per_dim(self, images: Tensor) -> Tensor | None:
        """−log2 p(x)/D of every image, exact, float64 (N,); None where the baseline has no p."""
        return None


@dataclass(frozen=True)
class Real(Baseline):
    """The ceiling: real images of the training split, every class in proportion (`ddpm.metrics.toplines`)."""

    method = "real"
    title = "real data"
    topline = "stratified"
    real = True

    def draw(self, count: int) -> Tensor:
        return stratified(self.dataset.train, count, "real row")


@dataclass(frozen=True)
class RealByChance(Real):
    """The ceiling of rows that draw their classes by chance: real images with classes drawn by chance.

    Class counts are multinomial, those of the first of its topline's sets (`ddpm.metrics.toplines`). Where chance asks
    for more images than a class has, these stand again from the first on, as weights of more than 1 do in the topline.
    Without classes these are the images of `Real`.
    """

    method = "real-by-chance"
    title = "real data, classes by chance"
    topline = "by chance"

    def draw(self, count: int) -> Tensor:
        train = self.dataset.train
        _, label = train.groups.unique(return_inverse=True)
        order, wanted = rng.permutation(len(label), "real row"), by_chance(label.bincount(), count, draw=0)
        classes = (order[label[order] == c] for c in range(len(wanted)))
        kept = [of[torch.arange(k) % len(of)] for of, k in zip(classes, wanted.tolist(), strict=True)]
        return train.images[torch.cat(kept)]


@dataclass(frozen=True)
class Reconstructions(Baseline):
    """The ceiling of rows in latents: test images that the autoencoder has encoded and decoded.

    They are the very images of the test split that they are measured against, so that 0 would be a perfect autoencoder,
    and no topline is theirs (Rombach et al. 2022, table 8: R-FID).
    """

    method = "reconstructions"
    title = "test images, decoded from latents"
    wants: ClassVar[tuple[str, ...]] = ("autoencoder",)
    topline = ""

    def draw(self, count: int) -> Tensor:
        space = self.dataset.space
        return space.decode(space.encode(reference(self.dataset, "test", count)))


@dataclass(frozen=True)
class UniformNoise(Baseline):
    """The floor: uniform over all grey levels, log2 of their number in bits/dim; of points, over their rectangle."""

    method = "noise"

    def draw(self, count: int) -> Tensor:
        u = rng.uniform(rng.key("noise row"), torch.arange(count), 0, tuple(self.dataset.train.images.shape[1:]))
        return self.dataset.space.uniform(u)

    def bits_per_dim(self, images: Tensor) -> Tensor | None:
        bits = self.dataset.space.uniform_bits
        return None if bits is None else torch.full((len(images),), bits, dtype=torch.float64)


@dataclass(frozen=True)
class ClassHistogram(Baseline):
    """Pixels that are independent given the class: p(x) = Σ_y p(y) Π_d p(x_d | y), of images with K grey levels.

    The probabilities are Krichevsky & Trofimov's (1981), half a count added to every level and every class (Jeffreys'
    prior), so that no image is impossible: p(x_d = k | y) = (n_ydk + ½)/(n_y + K/2), p(y) = (n_y + ½)/(N + C/2).
    """

    method = "class-histogram"
    wants: ClassVar[tuple[str, ...]] = ("discrete", "labels")

    def groups(self) -> tuple[Tensor, int]:
        """The class of every training image, and how many classes there are."""
        return self.dataset.train.groups, max(1, self.dataset.classes)

    @cached_property
    def probabilities(self) -> tuple[Tensor, Tensor]:
        """p(y) (C,) and p(x_d = k | y) (C, D, K), float64."""
        space = self.dataset.space
        if not isinstance(space, Pixels):
            raise ValueError(f"{self.method}: these data are {space.method}; a histogram is of grey levels")
        (labels, classes), levels = self.groups(), space.levels
        dims = math.prod(self.dataset.train.images.shape[1:])
        counts = torch.zeros(classes * dims * levels, dtype=torch.float64)
        for x, y in zip(self.dataset.train.images.split(256), labels.split(256), strict=True):
            place = (y[:, None] * dims + torch.arange(dims)) * levels + x.flatten(1)
            counts += torch.bincount(place.flatten(), minlength=len(counts))
        images = torch.bincount(labels, minlength=classes).double() + 0.5
        counts = counts.reshape(classes, dims, levels) + 0.5
        return images / images.sum(), counts / counts.sum(2, keepdim=True)

    def draw(self, count: int) -> Tensor:
        # u falls on a level with the level's probability. The last edge is 1 up to rounding, and u < 1 − 2^−34.
        class_edges, level_edges = (p.cumsum(-1) for p in self.probabilities)
        key, index = rng.key(f"{self.method} row"), torch.arange(count)
        y = torch.searchsorted(class_edges, rng.uniform(key, index, 0), right=True)
        u = rng.uniform(key, index, 1, (level_edges.shape[1],))
        x = [torch.searchsorted(level_edges[c], v[:, None], right=True) for c, v in zip(y, u, strict=True)]
        return torch.stack(x).to(torch.uint8).reshape(-1, *self.dataset.train.images.shape[1:])

    def bits_per_dim(self, images: Tensor) -> Tensor:
        log_class, log_level = (p.log2() for p in self.probabilities)
        dims, found = torch.arange(log_level.shape[1]), []
        for x in images.flatten(1).long().split(256):
            joint = log_class + log_level[:, dims, x].sum(2).T
            found.append(-(joint * math.log(2)).logsumexp(1) / (math.log(2) * len(dims)))
        return torch.cat(found)


@dataclass(frozen=True)
class Histogram(ClassHistogram):
    """Independent pixels: p(x) = Π_d p(x_d), the class histogram of a single class."""

    method = "histogram"
    wants = ("discrete",)

    def groups(self) -> tuple[Tensor, int]:
        return torch.zeros_like(self.dataset.train.groups), 1
