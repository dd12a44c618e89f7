"""Datasets: images as integer grey levels 0 … levels − 1, or points of continuous coordinates; labels; two halves."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ddpm import noise
from ddpm.errors import UserError
from ddpm.exact import Mixture
from ddpm.layout import Layout
from ddpm.methods import Method
from ddpm.provenance import Recorder, read_tensors, write_tensors

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


@dataclass(frozen=True)
class Digits(Dataset):
    """scikit-learn's handwritten digits: 1 797 images of 8×8 pixels, 17 grey levels, in the package.

    Half of them (898) for training and the other half for the test, stratified by label; `seed` deals them.
    """

    method = "digits"
    levels = 17
    shape = (1, 8, 8)
    train = 898
    test = 899
    limits = {"seed": (0, 4294967295)}  # as scikit-learn takes them
    seed: int = 0

    def load(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        halves = train_test_split(
            digits.images.astype(np.uint8)[:, None],
            digits.target.astype(np.int64),
            test_size=0.5,
            random_state=self.seed,
            stratify=digits.target,
        )
        train_images, test_images, train_labels, test_labels = map(torch.from_numpy, halves)
        return Split(train_images, train_labels), Split(test_images, test_labels)


# SHA-256 of the unpacked files of http://yann.lecun.com/exdb/mnist.
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class MNIST(Dataset):
    """torchvision's MNIST: 28×28 pixels, its 60 000 training and 10 000 test images (the poster's split).

    Read from `$DDPM_DATA` where that is set, else from `data/`, where it is downloaded if absent.
    """

    method = "mnist"
    shape = (1, 28, 28)
    train = 60000
    test = 10000

    def load(self) -> tuple[Split, Split]:
        from torchvision.datasets import MNIST as Torchvision

        root = Path(os.environ.get("DDPM_DATA") or "data")
        raw = root / "MNIST" / "raw"
        if not all((raw / name).is_file() for name in MNIST_FILES):
            if os.environ.get("DDPM_DATA"):
                missing = next(name for name in MNIST_FILES if not (raw / name).is_file())
                raise UserError(
                    f"{raw / missing}: missing; DDPM_DATA={root} must hold MNIST/raw as torchvision lays it out"
                )
            try:
                Torchvision(root, download=True)
            except (RuntimeError, OSError) as e:
                reason = " ".join(str(e).split())[:200]
                raise UserError(
                    f"{raw}: MNIST is not there and could not be downloaded ({reason}).\n"
                    "Connect to the network, or set DDPM_DATA to a folder that holds MNIST/raw."
                ) from None
        for name, expected in MNIST_FILES.items():
            found = hashlib.sha256((raw / name).read_bytes()).hexdigest()
            if found != expected:
                size = (raw / name).stat().st_size
                raise UserError(
                    f"{raw / name}: not MNIST's file: SHA-256 {found[:12]}… ({size} bytes), not {expected[:12]}….\n"
                    f"It is torn or another file: delete {raw} and run again."
                )
        train, test = Torchvision(root, train=True), Torchvision(root, train=False)
        return Split(train.data[:, None], train.targets), Split(test.data[:, None], test.targets)


# ---- points in the plane, all of about the same size: coordinates of a standard deviation near 4 --------------------


@dataclass(frozen=True)
class Points(Dataset):
    """Independent points of a law in the plane: `train` of them for training, `test` others; `seed` draws them.

    A point's label says which part of the law it was drawn from.
    """

    levels = 0
    std = 4.0
    shape = (2,)
    limits = {"seed": (0, None), "train": (1, None), "test": (2, None)}
    seed: int = 0
    train: int = 10000
    test: int = 2000

    def load(self) -> tuple[Split, Split]:
        halves = []
        for half, count in (("train", self.train), ("test", self.test)):
            key, index = noise.key("points", half, self.seed), torch.arange(count)
            u, z = noise.uniform(key, index, 0, (2,)), noise.normal(key, index, 1, (2,), torch.float64)
            points, labels = self.place(u, z)
            halves.append(Split(points.float(), labels))
        return halves[0], halves[1]

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points float64 (N, 2) and labels int64 (N,) from uniform (N, 2) and standard normal (N, 2) numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussians(Points):
    """Points of a mixture of Gaussians, whose diffusion is known in closed form (`ddpm.exact`)."""

    def law(self) -> Mixture:
        """The mixture itself."""
        raise NotImplementedError

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.law().draw(u[:, 0], z)

    def log_density(self, images: Tensor) -> Tensor:
        return self.law().log_density(images)


@dataclass(frozen=True)
class GaussianMixture(Gaussians):
    """Σ_k w_k N(m_k, s_k² I), with `weights` w (K), `means` m (K × 2) and `spreads` s (K).

    The default is that of Song & Ermon 2019, figures 2 and 3 (001, figures 3.1 and 3.2): modes so far apart that
    Langevin dynamics does not cross between them.
    """

    method = "mixture"
    limits = {"weights": (1e-9, 1), "spreads": (1e-6, None)}
    paired = (("weights", "means", "spreads"),)
    shares = ("weights",)
    weights: tuple[float, ...] = (0.8, 0.2)
    means: tuple[tuple[float, float], ...] = ((5.0, 5.0), (-5.0, -5.0))
    spreads: tuple[float, ...] = (1.0, 1.0)

    def check(self) -> None:
        if any(len(mean) != 2 for mean in self.means):
            raise ValueError(f"means: {list(map(list, self.means))}; each must be a point of the plane, [x, y]")

    @property
    def classes(self) -> int:
        return len(self.weights)

    def law(self) -> Mixture:
        spreads = torch.tensor(self.spreads, dtype=torch.float64)[:, None]
        weights, means = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means))
        return Mixture(weights, means, (spreads**2).expand_as(means))


@dataclass(frozen=True)
class Ring(Gaussians):
    """`count` Gaussians of equal weight and standard deviation `spread` on a circle of `radius`."""

    method = "ring"
    limits = {"count": (1, None), "radius": (0, None), "spread": (1e-6, None)}
    count: int = 8
    radius: float = 6.0
    spread: float = 0.5

    @property
    def classes(self) -> int:
        return self.count

    def law(self) -> Mixture:
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
    limits = {"radius": (0, None), "spread": (0, None)}
    radius: float = 5.0
    spread: float = 0.4

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
    limits = {"radius": (0, None), "spread": (0, None)}
    radius: float = 6.0
    spread: float = 0.3

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        labels = (u[:, 0] < 0.5).long()
        return polar(self.radius / (1.0 + labels), 2 * math.pi * u[:, 1]) + self.spread * z, labels


@dataclass(frozen=True)
class Spiral(Points):
    """`arms` Archimedean spirals of `turns` turns out to `radius`, with Gaussian noise of `spread`.

    One arm is a Swiss roll. The points lie evenly in angle, so that an arm thins out as it grows.
    """

    method = "spiral"
    limits = {"arms": (1, None), "turns": (0, None), "radius": (0, None), "spread": (0, None)}
    arms: int = 2
    turns: float = 1.25
    radius: float = 8.0
    spread: float = 0.25

    @property
    def classes(self) -> int:
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
    limits = {"side": (1e-6, None)}
    side: float = 3.0

    def place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        square = u[:, 0] * 8
        labels = square.long()
        row = labels // 2
        corner = torch.stack([2 * (labels % 2) + row % 2, row], dim=1) - 2
        # What is left of u after the square was chosen is uniform again.
        return self.side * (corner + torch.stack([square - labels, u[:, 1]], dim=1)), labels


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


def prepare(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `data` stage: load, check, and store as one safetensors file."""
    recorder = Recorder("data", job, code, {})
    spec = dict(job["data"])
    dataset = Dataset.make({"method": spec.pop("name")} | spec)
    train, test = dataset.load()
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    write_tensors(layout.data, tensors, {"levels": str(dataset.levels), "classes": str(dataset.classes)})
    counts: dict[str, float] = {"train": len(train.images), "test": len(test.images)}
    if (exact := dataset.log_density(test.images)) is not None:
        # What no likelihood model can beat by more than chance: −log p of the test half under its own law.
        counts["test_bits_per_dim"] = float(-exact.mean() / (math.log(2) * test.images[0].numel()))
    recorder.finish(layout.record("data"), [layout.data], **counts)


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
    return images[noise.permutation(len(images), "reference", half)][:count]


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
    order, wanted = noise.permutation(len(label), *parts), proportional(label.bincount(), count)
    rank = torch.nn.functional.one_hot(label[order]).cumsum(0).gather(1, label[order][:, None])[:, 0]
    return split.images[order[rank <= wanted[label[order]]]]
