"""CelebA."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ddpm.datasets.dataset import Dataset, Split
from ddpm.datasets.downloads import fetched
from ddpm.datasets.folder import Box, read_all
from ddpm.errors import UserError
from ddpm.parameters import Count

# 128 × 128 of the 178 × 218 pixels, about (89, 121), as in the code of Song, Meng & Ermon 2021.
FACE: Box = (25, 57, 153, 185)
PARTITION = "list_eval_partition.txt"


@dataclass(frozen=True)
class CelebA(Dataset):
    """CelebA's aligned faces (Liu et al. 2015) in colour, without labels: its 162 770 training and 19 962 test images.

    size: height and width; the faces are cropped to `FACE` and resized.

    Read as `MNIST` is, from `celeba`: img_align_celeba/ as torchvision unpacks it, and the list that deals the images,
    which is checked against torchvision's MD5. torchvision's download takes the package gdown.
    """

    method = "celeba"
    space = {"method": "pixels", "levels": 256}
    classes = 0
    form = ("channels", "size", "size")
    channels = 3
    train = 162770
    test = 19962
    size: Count = 64

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # of other datasets a fact, here a parameter's
        return self.channels, self.size, self.size

    def load(self) -> tuple[Split, Split]:
        from torchvision.datasets import CelebA as Torchvision

        files = {name: md5 for _, md5, name in Torchvision.file_list if name == PARTITION}
        folder = fetched("CelebA", "celeba", files, partial(Torchvision, download=True))
        lines = (folder / PARTITION).read_text(encoding="ascii").splitlines()
        dealt = [line.split() for line in lines]
        splits = {
            name: [folder / "img_align_celeba" / file for file, part in dealt if part == number]
            for name, number in (("train", "0"), ("test", "2"))
        }
        self._require(splits["train"] + splits["test"], folder)
        train, test = map(Split, read_all(splits, self.size, self.channels, FACE))
        return train, test

    def _require(self, files: list[Path], folder: Path) -> None:
        """UserError where images are missing."""
        there = {path.name for path in (folder / "img_align_celeba").glob("*.jpg")}
        if missing := [file.name for file in files if file.name not in there]:
            where = f"{folder / 'img_align_celeba' / missing[0]}: missing, and {len(missing) - 1} more"
            raise UserError(f"{where}; unpack img_align_celeba.zip in {folder}")
