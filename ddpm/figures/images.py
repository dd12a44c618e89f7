"""How images are drawn: as they are, enlarged by a whole factor."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch

from ddpm.datasets.dataset import Data
from ddpm.figures.canvas import bare, save_figure, save_image

Tensor = torch.Tensor


def mosaic(images: Tensor, columns: int, scale: int = 1, gap: int = 1) -> np.ndarray:
    """Images (N, C, H, W), uint8, 0 … 255, in rows of `columns`, enlarged by `scale`, on grey; uint8 (H, W, 3)."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 96, dtype=np.uint8)
    for i, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = picture
    return canvas.repeat(scale, 0).repeat(scale, 1)


class Images:
    """Images of a dataset; `shown` is how many of them the denoising figure follows, `size` is in inches."""

    shown, size = 8, 0.9

    def __init__(self, dataset: Data):
        self.dataset = dataset

    def _mosaic(self, stored: Tensor, columns: int, gap: int = 1) -> np.ndarray:
        images = self.dataset.space.to_images(stored)
        return mosaic(images, columns, max(1, 48 // images.shape[2]), gap)

    def draw(self, axis: plt.Axes, picture: Tensor) -> None:
        """One stored image (C, H, W)."""
        axis.imshow(self._mosaic(picture[None], 1, gap=0), interpolation="nearest")

    def strips(self, states: Tensor, clean: int) -> tuple[list[Tensor], list[str]]:
        """States x (S, N, ...) as N strips of S stored images, with their names."""
        decoded = self.dataset.space.decode(states.flatten(0, 1))
        return list(decoded.unflatten(0, states.shape[:2]).transpose(0, 1)), [
            f"image {i}" for i in range(states.shape[1])
        ]

    @staticmethod
    def label(parts: tuple[str, ...]) -> str:
        """The names of one row of the table."""
        return " · ".join(parts)

    def cell(self, images: Tensor, path: Path) -> None:
        """The first 100 images of one cell."""
        save_image(
            self._mosaic(images[:100] if len(images) else torch.zeros_like(self.dataset.train.images[:1]), 10), path
        )

    def overview(self, rows: list[tuple[str, str, Tensor]], title: str, path: Path) -> None:
        """One strip of 24 images per row (label, score, images)."""
        size = (11, 0.62 * len(rows) + 0.3)
        figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
        for axis, (label, score, images) in zip(axes[:, 0], rows, strict=True):
            sns.despine(ax=bare(axis), left=True, bottom=True)
            if len(images):
                # Evenly from the first hundred, so that all classes of a grid that is sorted by label show.
                chosen = torch.linspace(0, min(len(images), 100) - 1, min(len(images), 24)).long()
                axis.imshow(self._mosaic(images[chosen], 24), interpolation="nearest")
            axis.set_ylabel(f"{label}\n{score}", rotation=0, ha="right", va="center", fontsize=8)
        figure.suptitle(title, fontsize=10)
        save_figure(figure, path)
