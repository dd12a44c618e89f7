"""How points in the plane are drawn: clouds over the density that they should have."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage

from ddpm.datasets.dataset import Data, Dataset
from ddpm.datasets.points import Gaussians
from ddpm.exact import Mixture
from ddpm.figures.canvas import bare, save_figure

Tensor = torch.Tensor

INK, ACCENT = "#1f2933", "#1f5fa8"
DENSITY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#fbe3b6", "#f4b266", "#dd7a3a"])
SHADE = LinearSegmentedColormap.from_list("shade", ["#ffffff", "#d9dee5", "#a9b3c0"])
# The direction from the centre, in turns, as a hue: 45° is blue, its opposite orange.
HUES = sns.hls_palette(256, h=0.46, l=0.45, s=0.85, as_cmap=True)


def density_of(dataset: Data, spec: dict) -> tuple[Mixture, bool]:
    """The data's own mixture and True, or, where there is no closed form, a kernel estimate of it and False.

    The estimate has one Gaussian at each of 1000 training points, a third as wide as Scott's rule for one broad mode
    would have it: the shapes are thin.
    """
    made = Dataset.make({"method": spec["name"]} | {k: v for k, v in spec.items() if k != "name"})
    if isinstance(made, Gaussians):
        return made.density(), True
    points = dataset.train.images[:1000].double()
    width = points.std(0) * len(points) ** (-1 / 6) / 3
    return Mixture(torch.full((len(points),), 1 / len(points)), points, (width**2).expand_as(points)), False


class Clouds:
    """Points of a dataset and the mixture that they come from; `shown` points follow their way, `size` is in inches."""

    shown, size = 2000, 1.15

    def __init__(self, dataset: Data, spec: dict):
        self.dataset = dataset
        self.mixture, self.exact = density_of(dataset, spec)
        low, high = dataset.train.images.amin(0), dataset.train.images.amax(0)
        self.centre, self.reach = (low + high) / 2, 0.56 * float((high - low).max())

    def mesh(self, n: int) -> tuple[Tensor, Tensor]:
        """n × n points over the window, float64 (n², 2), and the n places along either side relative to its centre."""
        side = torch.linspace(-self.reach, self.reach, n, dtype=torch.float64)
        return torch.cartesian_prod(side, side) + self.centre, side

    def over(self, f: Callable[[Tensor], Tensor], n: int) -> Tensor:
        """f at the n × n points of the window, a few at a time; its rows are those of a picture, from below."""
        found = torch.cat([f(part) for part in self.mesh(n)[0].split(1024)])
        return found.reshape(n, n, *found.shape[1:]).transpose(0, 1)

    def window(self, axis: plt.Axes) -> plt.Axes:
        """The square that holds the data."""
        (x, y), r = self.centre.tolist(), self.reach
        bare(axis).set(xlim=(x - r, x + r), ylim=(y - r, y + r), aspect="equal")
        for spine in axis.spines.values():
            spine.set(color="#b8bec6", linewidth=0.6)
        return axis

    def shade(self, axis: plt.Axes, field: Tensor, **options: Any) -> AxesImage:
        """A field over the window as a picture."""
        (x, y), r = self.centre.tolist(), self.reach
        return axis.imshow(
            field.numpy(), origin="lower", extent=(x - r, x + r, y - r, y + r), interpolation="bilinear", **options
        )

    def density(self, axis: plt.Axes, alpha: float = 1.0, sigma: float = 0.0, n: int = 121) -> None:
        """The density of α x0 + σ ε, shaded: its square root, so that the thin parts show."""
        field = self.over(lambda x: self.mixture.log_density(x, alpha, sigma), n)
        self.shade(self.window(axis), (0.5 * (field - field.max())).exp(), cmap=DENSITY, vmin=0, vmax=1.15)

    def arrows(self, axis: plt.Axes, field: Tensor, longest: float) -> None:
        """A vector field (n, n, 2) over the window; arrows as long as the square root of what they stand for."""
        n = len(field)
        points = self.mesh(n)[0].reshape(n, n, 2).transpose(0, 1)
        length = field.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        shown = field / length * (length / longest).sqrt().clamp(max=1) * (2.2 * self.reach / n)
        axis.quiver(
            *points.permute(2, 0, 1).numpy(),
            *shown.permute(2, 0, 1).numpy(),
            angles="xy",
            scale_units="xy",
            scale=1,
            pivot="mid",
            color=INK,
            width=0.0042,
        )

    def hue(self, points: Tensor) -> Tensor:
        """A hue in [0, 1) by the direction from the centre of the data, (N,)."""
        x, y = (points.double() - self.centre).unbind(1)
        return (torch.atan2(y, x) / (2 * math.pi)) % 1

    def scatter(self, axis: plt.Axes, points: Tensor, size: float = 2.0, **options: Any) -> None:
        """Points (N, 2) as dots of `size` points squared."""
        style: dict[str, Any] = {"color": ACCENT, "alpha": 0.55}
        x, y = points.T.numpy()
        axis.scatter(x, y, s=size, linewidths=0, **(style | options))

    def draw(self, axis: plt.Axes, picture: Tensor) -> None:
        """One cloud (N, 3): points and their hues."""
        self.scatter(self.window(axis), picture[:, :2], 1.2, color=None, c=picture[:, 2], cmap=HUES, vmin=0, vmax=1)

    def strips(self, states: Tensor, clean: int) -> tuple[list[Tensor], list[str]]:
        """States (S, N, 2) as one strip of S clouds; every point keeps the hue that it has in the state `clean`."""
        hue = self.hue(states[clean]).to(states.dtype)[:, None].expand(len(states), -1, 1)
        return [torch.cat([states, hue], dim=-1)], [f"{states.shape[1]} points"]

    def shares(self, points: Tensor) -> str:
        """The share of the points (N, 2) that is nearest to every mode, where the mixture has modes."""
        if not self.exact or not len(points):
            return ""
        modes = len(self.mixture.weights)
        share = torch.bincount(self.mixture.responsibilities(points).argmax(1), minlength=modes) / len(points)
        shown = share.tolist() if modes <= 4 else [float(share.min()), float(share.max())]
        return "shares of the modes: " + (" · " if modes <= 4 else " … ").join(f"{s:.3f}" for s in shown)

    @staticmethod
    def label(parts: tuple[str, ...]) -> str:
        """The names of one row of the table, in two lines."""
        objective, schedule, guidance, *rest = parts
        return f"{objective} · {schedule}\n{' · '.join(rest)}" + (f" · {guidance}" if guidance != "none" else "")

    def cell(self, images: Tensor, path: Path) -> None:
        """All points of one cell over the density."""
        figure, axis = plt.subplots(figsize=(3, 3), layout="constrained")
        self.density(axis)
        self.scatter(axis, images)
        save_figure(figure, path)

    def overview(self, rows: list[tuple[str, str, Tensor]], title: str, path: Path) -> None:
        """One cloud per row (label, score, points) over the density."""
        height = -(-len(rows) // 6)
        columns = -(-len(rows) // height)
        figure, axes = plt.subplots(
            height, columns, figsize=(1.95 * columns, 2.4 * height + 0.3), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(rows) :]:
            axis.set_axis_off()
        for axis, (label, score, points) in zip(axes.flat, rows, strict=False):
            self.density(axis, n=61)
            self.scatter(axis, points, 1.2)
            axis.set_title(label, fontsize=8)
            axis.set_xlabel(score, fontsize=8)
        figure.suptitle(title, fontsize=11)
        save_figure(figure, path)
