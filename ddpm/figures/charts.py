"""The table's numbers as charts: rows compared, steps and guidance against quality. PNG, and SVG beside it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt

from ddpm.figures.canvas import COLOURS, GREY, MARKS, drawing, plain
from ddpm.figures.rows import Row, best_first, ceilings, ranking, rows
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.measures import metrics
from ddpm.pipeline.results import Results

Points = Sequence[tuple[float, float]]
# How the classes of a panel's rows come, and of the real images that it shows.
CLASSES = {"by chance": "classes by chance", "stratified": "classes in proportion, by labels"}


def line(axis: plt.Axes, i: int, points: Points, **options: Any) -> None:
    """The i-th line of an axis, in its colour and with its mark."""
    x, y = zip(*points, strict=True) if points else ((), ())
    axis.plot(x, y, color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)], **options)


def legend(figure: plt.Figure, axes: Sequence[plt.Axes], columns: int, place: Any = "outside lower center") -> None:
    """What the lines of these axes are, each once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(handles.values(), handles, loc=place, ncols=min(columns, len(handles)), columnspacing=1.5)


# ---- rows compared ------------------------------------------------------------------------------------------


def comparison_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """Every row's mean with its 95 % interval and its seeds, best first, in the band of 95 % of sets of real images: a
    panel for each way in which classes come."""
    found = best_first(layout, grid, metric, ranking(grid)[2])
    panels = {kind: [row for row in found if row.topline == kind] for kind in CLASSES}
    panels = {kind: of for kind, of in panels.items() if of} or {"by chance": []}
    heights = [max(2, len(of)) + 1 for of in panels.values()]
    size: dict[str, Any] = {"figsize": (7.5, 1.0 + 0.24 * sum(heights)), "height_ratios": heights, "sharex": True}
    with drawing(path, len(panels), 1, **size) as (figure, axes):
        for axis, (kind, of) in zip(axes[:, 0], panels.items(), strict=True):
            _band(axis, ceilings(layout)[kind], metric)
            for i, row in enumerate(of):
                _dot(axis, row, i, metric)
            axis.set_yticks(range(len(of)), [row.name for row in of])
            axis.set(title=CLASSES[kind], ylim=(max(1, len(of)) - 0.4, -0.6))
            axis.grid(axis="y", visible=False)
        axes[-1, 0].set_xlabel(title)
        _scale(axes[-1, 0], found, [ceilings(layout)[kind] for kind in panels], metric)
        legend(figure, list(axes[:, 0]), 6, "outside upper center")


def _dot(axis: plt.Axes, row: Row, i: int, metric: str) -> None:
    """One row of the comparison, in the i-th place."""
    colour, mark = (GREY, "X") if row.bad else (COLOURS[0], "o" if row.cells else "D")
    label = "degenerate" if row.bad else "mean" if row.cells else "made elsewhere"
    # An interval that reaches zero has no end on a logarithmic axis.
    ends = max(row.low, 1e-9 * row.high), row.high
    axis.plot(ends, [i, i], color=colour, linewidth=2, alpha=0.45, solid_capstyle="butt", label="95 % interval")
    if len(row.seeds) > 1:
        axis.plot(row.seeds, [i] * len(row.seeds), "|", color=colour, markersize=7, label="a seed")
    axis.plot(row.number[metric], i, mark, color=colour, markersize=4.5, label=label)


def _ends(real: dict, metric: str) -> tuple[float, float]:
    """What 95 % of sets of real training images have."""
    return real.get(f"{metric}_low", real[metric]), real.get(f"{metric}_high", real[metric])


def _band(axis: plt.Axes, real: dict, metric: str) -> None:
    """The mean over sets of real training images, and what 95 % of these sets have."""
    if metric in real:
        axis.axvspan(*_ends(real, metric), color=COLOURS[2], alpha=0.18, linewidth=0, label="real data: 95 % of sets")
        axis.axvline(real[metric], color=COLOURS[2], linewidth=1, label="their mean")


def _scale(axis: plt.Axes, found: list[Row], real: list[dict], metric: str) -> None:
    """A logarithmic axis where everything is positive, from the least seed, end of an interval or band of real data."""
    bands = [end for of in real if metric in of for end in _ends(of, metric)]
    values = [value for row in found for value in row.seeds] + bands
    if values and min(values) > 0:
        ends = [end for row in found for end in (row.low, row.high) if end > 0.2 * min(values)]
        axis.set_xlim(0.85 * min(values + ends), 1.15 * max(values + ends))
        plain(axis, "x")


# ---- steps --------------------------------------------------------------------------------------------------


def family(row: Row, grid: Grid) -> tuple[str, str]:
    """A row without its number of steps: network and guidance; the sampler's method with what else it differs by."""
    cell = row.cells[0]
    sampler = grid.axis("sampler", cell.sampler)
    extra = [f"{key} {sampler[key]}" for key in ("eta", "variance") if key in sampler]
    return " · ".join([*cell.parts[:3], *cell.parts[4:]]), " ".join([str(sampler["method"]), *extra])


def families(found: Sequence[Row], grid: Grid) -> dict[str, dict[str, list[Row]]]:
    """Panel → sampler → its rows by evaluations of the network. A panel is of one network and guidance that is sampled
    with several numbers of them; all others share the last one."""
    panels: dict[str, list[Row]] = {}
    for row in found:
        panels.setdefault(family(row, grid)[0], []).append(row)
    several = {name: of for name, of in panels.items() if len({row.number["nfe"] for row in of}) > 1}
    rest = [row for name, of in panels.items() if name not in several for row in of]
    drawn: dict[str, dict[str, list[Row]]] = {}
    for name, of in (several | ({"all others" if several else "all": rest} if rest else {})).items():
        lines = drawn.setdefault(name, {})
        for row in sorted(of, key=lambda row: row.number["nfe"]):
            lines.setdefault(family(row, grid)[1], []).append(row)
    return drawn


def steps_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """The metric against evaluations of the network per sample: a line per sampler, a panel per network."""
    found = [row for row in rows(layout, grid, metric) if row.cells and not row.bad]
    panels = families(found, grid)
    methods = list(dict.fromkeys(sampler for lines in panels.values() for sampler in lines))
    columns = min(3, len(panels)) or 1
    height = -(-len(panels) // columns) or 1
    size: dict[str, Any] = {"figsize": (3.1 * columns + 0.4, 2.5 * height + 0.8), "sharey": True, "sharex": True}
    with drawing(path, height, columns, **size) as (figure, axes):
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (panel, lines) in zip(axes.flat, panels.items(), strict=False):
            for sampler, of in lines.items():
                shown = [(row.number["nfe"], row.number[metric]) for row in of]
                joined = "-" if not panel.startswith("all") else ""
                line(axis, methods.index(sampler), shown, markersize=5, label=sampler, linestyle=joined)
            axis.set_title(panel)
            axis.tick_params(labelbottom=True)
        plain(axes[0, 0], "x")  # which all panels share
        if all(row.number[metric] > 0 for row in found):
            plain(axes[0, 0], "y")
        legend(figure, list(axes.flat), 4, "outside upper center")
        figure.supxlabel("network evaluations per sample", fontsize=9)
        figure.supylabel(title, fontsize=9)


# ---- guidance -----------------------------------------------------------------------------------------------


def guidance_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """The metric, the accuracy of labels and the diversity within classes against the weight of guidance, a line per
    method and network; dashed, real training images."""
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row in rows(layout, grid, metric):
        guidance = grid.axis("guidance", row.cells[0].guidance) if row.cells else {}
        if "weight" in guidance:
            parts = row.cells[0].parts
            name = " · ".join([guidance["method"], *parts[:2], *parts[3:]])
            lines.setdefault(name, []).append((guidance["weight"], row))
    real = ceilings(layout)["stratified"]
    titles = {metric: title} | {key: metrics()[key]["title"] for key in ("label_accuracy", "diversity")}
    keys = [key for key in titles if any(key in row.number for of in lines.values() for _, row in of)]
    with drawing(path, 1, len(keys), figsize=(1.4 + 2.9 * len(keys), 3.4)) as (figure, axes):
        for axis, key in zip(axes[0], keys, strict=True):
            for i, (name, of) in enumerate(lines.items()):
                shown = sorted((w, row.number[key]) for w, row in of if key in row.number)
                line(axis, i, shown, label=name, markersize=5)
                for w, row in of if key == metric else []:
                    axis.plot([w, w], [row.low, row.high], color=COLOURS[i % len(COLOURS)], linewidth=2, alpha=0.45)
            if key in real:
                axis.axhline(real[key], color=GREY, linestyle="--", linewidth=1, label="real training images")
            axis.set(xlabel="weight w", ylabel=titles[key])
        legend(figure, list(axes[0]), 3)


# ---- training -----------------------------------------------------------------------------------------------


def seconds_figure(layout: Layout, grid: Grid, metric: str, title: str, path: Path) -> None:
    """Every row's mean with its 95 % interval against the seconds that its networks were trained for, the mean over
    seeds with the range; a colour per guidance and sampler, and the network's name beside its best row."""
    results, named = Results(grid, layout), set()
    found = [row for row in best_first(layout, grid, metric, ranking(grid)[2]) if row.cells and not row.bad]
    kinds = list(dict.fromkeys(row.cells[0].parts[2:4] for row in found))
    one = len({row.cells[0].parts[:2] for row in found}) == 1
    with drawing(path, 1, 1, figsize=(7.5, 4.4)) as (figure, ((axis,),)):
        for row in found:
            spent = [results.trained(cell)["seconds"] for cell in row.cells]
            at, value, parts = fmean(spent), row.number[metric], row.cells[0].parts
            i = kinds.index(parts[2:4])
            bars: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.2, "alpha": 0.5}
            axis.plot([at, at], [max(row.low, 0.5 * min(row.seeds)), row.high], **bars)
            axis.plot([min(spent), max(spent)], [value, value], **bars)
            line(axis, i, [(at, value)], linestyle="", markersize=5, label=" · ".join(parts[2:4]))
            name = " · ".join([*([] if one else parts[:2]), row.cells[0].network])
            if name not in named:
                near: dict[str, Any] = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8, "va": "top"}
                axis.annotate(name, (at, value), **near)
            named.add(name)
        axis.margins(x=0.12)
        axis.set(xlabel="seconds of training", ylabel=title)
        if all(value > 0 for row in found for value in row.seeds):
            plain(axis, "y")
        legend(figure, [axis], 4, "outside upper center")
