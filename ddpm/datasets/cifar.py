"""CIFAR-10."""

from dataclasses import dataclass
from functools import partial

import torch

from ddpm.datasets.dataset import Dataset, Split
from ddpm.datasets.downloads import fetched, root


@dataclass(frozen=True)
class CIFAR10(Dataset):
    """torchvision's CIFAR-10 (Krizhevsky 2009): 32×32 pixels in colour, 50 000 training and 10 000 test images.

    Read as `MNIST` is, from `cifar-10-batches-py`. Its files are pickles, so they are unpacked only where they are the
    published ones by torchvision's MD5.
    """

    method = "cifar10"
    space = {"method": "pixels", "levels": 256}
    shape = (3, 32, 32)
    train = 50000
    test = 10000

    def load(self) -> tuple[Split, Split]:
        from torchvision.datasets import CIFAR10 as Torchvision

        files = dict((*Torchvision.train_list, *Torchvision.test_list))
        files[Torchvision.meta["filename"]] = Torchvision.meta["md5"]
        fetched("CIFAR-10", Torchvision.base_folder, files, partial(Torchvision, download=True))
        train, test = (
            Split(torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(half.targets))
            for half in (Torchvision(root(), train=True), Torchvision(root(), train=False))
        )
        return train, test
