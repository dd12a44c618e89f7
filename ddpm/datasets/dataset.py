"""Datasets: images as integer grey levels 0 … levels − 1, or points of continuous coordinates; labels; two halves."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ddpm import rng
from ddpm.errors import UserError
from ddpm.methods import Method
from ddpm.pipeline.records import read_tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Split:
    """One half of a dataset: images uint8 (N, C, H, W) of grey levels, or points float32 (N, D); labels int64 (N,)."""

    images: Tensor
    labels: Tensor


class Dataset(Method):
    """A dataset's `load` gives its training and its test half.

    levels: number of grey levels; level k stands for 2k/(levels − 1) − 1 in [−1, 1]. 0 means continuous data.
    std: about the standard deviation of a coordinate, in [−1, 1] for images: what a schedule's noise must outgrow.
    shape, train and test: (C, H, W) of an image or (D,) of a point, and how many are in each half, so that a
    configuration can be checked without the data; None where that is not known before.
    """

    levels: ClassVar[int] = 256
    classes: ClassVar[int] = 10
    std: ClassVar[float] = 0.5
    shape: ClassVar[tuple[int, ...] | None] = None
    train: ClassVar[int | None] = None
    test: ClassVar[int | None] = None

    def load(self) -> tuple[Split, Split]:
        raise NotImplementedError

    def log_density(self, images: Tensor) -> Tensor | None:
        """log p of every image, in nats, float64 (N,), where it is known in closed form."""
        return None


# ---- points in the plane, all of about the same size: coordinates of a standard deviation near 4 --------------------


@dataclass(frozen=True)
class Data:
    """What every later stage reads: both halves, and what the dataset says of itself."""

    train: Split
    test: Split
    levels: int
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (D,) of one point."""
        return tuple(self.train.images.shape[1:])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value of a coordinate: −1 and 1 of images; of points, the training half's."""
        if self.levels:
            return torch.tensor(-1.0), torch.tensor(1.0)
        return self.train.images.amin(0), self.train.images.amax(0)

    def scale(self, images: Tensor) -> Tensor:
        """Grey levels → [−1, 1], float32; points stay as they are."""
        return images.float() * (2 / (self.levels - 1)) - 1 if self.levels else images

    def quantise(self, x: Tensor) -> Tensor:
        """[−1, 1] → the nearest grey level, uint8; points stay as they are, float32."""
        if not self.levels:
            return x.float()
        return ((x + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1).to(torch.uint8)


def read(path: Path) -> Data:
    """The stored dataset."""
    tensors, about = read_tensors(path)
    train, test = (Split(tensors[f"{half}_images"], tensors[f"{half}_labels"]) for half in ("train", "test"))
    if not {"levels", "classes"} <= about.keys():
        raise UserError(f"{path}: does not say its levels and classes; delete it and run again")
    return Data(train, test, int(about["levels"]), int(about["classes"]))


def reference(dataset: Data, half: str, count: int | None = None) -> Tensor:
    """Real images of one half in a seeded order (MNIST's own order matters), the first `count` of them."""
    images = getattr(dataset, half).images
    if count is not None and count > len(images):
        raise UserError(f"images: {count} wanted, but the {half} half holds {len(images)}")
    return images[rng.permutation(len(images), "reference", half)][:count]


def proportional(sizes: Tensor, count: int) -> Tensor:
    """`count` shared out in proportion to `sizes` (C,), int64 (C,): by largest remainder, ties to the first."""
    whole, left = sizes * count // sizes.sum(), sizes * count % sizes.sum()
    whole[left.argsort(descending=True, stable=True)[: count - int(whole.sum())]] += 1
    return whole


def stratified(split: Split, count: int, *parts: object) -> Tensor:
    """`count` different images of a half, its classes in their proportions, in an order that depends on `parts`."""
    if count > len(split.images):
        raise UserError(f"images: {count} wanted, but there are {len(split.images)}")
    _, label = split.labels.unique(return_inverse=True)
    order, wanted = rng.permutation(len(label), *parts), proportional(label.bincount(), count)
    rank = torch.nn.functional.one_hot(label[order]).cumsum(0).gather(1, label[order][:, None])[:, 0]
    return split.images[order[rank <= wanted[label[order]]]]
