"""Curves of schedules and networks: noise by time, loss by images. PNG, and SVG beside it."""

from pathlib import Path

import pandas as pd
import torch
from matplotlib.ticker import EngFormatter

from ddpm.figures.canvas import COLOURS, drawing, plain
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.schedules import Schedule

LINES = ("-", "--", "-.", ":")


def schedules_figure(grid: Grid, path: Path) -> None:
    """α² (ᾱ of Ho et al. 2020) and log SNR = log α²/σ² of every schedule against t/T."""
    names = list(dict.fromkeys(cell.schedule for cell in grid.runs.values()))
    with drawing(path, 1, 2, figsize=(8, 3.2)) as (figure, axes):
        for i, name in enumerate(names):
            schedule = Schedule.make(grid.axis("schedule", name))
            t = torch.linspace(0, 1, 401, dtype=torch.float64) * schedule.steps
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            snr = 2 * (alpha.log() - sigma.log())
            inner, colour, line = torch.isfinite(snr), COLOURS[i % len(COLOURS)], LINES[i % 4]
            axes[0, 0].plot(t / schedule.steps, alpha**2, color=colour, linestyle=line, label=name)
            axes[0, 1].plot((t / schedule.steps)[inner], snr[inner], color=colour, linestyle=line)
        axes[0, 0].set(xlabel="t/T", ylabel="α² (ᾱ)")
        axes[0, 1].set(xlabel="t/T", ylabel="log SNR")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def training_figure(layout: Layout, grid: Grid, path: Path) -> None:
    """Every network's loss against the images it has seen, a line per seed, the mean of five points; the losses have
    different units and scales."""
    panels: dict[str, list[pd.DataFrame]] = {}
    for network in grid.networks.values():
        frame = pd.read_csv(layout.output("train", network.name, "loss"))
        if len(frame):  # none of a network that was trained elsewhere
            frame["loss"] = frame["loss"].rolling(5, min_periods=1).mean()
            panels.setdefault(" · ".join(network.parts), []).append(frame)
    columns = min(4, len(panels)) or 1
    height = -(-len(panels) // columns) or 1
    with drawing(path, height, columns, figsize=(2.6 * columns + 0.6, 2.1 * height + 0.5), sharex=True) as (
        figure,
        axes,
    ):
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, frames) in zip(axes.flat, panels.items(), strict=False):
            for i, frame in enumerate(frames):
                colour = COLOURS[i % len(COLOURS)]
                axis.plot(frame["images"], frame["loss"], color=colour, linestyle=LINES[i % 4], linewidth=1)
            axis.set_title(name, fontsize=8)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.tick_params(labelbottom=True)
            if all((frame["loss"] > 0).all() for frame in frames):  # a sliced loss is known up to a constant only
                plain(axis, "y")
        figure.supxlabel("training images seen" if panels else "all networks were trained elsewhere", fontsize=9)
        figure.supylabel("loss" if panels else "", fontsize=9)
