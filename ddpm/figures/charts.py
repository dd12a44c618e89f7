"""Numbers as charts: cells compared, steps and guidance against quality, schedules. PNG, and SVG beside it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ddpm.figures.canvas import save_figure, save_vector
from ddpm.pipeline import records
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.measures import toplines
from ddpm.schedules import Schedule

# Okabe & Ito's colours, which the colour-blind tell apart, and a mark for each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
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


@dataclass(frozen=True)
class Point:
    """What is drawn of one row: the cells of its seeds, their mean of each number, and the ends of its bar."""

    cell: Cell
    number: dict[str, float]
    low: float
    high: float
    nfe: int


@contextmanager
def drawing(path: Path, rows: int, columns: int, **options: Any) -> Iterator[tuple[plt.Figure, np.ndarray]]:
    """A figure with its axes, saved as PNG and as SVG."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", **options)
        yield figure, axes
        save_vector(figure, path.with_suffix(".svg"))
        save_figure(figure, path)


def points(layout: Layout, grid: Grid, metric: str) -> list[Point]:
    """Every row that has numbers. The bar is the range over seeds; of one seed, the interval if there is one."""
    every = {name: records.read_record(layout.record("fidelity", name))["result"] for name in grid.runs}
    found = []
    for cells in grid.rows.values():
        cells = [cell for cell in cells if metric in every.get(cell.name, ())]
        if cells:
            nfe = records.read_record(layout.record("sample", cells[0].name))["result"]["nfe"]
            found.append(_point(cells[0], [every[cell.name] for cell in cells], metric, nfe))
    return found


def _point(cell: Cell, seeds: list[dict], metric: str, nfe: int) -> Point:
    """A row's point from what was measured of its seeds, the first of which is `cell`."""
    first, values = seeds[0], [measured[metric] for measured in seeds]
    low, high = min(values), max(values)
    if len(values) == 1:
        low, high = (first.get(f"{metric}_{end}", values[0]) for end in ("low", "high"))
    keys = [key for key, value in first.items() if isinstance(value, int | float)]
    number = {key: float(np.mean([measured[key] for measured in seeds if key in measured])) for key in keys}
    return Point(cell, number, low, high, nfe)


def _line(axis: plt.Axes, i: int, points: Sequence[tuple[float, float]], **options: Any) -> None:
    """The i-th line of an axis, in its colour and with its mark."""
    x, y = zip(*points, strict=True) if points else ((), ())
    axis.plot(x, y, color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)], **options)


def plain(axis: plt.Axes, which: str) -> None:
    """A logarithmic axis whose labels are plain numbers."""
    side = axis.xaxis if which == "x" else axis.yaxis
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 6 * low else tuple(range(1, 10))))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_locator(NullLocator())


def comparison_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """Every row as a dot with its bar, best first, beside what real images get."""
    found = sorted(points(layout, grid, metric), key=lambda point: point.number[metric], reverse=True)
    with drawing(path, 1, 1, figsize=(7.5, 0.9 + 0.24 * max(4, len(found)))) as (figure, ((axis,),)):
        for i, point in enumerate(found):
            axis.plot(
                [point.low, point.high], [i, i], color=COLOURS[0], linewidth=2, alpha=0.45, solid_capstyle="round"
            )
            axis.plot(point.number[metric], i, "o", color=COLOURS[0], markersize=4.5)
        for (kind, baseline), style in zip(toplines().items(), ("-", "--"), strict=False):
            real = records.read_record(layout.record("fidelity", baseline))["result"].get(metric)
            if real is not None:
                axis.axvline(real, color=COLOURS[2], linestyle=style, linewidth=1, label=f"real data, {kind}")
        axis.set_yticks(range(len(found)), [" · ".join(point.cell.parts) for point in found])
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(f"{title}; bars: range over seeds, of one seed the 95 % interval of its sample")
        if found and min(point.low for point in found) > 0:
            plain(axis, "x")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def family(point: Point, grid: Grid) -> tuple[str, str]:
    """A row without its number of steps: network and guidance; the sampler's method with what else it differs by."""
    cell, sampler = point.cell, grid.axis("sampler", point.cell.sampler)
    extra = [f"{key} {sampler[key]}" for key in ("eta", "variance") if key in sampler]
    return " · ".join([*cell.parts[:3], *cell.parts[4:]]), " ".join([str(sampler["method"]), *extra])


def steps_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """The metric against evaluations of the network per sample: a line per sampler, a panel per network."""
    found = points(layout, grid, metric)
    panels: dict[str, dict[str, list[Point]]] = {}
    for point in found:
        panel, sampler = family(point, grid)
        panels.setdefault(panel, {}).setdefault(sampler, []).append(point)
    methods = list(dict.fromkeys(sampler for lines in panels.values() for sampler in lines))
    columns = min(3, len(panels)) or 1
    height = -(-len(panels) // columns) or 1
    size: dict[str, Any] = {"figsize": (3.1 * columns + 0.4, 2.5 * height + 0.8), "sharey": True, "sharex": True}
    with drawing(path, height, columns, **size) as (figure, axes):
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (panel, lines) in zip(axes.flat, panels.items(), strict=False):
            for sampler, line in lines.items():
                line.sort(key=lambda point: point.nfe)
                shown = [(point.nfe, point.number[metric]) for point in line]
                _line(axis, methods.index(sampler), shown, markersize=5, label=sampler)
            axis.set_title(panel)
        plain(axes[0, 0], "x")  # which all panels share
        if all(point.number[metric] > 0 for point in found):
            plain(axes[0, 0], "y")
        handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if handles:
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)))
        plt.setp(axes[-1], xlabel="network evaluations per sample")
        plt.setp(axes[:, 0], ylabel=title)


def guidance_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """The metric and the accuracy of labels against the weight of guidance, a line per method and network."""
    lines: dict[str, list[tuple[float, Point]]] = {}
    for point in points(layout, grid, metric):
        guidance = grid.axis("guidance", point.cell.guidance)
        if "weight" in guidance:
            parts = point.cell.parts
            name = " · ".join([guidance["method"], *parts[:2], *parts[3:]])
            lines.setdefault(name, []).append((guidance["weight"], point))
    with drawing(path, 1, 2, figsize=(8, 3.4)) as (figure, axes):
        for axis, key, label in zip(axes[0], (metric, "label_accuracy"), (title, "label accuracy"), strict=True):
            for i, (name, line) in enumerate(lines.items()):
                shown = sorted((w, point.number[key]) for w, point in line if key in point.number)
                _line(axis, i, shown, label=name)
            axis.set(xlabel="weight w", ylabel=label)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def schedules_figure(grid: Grid, path: Path) -> None:
    """α² (ᾱ of Ho et al. 2020) and log SNR = log α²/σ² of every schedule against t/T."""
    names = list(dict.fromkeys(cell.schedule for cell in grid.runs.values()))
    with drawing(path, 1, 2, figsize=(8, 3.2)) as (figure, axes):
        for i, name in enumerate(names):
            schedule = Schedule.make(grid.axis("schedule", name))
            t = torch.linspace(0, 1, 401, dtype=torch.float64) * schedule.steps
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            snr = 2 * (alpha.log() - sigma.log())
            inner, colour, line = torch.isfinite(snr), COLOURS[i % len(COLOURS)], ("-", "--", "-.", ":")[i % 4]
            axes[0, 0].plot(t / schedule.steps, alpha**2, color=colour, linestyle=line, label=name)
            axes[0, 1].plot((t / schedule.steps)[inner], snr[inner], color=colour, linestyle=line)
        axes[0, 0].set(xlabel="t/T", ylabel="α² (ᾱ)")
        axes[0, 1].set(xlabel="t/T", ylabel="log SNR")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
