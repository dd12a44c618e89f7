"""Curves of schedules and networks: noise by time, loss by images, bits/dim by time. PNG, and SVG beside it."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import EngFormatter

from ddpm.figures.canvas import COLOURS, drawing, plain
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.schedules import Schedule
from ddpm.stages.likelihood import time_shares

LINES = ("-", "--", "-.", ":")
# The first and the last term of a bound.
PARTS = ("decoder", "prior")


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


def terms(table: pd.DataFrame, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The edges (K + 1,) in t and the heights (K,) in bits/dim per step of the bound's terms as a step function of t.

    table: `terms.csv` of the likelihood stage, whose K strata of {2, …, T} have equal shares of the draws q, or are
    single steps. A step t is the interval (t − 1, t]; where a boundary of strata cuts it, at (k/K − Q_{t−1})/q_t of it.
    """
    bits = table.loc[table["term"] == "kl", "bits_per_dim"].to_numpy()
    t = np.arange(1, schedule.steps + 1, dtype=float)
    if len(bits) == schedule.steps - 1:
        return t, bits
    reached = np.concatenate([[0], time_shares(schedule).cumsum(0).numpy()])
    edges = np.interp(np.arange(len(bits) + 1) / len(bits), reached / reached[-1], t)
    return edges, bits / np.diff(edges)


def bound_figure(layout: Layout, grid: Grid, path: Path) -> None:
    """The variational bound by diffusion time, a line per network, the mean over seeds: what a step adds to it (Nichol
    & Dhariwal 2021, figure 2), and the sum of all terms from the decoder's to that of t; at T the prior's is added."""
    seeds: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for name in grid.names["likelihood"]:
        network, table = grid.networks[name], pd.read_csv(layout.output("likelihood", name, "terms"))
        if len(table) and np.isfinite(table["bits_per_dim"]).all():  # not where training has diverged
            parts = (*network.parts[:2], *network.parts[3:])
            seeds.setdefault((" · ".join(parts), network.schedule), []).append(table)
    with drawing(path, 1, 2, figsize=(9, 3.8)) as (figure, axes):
        for i, ((label, of), tables) in enumerate(seeds.items()):
            schedule = Schedule.make(grid.axis("schedule", of))
            table = tables[0].assign(bits_per_dim=np.mean([table["bits_per_dim"] for table in tables], axis=0))
            edges, height = terms(table, schedule)
            decoder, prior = (float(table.loc[table["term"] == part, "bits_per_dim"].sum()) for part in PARTS)
            total = decoder + np.concatenate([[0], (height * np.diff(edges)).cumsum()])
            total, places = np.append(total, total[-1] + prior), np.append(edges, schedule.steps) / schedule.steps
            # The first ones are thickest: where lines lie on each other, all of them show.
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": LINES[i % 4],
                "linewidth": 2.4 - 1.4 * i / len(seeds),
            }
            axes[0, 0].plot((edges[1:] + edges[:-1]) / (2 * schedule.steps), height, label=label, **style)
            axes[0, 1].plot(places, total, **style)
        axes[0, 0].set(xlabel="t/T", ylabel="bits/dim of one step")
        plain(axes[0, 0], "x")
        plain(axes[0, 0], "y")
        axes[0, 1].set(xlabel="t/T", ylabel="bits/dim of all steps up to t")
        plain(axes[0, 1], "x")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
