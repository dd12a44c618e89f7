"""MNIST and Fashion-MNIST."""

import gzip
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ddpm.datasets.dataset import Dataset, Split
from ddpm.datasets.downloads import fetched

Tensor = torch.Tensor


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
    space = {"method": "pixels", "levels": 256}
    shape = (1, 28, 28)
    train = 60000
    test = 10000

    def load(self) -> tuple[Split, Split]:
        from torchvision.datasets import MNIST as Torchvision

        raw = fetched("MNIST", "MNIST/raw", MNIST_FILES, partial(Torchvision, download=True))
        return read(raw, self.shape, "")


def read(raw: Path, shape: tuple[int, ...], end: str) -> tuple[Split, Split]:
    """The training and the test split of a folder of MNIST's format: the very files that were checked, not what
    torchvision may have made of them."""
    train, test = (
        Split(
            idx(raw / f"{name}-images-idx3-ubyte{end}", 16, shape),
            idx(raw / f"{name}-labels-idx1-ubyte{end}", 8, ()).long(),
        )
        for name in ("train", "t10k")
    )
    return train, test


def idx(path: Path, header: int, shape: tuple[int, ...]) -> Tensor:
    """What follows the header of a file of MNIST's format, gzipped or not, uint8 (N, *shape)."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).reshape(-1, *shape)


@dataclass(frozen=True)
class FashionMNIST(Dataset):
    """torchvision's Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): clothes, of MNIST's size, numbers and classes.

    Read as `MNIST` is, from `FashionMNIST/raw`, whose gzipped files are checked against torchvision's MD5.
    """

    method = "fashion-mnist"
    space = {"method": "pixels", "levels": 256}
    shape = (1, 28, 28)
    std = 0.6
    train = 60000
    test = 10000

    def load(self) -> tuple[Split, Split]:
        from torchvision.datasets import FashionMNIST as Torchvision

        files = dict(Torchvision.resources)
        raw = fetched("Fashion-MNIST", "FashionMNIST/raw", files, partial(Torchvision, download=True))
        return read(raw, self.shape, ".gz")
