"""Which rows are better than all others by more than chance: what table.md has in bold. No torch."""

import numpy as np
import pandas as pd
from scipy import stats

from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.registry import AXES

Z = stats.norm.ppf(0.975)


def winners(table: pd.DataFrame, pairs: pd.DataFrame, distances: list[str], made: pd.Series) -> dict[str, list[int]]:
    """Column → the rows, by index, that are better in it than every other one that they can be compared with.

    distances: the columns with an interval, NAME_low and NAME_high, of which less is better. made: `trainings` of the
    table. Compared are finished rows of samples whose classes come the same way (`topline`). Two rows differ by more
    than chance where their difference is larger than the root of the sum of squares of their half widths: half the
    interval, or, of several seeds, that of Student's t for their spread, where it is larger. One seed tells nothing of
    the chance of training: where either row has no more, they are told apart only if one training made both. Compared
    image by image (`pairs`) are bits/dim, and distances of one network where that was measured.
    """
    found = {column: _smallest(table, pairs[pairs["measure"] == column], column, made) for column in distances}
    bits = ("nll_bits_per_dim", "nll_ode_bits_per_dim")
    return found | {measure: _paired(table, pairs, measure, made) for measure in bits}


def trainings(table: pd.DataFrame, grid: Grid) -> pd.Series:
    """What was trained for the samples of every row, whatever the seed: equal where rows share the chance of training.

    A row without a cell shares nothing with any other.
    """
    of = {row: _training(grid, cells[0]) for row, cells in grid.rows.items() if not cells[0].reason}
    rows = zip(table.index, table[list(AXES)].itertuples(index=False, name=None), strict=True)
    return pd.Series({index: of.get(row, (index,)) for index, row in rows}, dtype=object)


def _training(grid: Grid, cell: Cell) -> tuple:
    """The networks of a cell as they are trained, averages of one training being one, and its classifier."""
    guide = grid.guide(cell)
    networks = (grid.network(cell), *grid.others(cell).values())
    return *(grid.trained_as(network).parts for network in networks), (guide.schedule, guide.latent) if guide else ()


def reach(error: pd.Series, spread: pd.Series, seeds: pd.Series) -> pd.Series:
    """Half the width of 95 %: from an error over samples or images, or from the spread over seeds, the larger."""
    seeds = pd.to_numeric(seeds).astype(float)
    students = stats.t.ppf(0.975, np.maximum(seeds - 1, 1)) * pd.to_numeric(spread) / np.sqrt(seeds)
    return np.fmax(Z * pd.to_numeric(error), students)


def _smallest(table: pd.DataFrame, pairs: pd.DataFrame, column: str, made: pd.Series) -> list[int]:
    """The smallest value of each topline's rows, if no other one could be it."""
    rows = table[(table["status"] == "ok") & table["seeds"].notna() & table[column].notna()]
    error = (rows[f"{column}_high"] - rows[f"{column}_low"]) / (2 * Z)
    half = reach(error, rows[f"{column}_std"], rows["seeds"])
    found = []
    for _, of in rows.groupby("topline"):
        best = of[column].idxmin()
        others = of.drop(best)
        apart = others[column] - of.loc[best, column] > np.sqrt(half[others.index] ** 2 + half[best] ** 2)
        apart.update(_apart(others, of.loc[best], pairs))
        same = pd.Series([made[index] == made[best] for index in others.index], others.index, dtype=bool)
        apart &= same | ((others["seeds"] > 1) & (of.loc[best, "seeds"] > 1))
        if len(others) and apart.all():
            found.append(best)
    return found


def _apart(others: pd.DataFrame, best: pd.Series, pairs: pd.DataFrame) -> pd.Series:
    """Whether rows of the best one's network differ from it by more than chance, of those that `pairs` compares."""
    found = {}
    if len(pairs):
        against = pairs[pairs["against"] == f"{best['guidance']}/{best['sampler']}"]
        over = against["difference"] > reach(against["standard_error"], against["std"], against["seeds"])
        apart = dict(zip(against[list(AXES)].itertuples(index=False, name=None), over, strict=True))
        shared = ["objective", "schedule", "network"]
        for index, row in others[(others[shared] == best[shared]).all(axis=1)].iterrows():
            if (name := tuple(row[list(AXES)])) in apart:
                found[index] = apart[name]
    return pd.Series(found, dtype=bool)


def _paired(table: pd.DataFrame, pairs: pd.DataFrame, measure: str, made: pd.Series) -> list[int]:
    """The rows of the best network, if its difference to every other one is more than chance."""
    against = pairs[pairs["measure"] == measure]
    if against.empty:
        return []
    names = ["objective", "schedule", "network"]
    best = against["against"].iloc[0].split("/")
    there = table[table[measure].notna()]
    of_best = list(there.index[(there[names[: len(best)]] == best).all(axis=1)])
    of = {tuple(row[names]): made[index] for index, row in there.iterrows()}
    ours = set(made[of_best])
    same = [ours == {of.get(other)} for other in against[names].itertuples(index=False, name=None)]
    apart = against["difference"] > reach(against["standard_error"], against["std"], against["seeds"])
    return of_best if (apart & np.logical_or(same, against["seeds"] > 1)).all() else []
