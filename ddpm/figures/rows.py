"""What figures draw of the table's rows: means over seeds with their intervals, and which row is best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ddpm.pipeline import records
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.measures import metrics, toplines
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import external
from ddpm.pipeline.verdict import degenerate
from ddpm.tables.winners import Z, reach


@dataclass(frozen=True)
class Row:
    """What is drawn of one row.

    cells: those of its seeds, all of which are finished; none of samples that were made elsewhere.
    topline: how its classes come, `stratified` or `by chance`.
    seeds: the metric of every training seed; low and high: the ends of the 95 % interval of their mean.
    number: the mean over all cells of everything that was measured; `nfe` among it.
    over: the mean as a multiple of the topline's; the mean itself where there is none.
    bad: whether a cell's samples are none of the data.
    """

    name: str
    cells: tuple[Cell, ...]
    topline: str
    seeds: tuple[float, ...]
    low: float
    high: float
    number: dict[str, float]
    over: float
    bad: bool = False


def ranking(grid: Grid) -> tuple[str, str, float]:
    """What pictures rank rows by, the first metric that these data have: its name and title, and 1 or −1 where less or
    more of it is better."""
    name = grid.metrics[0]
    declared = metrics()[name]
    return name, declared["title"], 1 if declared["direction"] == "↓" else -1


def ceilings(layout: Layout) -> dict[str, dict]:
    """Topline → what was measured of the real images that are it."""
    return {kind: _result(layout, "fidelity", name) for kind, name in toplines().items()}


def rows(layout: Layout, grid: Grid, metric: str) -> list[Row]:
    """Every row of the table that has numbers, in its order. A row of which a seed has diverged has none."""
    real, noise = ceilings(layout), _result(layout, "fidelity", "noise")
    found = []
    for cells in grid.rows.values():
        runs = [cell for cell in cells if cell.name in grid.runs]
        measured = [_result(layout, "fidelity", cell.name) for cell in runs]
        if runs and all(metric in result for result in measured):
            samples = [_result(layout, "sample", cell.name) for cell in runs]
            bad = any(degenerate(*both, noise) for both in zip(samples, measured, strict=True))
            results = [m | {"nfe": s["nfe"]} for s, m in zip(samples, measured, strict=True)]
            kind = "stratified" if grid.is_given_classes(runs[0]) else "by chance"
            found.append(_row(" · ".join(runs[0].parts), runs, kind, results, metric, real[kind], bad))
    return [*found, *_elsewhere(layout, grid, metric, real, noise)]


def best_first(layout: Layout, grid: Grid, metric: str, sign: float) -> list[Row]:
    """The rows by their means as multiples of their toplines; those that are none of the data last."""
    return sorted(rows(layout, grid, metric), key=lambda row: (row.bad, sign * row.over))


def _elsewhere(layout: Layout, grid: Grid, metric: str, real: dict[str, dict], noise: dict) -> list[Row]:
    """The rows of samples that were made elsewhere and measured as ours are."""
    results, found = Results(grid, layout), []
    for name in results.external:
        fidelity, taken = results.record("fidelity", name), results.record("external", external(name))
        if not fidelity or not taken or metric not in fidelity["result"]:
            continue
        measured, kind = fidelity["result"], "stratified" if taken["result"]["stratified"] else "by chance"
        if all(measured.get(key) == real[kind].get(key) for key in ("extractor", "protocol", "images")):
            bad = bool(degenerate(taken["result"], measured, noise))
            found.append(_row(external(name), [], kind, [measured], metric, real[kind], bad))
    return found


def _row(name: str, cells: Sequence[Cell], kind: str, results: list[dict], metric: str, real: dict, bad: bool) -> Row:
    """A row from what was measured of its cells."""
    values = pd.Series([result[metric] for result in results], [cell.seed for cell in cells] or [0], dtype=float)
    seeds = values.groupby(level=0, sort=False).mean()
    ends = [[result.get(f"{metric}_{end}", result[metric]) for result in results] for end in ("low", "high")]
    # As in the table: the ends of the mean of independent sets (Zou & Donner 2008), or Student's t over seeds.
    error = pd.Series([float(np.linalg.norm(values.to_numpy() - of)) / len(results) / Z for of in ends])
    below, above = reach(error, pd.Series([seeds.std()] * 2), pd.Series([len(seeds)] * 2))
    keys = [key for key, value in results[0].items() if isinstance(value, int | float)]
    number = {key: float(np.mean([result[key] for result in results if key in result])) for key in keys}
    mean, top = float(seeds.mean()), real.get(metric)
    over = mean / top if top else mean
    return Row(name, tuple(cells), kind, tuple(seeds), mean - below, mean + above, number | {metric: mean}, over, bad)


def _result(layout: Layout, stage: str, name: str) -> dict:
    """What one job measured."""
    return records.read_record(layout.record(stage, name))["result"]
