"""What table.md has in bold: only what is better than everything else by more than chance."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from ddpm.tables.markdown import markdown
from ddpm.tables.paired import COLUMNS
from ddpm.tables.winners import winners

NONE = pd.DataFrame(columns=COLUMNS)


def rows(*values: tuple, topline: str = "by chance", seeds: int = 1, spread: float = np.nan) -> pd.DataFrame:
    """Finished rows by (fid, half width)."""
    found = [{"fid": f, "fid_low": f - half, "fid_high": f + half} for f, half in values]
    return pd.DataFrame(found).assign(status="ok", seeds=seeds, fid_std=spread, topline=topline)


def bold(table: pd.DataFrame, pairs: pd.DataFrame = NONE) -> list[int]:
    return winners(table, pairs, ["fid"])["fid"]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(1.0, 0.3), (1.6, 0.4)], [0]),  # 0.6 > 0.5
        ([(1.0, 0.3), (1.4, 0.4)], []),
        ([(2.0, 0.3), (1.0, 0.3), (3.0, 0.1)], [1]),
        ([(1.0, 0.1), (1.6, 0.1), (9.0, 10.0)], []),  # the third might be anything
        ([(1.0, 0.1)], []),
    ],
)
def test_a_winner_is_apart_from_all_others(values: list, best: list[int]) -> None:
    """By more than the root of the sum of squares of both half widths."""
    assert bold(rows(*values)) == best


def test_the_spread_over_seeds_counts_where_it_is_larger() -> None:
    """Of three seeds Student's t on two degrees of freedom, t 0.1/√3 = 0.248; √2 of it is 0.351."""
    assert t.ppf(0.975, 2) * 0.1 / 3**0.5 == pytest.approx(0.2484, abs=1e-4)
    assert bold(rows((1.0, 0.01), (1.36, 0.01), seeds=3, spread=0.1)) == [0]
    assert bold(rows((1.0, 0.01), (1.34, 0.01), seeds=3, spread=0.1)) == []
    assert bold(rows((1.0, 0.2), (1.25, 0.2), seeds=3, spread=0.01)) == []


def test_only_what_can_be_compared() -> None:
    """Rows of another topline have a winner of their own; what is not `ok`, and rows without seeds, the baselines, have
    no part."""
    both = pd.concat([rows((1.0, 0.1), (2.0, 0.1)), rows((0.5, 0.1), (0.9, 0.1), topline="stratified")])
    both = both.reset_index(drop=True)
    assert bold(both) == [0, 2]
    both.loc[0, "status"] = "degenerate"
    assert bold(both) == [2]
    both.loc[2, "seeds"] = np.nan
    assert bold(both) == []


def pair(against: str, difference: float, error: float, std: float = np.nan, seeds: int = 1) -> dict:
    measure = {"measure": "nll_bits_per_dim", "against": against, "seeds": seeds}
    return measure | {"difference": difference, "standard_error": error, "std": std}


def test_bits_are_compared_image_by_image() -> None:
    """All rows of the best network, whatever the sampler, if it is better than every other one."""
    table = rows((1.0, 0.5), (1.0, 0.5), (1.0, 0.5))
    table[["objective", "schedule"]] = [["eps", "linear"], ["eps", "linear"], ["x0", "linear"]]
    table["network"], table["nll_bits_per_dim"], table["nll_ode_bits_per_dim"] = "unet", [3.0, 3.0, 3.1], np.nan

    def best(*pairs: dict) -> list[int]:
        return winners(table, pd.DataFrame(pairs, columns=COLUMNS), [])["nll_bits_per_dim"]

    assert best(pair("eps/linear", 0.1, 0.04)) == [0, 1]
    assert best(pair("eps/linear", 0.1, 0.06)) == []
    assert best(pair("eps/linear", 0.1, 0.04), pair("eps/linear", 0.2, 0.2)) == []
    assert best(pair("eps/linear", 0.1, 0.01, std=0.03, seeds=2)) == []  # 12.7 · 0.03/√2
    assert best(pair("x0/linear/unet", 0.1, 0.01)) == [2] and best() == []


def test_bold_is_markdowns() -> None:
    """The cell alone, and numbers stay numbers."""
    frame = pd.DataFrame({"name": ["a", "b"], "count": [1, 2], "fid": [1.25, 2.5]})
    lines = markdown(frame, 2, {"fid": [0]}).splitlines()
    assert lines[2].split() == ["|", "a", "|", "1", "|", "**1.25**", "|"] and "**" not in lines[3]
