"""A folder of images of the user's own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from tqdm import tqdm

from ddpm import rng
from ddpm.datasets.dataset import Dataset, Split, empty, ranks
from ddpm.errors import UserError
from ddpm.parameters import Count, Index, Interval, Len
from ddpm.pipeline import folders

Tensor = torch.Tensor
Box = tuple[int, int, int, int]  # left, top, right, bottom
# How many of the files that cannot be used a message names.
NAMED = 10


@dataclass(frozen=True)
class Entry:
    """An image in a database instead of a file: its name in messages, and what reads it."""

    name: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


def upright(image: Image.Image, channels: int) -> Image.Image:
    """A picture as it is meant to be looked at, in grey (1 channel) or in colour (3).

    It is turned as its EXIF data say; what is transparent is laid on white; CMYK and palettes become RGB, and colour
    becomes grey, by Pillow's formulas (ITU-R 601: 0.299 R + 0.587 G + 0.114 B); a colour profile is ignored.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image that has just been opened has more than 8 bits per channel: Pillow calls some of them RGB."""
    return image.mode[0] in "IF" or bool(re.search(";16[BLN]", str([tile[3] for tile in image.tile])))


def pixels(path: Path | Entry, size: int, channels: int, box: Box | None = None) -> np.ndarray:
    """One image as uint8 (channels, size, size): the largest square in its middle, or `box`, resized by a bicubic
    filter that is as wide as the pixels it joins; a picture of that very size stays as it is.

    ValueError says why it cannot be used: animated, of 16 bits, smaller than that, or damaged.
    """
    try:
        with Image.open(path if isinstance(path, Path) else BytesIO(path.read())) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a photograph with a preview beside it
                raise ValueError(f"has {frames} frames or pages")
            if is_deep(image):
                raise ValueError("has more than 8 bits per channel")
            if min(image.size) < size:
                raise ValueError(f"has {image.width} × {image.height} pixels, fewer than data.size")
            whole = upright(image, channels)
            side = min(whole.size)
            left, top = (whole.width - side) // 2, (whole.height - side) // 2
            square = whole.crop(box or (left, top, left + side, top + side))
            square = square.resize((size, size), Image.Resampling.BICUBIC)
    except (ValueError, MemoryError):
        raise
    except Exception as e:  # whatever a damaged file makes Pillow raise
        said = re.sub("<_io.*?>", path.name, str(e).replace(str(path), path.name))
        raise ValueError(f"cannot be read ({' '.join(said.split())})") from None
    found = np.asarray(square)
    return found[None] if channels == 1 else found.transpose(2, 0, 1)


def read_all(
    splits: Mapping[str, Sequence[Path | Entry]], size: int, channels: int, box: Box | None = None
) -> list[Tensor]:
    """The images of every split as `pixels`, uint8 (N, channels, size, size); UserError that names all that cannot be
    used."""
    found, wrong = [], []
    for name, files in splits.items():
        images = empty(len(files), (channels, size, size))
        for place, file in enumerate(tqdm(files, desc=f"{name} images", unit="image")):
            try:
                images[place] = torch.from_numpy(pixels(file, size, channels, box).copy())
            except ValueError as e:
                wrong.append(f"{file}: {e}")
        found.append(images)
    if wrong:
        more = [f"and {len(wrong) - NAMED} more"] * (len(wrong) > NAMED)
        cure = f"{len(wrong)} of {sum(map(len, found))} images cannot be used; replace them or take them away"
        raise UserError("\n".join([f"data: {cure}", *sorted(wrong)[:NAMED], *more]))
    return found


@dataclass(frozen=True)
class Folder(Dataset):
    """A folder of images of your own, grey or in colour, with its sub-folders as classes or without labels.

    path:       the folder; PNG, JPEG and other common formats, in sub-folders too.
    size:       the height and width that every image is cropped and resized to (`pixels`); none may be smaller.
    channels:   1, grey, or 3, colour: what is otherwise is converted (`upright`).
    labels:     whether every sub-folder is a class: in the order of their names 0, 1, …
    test_share: how much of every class goes to the test split, one image at least.
    seed:       draws which.
    """

    method = "folder"
    space = {"method": "pixels", "levels": 256}
    form = ("channels", "size", "size")
    reads = {"images": ("path", "")}
    path: Annotated[str, Len(1)]
    size: Count
    channels: Literal[1, 3] = 3
    labels: bool = False
    test_share: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    seed: Index = 0

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # of other datasets a fact, here parameters
        return self.channels, self.size, self.size

    @property
    def classes(self) -> int:  # type: ignore[override]
        return len(self.names)

    @cached_property
    def names(self) -> list[str]:
        """The classes by number; empty where there are none."""
        return folders.classes(folders.located(self.path)) if self.labels else []

    def load(self) -> tuple[Split, Split]:
        if wrong := folders.mistakes(self.path, self.labels):
            raise UserError("\n".join(wrong))
        folder = folders.located(self.path)
        files = folders.images(folder)
        number = {name: i for i, name in enumerate(self.names)}
        groups = torch.tensor([number[file.relative_to(folder).parts[0]] if number else 0 for file in files])
        # ---- which images go to the test split: the first of every class in a random order
        order = rng.permutation(len(files), "folder", self.seed)
        wanted = torch.tensor([folders.held_out(int(count), self.test_share) for count in groups.bincount()])
        testing = torch.zeros(len(files), dtype=torch.bool)
        testing[order] = ranks(groups[order]) < wanted[groups[order]]
        # ---- the images, each split in the order of their paths
        index = [chosen.nonzero().flatten() for chosen in (~testing, testing)]
        paths = [[files[i] for i in chosen.tolist()] for chosen in index]
        images = read_all(dict(zip(("train", "test"), paths, strict=True)), self.size, self.channels)
        train, test = (
            Split(x, groups[chosen] if self.labels else None) for x, chosen in zip(images, index, strict=True)
        )
        return train, test
