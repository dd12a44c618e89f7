"""What every figure needs: one style, files with the same bytes every time, and a table of pictures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from ddpm.pipeline import records

Tensor = torch.Tensor

# Okabe & Ito's colours, which the colour-blind tell apart, and a mark for each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b7280"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ab",
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.hashsalt": "ddpm",
    "svg.fonttype": "none",
}


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


@contextmanager
def drawing(path: Path, rows: int, columns: int, **options: Any) -> Iterator[tuple[plt.Figure, np.ndarray]]:
    """A figure with its axes, saved as PNG and as SVG."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)
        yield figure, axes
        save_vector(figure, path.with_suffix(".svg"))
        save_figure(figure, path)


def plain(axis: plt.Axes, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten, wide enough to have two of them."""
    side = axis.xaxis if which == "x" else axis.yaxis
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    ticks = [digit * 10.0**power for power in range(-12, 13) for digit in (1, 2, 5)]
    if sum(low <= tick <= high for tick in ticks) < 2 and ticks[0] <= low <= high <= ticks[-1]:
        low, high = max(tick for tick in ticks if tick <= low), min(tick for tick in ticks if tick >= high)
        (axis.set_xlim if which == "x" else axis.set_ylim)(low, high)
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(NullLocator())


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
