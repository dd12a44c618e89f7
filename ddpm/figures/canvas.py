"""What every figure needs: files with the same bytes every time, and a table of pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ddpm.pipeline import records

Tensor = torch.Tensor


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Pixels uint8 (H, W, 3) as PNG."""
    with records.atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def save_figure(figure: plt.Figure, path: Path) -> None:
    """A figure as PNG, without a date in it: the same bytes every time."""
    with records.atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def save_vector(figure: plt.Figure, path: Path) -> None:
    """A figure as SVG, its text as text, without a date in it; it stays open."""
    with records.atomic(path) as temporary:
        figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})


def bare(axis: plt.Axes) -> plt.Axes:
    """An axis without ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    return axis


def table(
    path: Path,
    strips: Sequence[Tensor | Sequence[Tensor]],
    rows: list[str],
    columns: list[str],
    draw: Callable[[plt.Axes, Tensor], None],
    title: str,
    size: float,
) -> None:
    """A labelled table of pictures, each of `size` inches: one row per strip."""
    figure, axes = plt.subplots(
        len(strips),
        len(columns),
        figsize=(size * len(columns) + 0.6, size * len(strips) + 0.5),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0),
    )
    for i, strip in enumerate(strips):
        for j, picture in enumerate(strip):
            draw(bare(axes[i, j]), picture)
            if i == 0:
                axes[i, j].set_title(columns[j], fontsize=8)
            if j == 0:
                axes[i, j].set_ylabel(rows[i], fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
