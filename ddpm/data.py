"""Datasets: images as integer grey levels 0 … levels − 1, labels, a training and a test half."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ddpm import noise
from ddpm.errors import UserError
from ddpm.layout import Layout
from ddpm.methods import Method
from ddpm.provenance import Recorder, read_tensors, write_tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Split:
    """One half of a dataset: images uint8 (N, C, H, W) of grey levels, labels int64 (N,)."""

    images: Tensor
    labels: Tensor


class Dataset(Method):
    """A dataset's `load` gives its training and its test half.

    levels: number of grey levels; level k stands for 2k/(levels − 1) − 1 in [−1, 1].
    """

    levels: ClassVar[int] = 256
    classes: ClassVar[int] = 10

    def load(self) -> tuple[Split, Split]:
        raise NotImplementedError


@dataclass(frozen=True)
class Digits(Dataset):
    """scikit-learn's handwritten digits: 1 797 images of 8×8 pixels, 17 grey levels, in the package.

    Half of them (898) for training and the other half for the test, stratified by label; `seed` deals them.
    """

    method = "digits"
    levels = 17
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


@dataclass(frozen=True)
class Data:
    """What every later stage reads: both halves, and what the dataset says of itself."""

    train: Split
    test: Split
    levels: int
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train.images.shape[1:])

    def scale(self, images: Tensor) -> Tensor:
        """Grey levels → [−1, 1], float32."""
        return images.float() * (2 / (self.levels - 1)) - 1

    def quantise(self, x: Tensor) -> Tensor:
        """[−1, 1] → the nearest grey level, uint8."""
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
    recorder.finish(layout.record("data"), [layout.data], train=len(train.images), test=len(test.images))


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
