"""MNIST."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.datasets.dataset import Dataset, Split
from ddpm.errors import UserError

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
                    f"It is truncated or another file: delete {raw} and run again."
                )
        train, test = Torchvision(root, train=True), Torchvision(root, train=False)
        return Split(train.data[:, None], train.targets), Split(test.data[:, None], test.targets)
