"""Which rows are better than all others by more than chance: what table.md has in bold. No torch."""

import numpy as np
import pandas as pd
from scipy import stats

from ddpm.pipeline.registry import AXES

Z = stats.norm.ppf(0.975)


def winners(table: pd.DataFrame, pairs: pd.DataFrame, distances: list[str]) -> dict[str, list[int]]:
    """Column → the rows, by index, that are better in it than every other one that they can be compared with.

    distances: the columns with an interval, NAME_low and NAME_high, of which less is better. Compared are finished rows
    of samples whose classes come the same way (`topline`). Two rows differ by more than chance where their difference
    is larger than the root of the sum of squares of their half widths: half the interval, or, of several seeds, that of
    Student's t for their spread, where it is larger. Compared image by image (`pairs`) are bits/dim, and distances of
    one network where that was measured.
    """
    found = {column: _smallest(table, pairs[pairs["measure"] == column], column) for column in distances}
    return found | {measure: _paired(table, pairs, measure) for measure in ("nll_bits_per_dim", "nll_ode_bits_per_dim")}


def reach(error: pd.Series, spread: pd.Series, seeds: pd.Series) -> pd.Series:
    """Half the width of 95 %: from an error over samples or images, or from the spread over seeds, the larger."""
    seeds = pd.to_numeric(seeds).astype(float)
    students = stats.t.ppf(0.975, np.maximum(seeds - 1, 1)) * pd.to_numeric(spread) / np.sqrt(seeds)
    return np.fmax(Z * pd.to_numeric(error), students)


def _smallest(table: pd.DataFrame, pairs: pd.DataFrame, column: str) -> list[int]:
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


def _paired(table: pd.DataFrame, pairs: pd.DataFrame, measure: str) -> list[int]:
    """The rows of the best network, if its difference to every other one is more than chance."""
    against = pairs[pairs["measure"] == measure]
    if against.empty:
        return []
    half = reach(against["standard_error"], against["std"], against["seeds"])
    if not (against["difference"] > half).all():
        return []
    best = against["against"].iloc[0].split("/")
    named = table[["objective", "schedule", "network"][: len(best)]]
    return list(table.index[(named == best).all(axis=1) & table[measure].notna()])
