"""The `external` stage: samples that were made elsewhere, checked and stored as a cell's are, to be measured alike."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm import rng
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.datasets.folder import is_deep
from ddpm.errors import UserError
from ddpm.pipeline.folders import images as images_in
from ddpm.pipeline.records import read_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.spaces import Pixels
from ddpm.stages.sample import reaches, variance

Tensor = torch.Tensor


@dataclass(frozen=True)
class Form:
    """The types that samples may have, the first of them that of the data, and what their dimensions are."""

    types: tuple[type[np.generic], ...]
    stored: torch.dtype
    order: str


IMAGES = Form((np.uint8,), torch.uint8, "(channels, height, width)")
POINTS = Form((np.float32, np.float64), torch.float32, "(coordinates,)")
Found = tuple[np.ndarray, np.ndarray | None]  # images, and labels where there are any


def folder(path: Path) -> Found:
    """The images of a folder, in the order of their paths: uint8 (N, H, W, C)."""
    found: list[np.ndarray] = []
    for file in images_in(path):
        try:
            with Image.open(file) as image:
                if image.mode not in ("L", "RGB") or is_deep(image):
                    more = " with more than 8 bits per channel" * is_deep(image)
                    kinds = "of 8 bits, grey (L) or RGB"
                    raise UserError(f"{file}: an image of mode {image.mode}{more}; it must be {kinds}")
                pixels = np.asarray(image)
        except (UserError, MemoryError):
            raise
        except Exception as e:  # whatever a damaged file makes Pillow raise
            raise UserError(f"{file}: is no valid image ({e})") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if found and pixels.shape != found[0].shape:
            first = " × ".join(map(str, found[0].shape))
            raise UserError(f"{file}: {' × '.join(map(str, pixels.shape))}; the images before it are {first}")
        found.append(pixels)
    if not found:
        raise UserError(f"{path}: holds no image; it must be a folder of images")
    return np.stack(found), None


def archive(path: Path) -> Found:
    """`arr_0` of an .npz, images (N, H, W, C), or points (N, D), and `arr_1`, their labels, where it is there: what the
    evaluation suite of Dhariwal & Nichol 2021 reads."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise UserError(f"{path}: is a single array, an .npy; the samples must be arr_0 of an .npz")
        with found as file:
            if "arr_0" not in file:
                names = ", ".join(file.files) or "nothing"
                raise UserError(f"{path}: holds {names}; the samples must be arr_0, (N, H, W, C)")
            return file["arr_0"], file.get("arr_1")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"{path}: is no valid .npz of arrays ({why})") from None


def tensors(path: Path) -> Found:
    """`images` and, where they are there, `labels`, as this project stores samples: (N, C, H, W), or points (N, D)."""
    found, _ = read_tensors(path)
    if "images" not in found:
        raise UserError(f"{path}: holds {', '.join(found) or 'nothing'}; the samples must be `images`")
    return found["images"].numpy(), found["labels"].numpy() if "labels" in found else None


def stored(path: Path, dataset: Data) -> tuple[Tensor, Tensor | None]:
    """All samples of a folder or file, as the data are stored, and their labels; UserError where they are of another
    kind.

    Grey values 0 … 255 of folders and .npz become the data's own levels, the nearest ones.
    """
    ours = path.suffix == ".safetensors"
    array, labels = folder(path) if path.is_dir() else tensors(path) if ours else archive(path)
    if dataset.space.images and not ours and array.ndim == 4:
        array = array.transpose(0, 3, 1, 2)
    form = IMAGES if dataset.space.images else POINTS
    if array.dtype not in form.types:
        raise UserError(f"{path}: samples of type {array.dtype}; it must be {np.dtype(form.types[0])}")
    if array.shape[1:] != dataset.shape:
        shapes = f"{array.shape[1:]}; those of the data are {dataset.shape} {form.order}"
        raise UserError(f"{path}: samples of shape {shapes}")
    found = torch.from_numpy(np.ascontiguousarray(array)).to(form.stored)
    if bad := int((~found.isfinite()).flatten(1).any(1).sum()):
        raise UserError(f"{path}: {bad} of {len(found)} samples are not finite")
    if isinstance(dataset.space, Pixels):
        found = _levels(path, found, dataset.space, ours)
    return found, _labels(path, labels, len(found), dataset.classes)


def _levels(path: Path, images: Tensor, space: Pixels, ours: bool) -> Tensor:
    """Images in the data's own levels."""
    if not ours:
        return space.decode(images.float() / 127.5 - 1)
    if len(images) and int(images.max()) >= space.levels:
        raise UserError(f"{path}: values up to {int(images.max())}; the data have levels 0 … {space.levels - 1}")
    return images


def _labels(path: Path, labels: np.ndarray | None, count: int, classes: int) -> Tensor | None:
    if labels is None or not classes or not count:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.dtype} {labels.shape}, {labels.min()} … {labels.max()}" if labels.size else "none"
        raise UserError(f"{path}: labels {found}; they must be {count} whole numbers of 0 … {classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def take(run: Run) -> Outcome:
    """Exactly N of the samples, at random where there are more, in the form of a cell's."""
    path, count, dataset = run.inputs["source"], run.job["images"], data.read(run.inputs["data"])
    images, labels = stored(path, dataset)
    if len(images) < count:
        raise UserError(
            f"{path}: {len(images)} samples; sampling.images is {count}, and rows of another N cannot be compared: "
            f"make at least {count}, or measure the whole table with fewer"
        )
    there = len(images)
    if there > count:
        index = rng.permutation(there, "external", run.name)[:count]
        images, labels = images[index], None if labels is None else labels[index]
    run.write("images", {"images": images} | ({} if labels is None else {"labels": labels}))
    x = dataset.space.encode(images)
    result = {"images": count, "of": there, "stratified": dataset.is_stratified(labels)}
    return "ok", result | {
        "reach": float(reaches(x, *dataset.space.bounds).max()),
        "spread": variance(x) / dataset.variance,
    }
