"""Datasets: images or points as they are stored, their labels where they have any, and the two splits."""

import math
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ddpm import latents, rng
from ddpm.errors import UserError
from ddpm.methods import Method
from ddpm.pipeline.records import read_tensors
from ddpm.spaces import Space

Tensor = torch.Tensor
# Images of more bytes than this are gathered in a file instead of in memory.
LARGE = 2**30


@dataclass(frozen=True)
class Split:
    """One split of a dataset: images as they are stored, uint8 (N, C, H, W) of grey levels or points float32 (N, D);
    labels int64 (N,), or None where the data have none."""

    images: Tensor
    labels: Tensor | None = None

    @property
    def groups(self) -> Tensor:
        """The class of every image, int64 (N,): without labels all are of one."""
        return torch.zeros(len(self.images), dtype=torch.int64) if self.labels is None else self.labels

    @property
    def known(self) -> Tensor:
        """The labels, for what cannot do without them; UserError where the data have none."""
        if self.labels is None:
            raise UserError(
                "data.name: these data have no labels; a classifier, a guide or a conditional network would need some"
            )
        return self.labels


class Dataset(Method):
    """A dataset's `load` gives its training and its test split.

    space: the method of `ddpm.spaces` that stands between the images and a model, and what it does not measure itself.
    classes: how many classes the labels 0, 1, … name; 0: there are no labels.
    std: about the standard deviation of a coordinate of x, in [−1, 1] for pixels: what a schedule's noise must outgrow.
    shape, train and test: (C, H, W) of an image or (D,) of a point, and how many are in each split, so that a
    configuration can be checked without the data; None where that is not known before.
    form: the parameters whose values are the shape, where it depends on them.
    reads: what the user's own files are called in records → (the parameter that says where they lie, the file there).
    """

    space: ClassVar[dict[str, object]] = {"method": "pixels"}
    classes: ClassVar[int] = 10
    std: ClassVar[float] = 0.5
    shape: ClassVar[tuple[int, ...] | None] = None
    train: ClassVar[int | None] = None
    test: ClassVar[int | None] = None
    form: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[dict[str, tuple[str, str]]] = {}

    def load(self) -> tuple[Split, Split]:
        raise NotImplementedError

    def log_density(self, images: Tensor) -> Tensor | None:
        """log p of every image, in nats, float64 (N,), where it is known in closed form."""
        return None


@dataclass(frozen=True)
class Data:
    """What every later stage reads: both splits, the space of their images, and how many classes there are."""

    train: Split
    test: Split
    space: Space
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one x, (D,) of one point."""
        return self.space.shape

    def is_stratified(self, labels: Tensor | None) -> bool:
        """Whether labels (N,) have the training split's proportions, as nearly as N allows, as those of cells that are
        given labels; False without any."""
        if labels is None:
            return False
        sizes = self.train.groups.bincount(minlength=self.classes)
        return torch.equal(labels.bincount(minlength=self.classes), proportional(sizes, len(labels)))

    @cached_property
    def deviation(self) -> float:
        """The standard deviation of x over the training split: the root of its variance's mean over coordinates."""
        if (known := self.space.deviation) is not None:
            return known
        count = len(self.train.images)
        total, squares = torch.zeros(2, *self.shape, dtype=torch.float64)
        for stored in self.train.images.split(256):  # the split may be larger than memory
            x = self.space.encode(stored).double()
            total, squares = total + x.sum(0), squares + x.square().sum(0)
        return float(((squares - total.square() / count) / (count - 1)).mean().clamp(min=0).sqrt())

    @property
    def variance(self) -> float:
        """The variance of x over the training split, summed over coordinates: E‖x − E x‖²."""
        count = len(self.train.images)
        return self.deviation**2 * math.prod(self.shape) * (count - 1) / count


def empty(count: int, shape: tuple[int, ...]) -> Tensor:
    """Room for images, uint8 (count, *shape): in memory, or, of more than LARGE bytes, in a temporary file."""
    if (size := count * math.prod(shape)) <= LARGE:
        return torch.empty(count, *shape, dtype=torch.uint8)
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error here, not a crash later
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(count, *shape)))


def read(path: Path, autoencoder: Path | None = None, device: str = "cpu") -> Data:
    """The stored dataset; with the file of an autoencoder, whose network then is on `device`, in its latents."""
    tensors, about = read_tensors(path)
    if not {"space", "classes"} <= about.keys():
        raise UserError(f"{path}: does not say its space and classes; delete it and run again")
    train, test = (Split(tensors[f"{split}_images"], tensors.get(f"{split}_labels")) for split in ("train", "test"))
    space = Space.read(about["space"])
    return Data(train, test, latents.read(autoencoder, space, device) if autoencoder else space, about["classes"])


def reference(dataset: Data, split: str, count: int | None = None) -> Tensor:
    """Real images of one split in a seeded order (MNIST's own order matters), the first `count` of them."""
    images = getattr(dataset, split).images
    if count is not None and count > len(images):
        raise UserError(f"images: {count} wanted, but the {split} split holds {len(images)}")
    return images[rng.permutation(len(images), "reference", split)][:count]


def proportional(sizes: Tensor, count: int) -> Tensor:
    """`count` shared out in proportion to `sizes` (C,), int64 (C,): by largest remainder, ties to the first."""
    whole, left = sizes * count // sizes.sum(), sizes * count % sizes.sum()
    whole[left.argsort(descending=True, stable=True)[: count - int(whole.sum())]] += 1
    return whole


def ranks(label: Tensor) -> Tensor:
    """The place of every image among those of its class, from 0, in the order of `label` (N,): int64 (N,)."""
    by_class, sizes = label.argsort(stable=True), label.bincount()
    place = torch.empty_like(label)
    place[by_class] = torch.arange(len(label)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return place


def stratified(split: Split, count: int, *parts: object) -> Tensor:
    """`count` different images of a split, its classes in their proportions, in an order that depends on `parts`."""
    if count > len(split.images):
        raise UserError(f"images: {count} wanted, but there are {len(split.images)}")
    _, label = split.groups.unique(return_inverse=True)
    order, wanted = rng.permutation(len(label), *parts), proportional(label.bincount(), count)
    return split.images[order[ranks(label[order]) < wanted[label[order]]]]
