"""What table.md has in bold: only what is better than everything else by more than chance."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from ddpm.pipeline import config
from ddpm.pipeline.registry import AXES
from ddpm.tables.markdown import markdown
from ddpm.tables.paired import COLUMNS
from ddpm.tables.winners import trainings, winners

ROOT = Path(__file__).parent.parent
NONE = pd.DataFrame(columns=COLUMNS)


def rows(*values: tuple, topline: str = "by chance", seeds: int = 1, spread: float = np.nan) -> pd.DataFrame:
    """Finished rows by (fid, half width)."""
    found = [{"fid": f, "fid_low": f - half, "fid_high": f + half} for f, half in values]
    return pd.DataFrame(found).assign(status="ok", seeds=seeds, fid_std=spread, topline=topline)


def of_one(table: pd.DataFrame) -> pd.Series:
    """All rows are sampled with one training."""
    return pd.Series("a", table.index)


def bold(table: pd.DataFrame, pairs: pd.DataFrame = NONE, made: pd.Series | None = None) -> list[int]:
    return winners(table, pairs, ["fid"], of_one(table) if made is None else made)["fid"]


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


@pytest.mark.parametrize(
    ("made", "seeds", "best"),
    [
        ("aaa", (1, 1, 1), [0]),
        ("aab", (1, 1, 1), []),
        ("aab", (3, 3, 3), [0]),
        ("aab", (3, 3, 1), []),  # nothing is known of the other's chance of training
        ("aab", (1, 3, 3), []),
        ("aab", (3, 1, 3), [0]),  # which has the best one's
    ],
)
def test_one_seed_tells_nothing_of_other_trainings(made: str, seeds: tuple, best: list[int]) -> None:
    """However far apart: only rows of the best one's own training are compared by their samples alone."""
    table = rows((1.0, 0.1), (9.0, 0.1), (8.0, 0.1)).assign(seeds=seeds, fid_std=0.1)
    assert bold(table, made=pd.Series(list(made))) == best


def test_what_is_trained_for_a_row() -> None:
    """Samplers, weights of guidance and averages of one training share it; rows of other labels, of another network, or
    with a guide do not. Baselines and samples from elsewhere share it with nothing."""
    read = config.read(ROOT / "config.yaml")
    names = {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ancestral", "ddim"]}
    guided = ["cfg-w1", "cfg-w5", "c1", "c4", "auto"]
    overlay = {
        "seeds": [0, 1],
        "training": {"snapshots": 4},
        "networks": {"small": read["network"] | {"width": 8}},
        "guidances": {
            **{"c1": {"method": "classifier", "weight": 1.0}, "c4": {"method": "classifier", "weight": 4.0}},
            "auto": {"method": "autoguidance", "guide_network": "small", "weight": 1.0},
        },
        "grid": [names, names | {"guidance": guided}, names | {"network": ["small"]}, names | {"ema": [0.1]}],
    }
    grid = config.check(config.merge(read, overlay))
    table = pd.DataFrame([*[(x, *["none"] * 4) for x in ("noise", "mine")], *grid.rows], columns=list(AXES))
    found: dict[tuple, set] = {}
    for name, made in zip(table.itertuples(index=False, name=None), trainings(table, grid), strict=True):
        found.setdefault(made, set()).add((name[2], name[4]) if name[0] == "eps" else name[0])
    unet, small = ("none", "unet"), ("none", "small")
    together = [{unet, ("none", "unet-ema0.1")}, {small}, {("cfg-w1", "unet"), ("cfg-w5", "unet")}]
    together += [{("c1", "unet"), ("c4", "unet")}, {("auto", "unet")}, {"noise"}, {"mine"}]
    assert set(map(frozenset, found.values())) == set(map(frozenset, together)) and len(found) == len(together)


def pair(against: str, difference: float, error: float, std: float = np.nan, seeds: int = 2) -> dict:
    measure = {"measure": "nll_bits_per_dim", "against": against, "seeds": seeds}
    return measure | {"difference": difference, "standard_error": error, "std": std}


def test_bits_are_compared_image_by_image() -> None:
    """All rows of the best network, whatever the sampler, if it is better than every other one."""
    table = rows((1.0, 0.5), (1.0, 0.5), (1.0, 0.5))
    table[["objective", "schedule"]] = [["eps", "linear"], ["eps", "linear"], ["x0", "linear"]]
    table["network"], table["nll_bits_per_dim"], table["nll_ode_bits_per_dim"] = "unet", [3.0, 3.0, 3.1], np.nan

    def best(*pairs: dict, made: str = "aab") -> list[int]:
        found = pd.DataFrame([{"objective": "x0", "schedule": "linear", "network": "unet"} | p for p in pairs])
        return winners(table, found.reindex(columns=COLUMNS), [], pd.Series(list(made)))["nll_bits_per_dim"]

    assert best(pair("eps/linear", 0.1, 0.04)) == [0, 1]
    assert best(pair("eps/linear", 0.1, 0.06)) == []
    assert best(pair("eps/linear", 0.1, 0.04), pair("eps/linear", 0.2, 0.2)) == []
    assert best(pair("eps/linear", 0.1, 0.01, std=0.03)) == []  # 12.7 · 0.03/√2
    assert best(pair("eps/linear", 0.1, 1e-6, seeds=1)) == []
    assert best(pair("eps/linear", 0.1, 0.04, seeds=1), made="aaa") == [0, 1]  # averages of one training
    of_x0 = pair("x0/linear/unet", 0.1, 0.01) | {"objective": "eps"}
    assert best(of_x0) == [2] and best(of_x0 | {"seeds": 1}) == [] and best() == []


def test_bold_is_markdowns() -> None:
    """The cell alone, and numbers stay numbers."""
    frame = pd.DataFrame({"name": ["a", "b"], "count": [1, 2], "fid": [1.25, 2.5]})
    lines = markdown(frame, 2, {"fid": [0]}).splitlines()
    assert lines[2].split() == ["|", "a", "|", "1", "|", "**1.25**", "|"] and "**" not in lines[3]
