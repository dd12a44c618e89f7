"""Which rows are better than all others by more than chance: what table.md has in bold. No torch."""

import numpy as np
import pandas as pd
from scipy import stats

Z = stats.norm.ppf(0.975)


def winners(table: pd.DataFrame, pairs: pd.DataFrame, distances: list[str]) -> dict[str, list[int]]:
    """Column → the rows, by index, that are better in it than every other one that they can be compared with.

    distances: the columns with an interval, NAME_low and NAME_high, of which less is better. Compared are finished rows
    of samples whose classes come the same way (`topline`). Two rows differ by more than chance where their difference
    is larger than the root of the sum of squares of their half widths: half the interval, or, of several seeds, that of
    Student's t for their spread, where it is larger. Bits/dim are compared image by image (`pairs`).
    """
    found = {column: _smallest(table, column) for column in distances}
    return found | {measure: _paired(table, pairs, measure) for measure in ("nll_bits_per_dim", "nll_ode_bits_per_dim")}


def reach(error: pd.Series, spread: pd.Series, seeds: pd.Series) -> pd.Series:
    """Half the width of 95 %: from an error over samples or images, or from the spread over seeds, the larger."""
    seeds = pd.to_numeric(seeds).astype(float)
    students = stats.t.ppf(0.975, np.maximum(seeds - 1, 1)) * pd.to_numeric(spread) / np.sqrt(seeds)
    return np.fmax(Z * pd.to_numeric(error), students)


def _smallest(table: pd.DataFrame, column: str) -> list[int]:
    """The smallest value of each topline's rows, if no other one could be it."""
    rows = table[(table["status"] == "ok") & table["seeds"].notna() & table[column].notna()]
    error = (rows[f"{column}_high"] - rows[f"{column}_low"]) / (2 * Z)
    half = reach(error, rows[f"{column}_std"], rows["seeds"])
    found = []
    for _, of in rows.groupby("topline"):
        best = of[column].idxmin()
        others = of.drop(best)
        apart = others[column] - of.loc[best, column] > np.sqrt(half[others.index] ** 2 + half[best] ** 2)
        if len(others) and apart.all():
            found.append(best)
    return found


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
