"""Claims: which rows each is about, paired intervals against scipy's, false verdicts of chance, mistakes in files."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from project import ROOT
from scipy import stats

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.tables import claims, claims_text, verdicts
from ddpm.tables.claims import Claim
from ddpm.tables.selectors import Row


def grid(overlay: str = "") -> Grid:
    names = ["config.yaml"] + ([f"workflow/config/{overlay}.yaml"] if overlay else [])
    return config.check(config.read(*(ROOT / name for name in names)))


def claim(**changes: object) -> Claim:
    """ε against µ̃ in FID, but for what is changed."""
    default = {
        "name": "a",
        "says": "b",
        "sources": (),
        "column": "fid",
        "direction": "less",
        "compare": {},
        "against": {},
        "along": None,
        "margin": None,
        "published": "",
        "note": "",
    }
    return Claim(**(default | changes))


def judged(claims: list[Claim], values: dict[str, list[float]], column: str = "fid") -> list[verdicts.Verdict]:
    """Verdicts on claims about all of these rows, in order, each with one number per seed."""
    rows = [(name,) for name in values]
    numbers = {(name,): dict(enumerate(of)) for name, of in values.items()}
    first = max(3, *map(len, values.values()))
    return verdicts.judged([(one, [rows]) for one in claims], {column: numbers}, first)


# ---- rows -------------------------------------------------------------------------------------------------


def groups(name: str, overlay: str) -> list[list[tuple[str, ...]]]:
    (one,) = (c for c in claims.read() if c.name == name)
    return [[row[:4] for row in group] for group in claims.groups(one, grid(overlay))]


def test_pairs_differ_in_nothing_but_what_is_named() -> None:
    """The same steps, schedule and guidance on both sides; only the values asked for."""
    found = groups("ddim-against-ddpm", "ddim")
    steps = ("10", "20", "50", "100")
    assert found == [[("eps", "linear", "none", f"eta{eta}-{n}") for eta in ("0.0", "1.0")] for n in steps]
    pairs = groups("learned-variance-codes-better", "study")
    assert pairs == [[(o, s, "none", "ancestral") for o in ("learned", "eps")] for s in ("linear", "cosine")]


def test_rows_along_a_parameter_come_in_its_order() -> None:
    """Other methods and guided rows without the parameter are left out."""
    (found,) = groups("guidance-costs-diversity", "study")
    assert [row[2] for row in found] == ["cfg-0", "cfg-0.5", "cfg-1", "cfg-2", "cfg-4", "cfg-8"]
    (found,) = groups("noise-costs-at-ten-steps", "ddim")
    assert [row[3] for row in found] == ["eta0.0-10", "eta0.2-10", "eta0.5-10", "eta1.0-10"]


def test_any_lets_a_parameter_differ() -> None:
    """Chains of unlike lengths are a pair where `steps` is `any`, and none where it is not named; every guided row is a
    pair with the row of weight 0, which is none with itself."""
    found = groups("guided-less-diverse", "study")
    assert [[row[2] for row in pair] for pair in found] == [[f"cfg-{w}", "cfg-0"] for w in (0.5, 1, 2, 4, 8)]
    assert len(groups("ode-against-sde", "toy")) == 1
    (one,) = (c for c in claims.read() if c.name == "ode-against-sde")
    strict = Claim(
        **(
            vars(one)
            | {"compare": {"sampler": {"method": "ode-euler"}}, "against": {"sampler": {"method": "euler-maruyama"}}}
        )
    )
    assert claims.groups(strict, grid("toy")) == []


def test_every_claim_is_about_some_grid() -> None:
    """None is about rows that no configuration of the project has."""
    grids = [grid(path.stem) for path in (ROOT / "workflow/config").glob("*.yaml") if path.stem != "mnist-gpu"]
    grids.append(grid())
    assert [c.name for c in claims.read() if not any(claims.groups(c, g) for g in grids)] == []


# ---- effects and intervals --------------------------------------------------------------------------------


def test_a_difference_is_paired_over_seeds() -> None:
    """What seeds share drops out: the interval is scipy's of the differences, at 97.5 % for the first look of a single
    claim, which leaves 2.5 % for those at further seeds."""
    a, b = [2.0, 5.0, 9.0, 3.0], [2.5, 5.4, 9.6, 3.6]
    (found,) = judged([claim(column="diversity")], {"a": a, "b": b}, "diversity")
    expected = stats.ttest_1samp(np.subtract(a, b), 0)
    low, high = expected.confidence_interval(0.975)
    assert (found.effect, found.low, found.high) == pytest.approx((-0.525, low, high), rel=1e-12)
    assert (found.p, found.level) == pytest.approx((expected.pvalue, 0.975), rel=1e-12)
    assert (found.verdict, found.seeds, found.pairs) == ("holds", 4, 1)
    (other,) = judged([claim(column="diversity", direction="more")], {"a": a, "b": b}, "diversity")
    assert other.verdict == "fails" and other.reason == ""


def test_distances_are_compared_by_their_ratio() -> None:
    """The geometric mean over seeds, whatever the size of each."""
    (found,) = judged([claim()], {"a": [1.0, 10.0, 5.0], "b": [2.1, 20.0, 9.8]})
    logs = np.log([1 / 2.1, 10 / 20, 5 / 9.8])
    ends = np.exp(stats.ttest_1samp(logs, 0).confidence_interval(0.975))
    assert (found.effect, found.low, found.high) == pytest.approx((np.exp(logs.mean()), *ends), rel=1e-12)
    assert found.verdict == "holds" and "× 0.5" in claims_text.effect(found)


def test_a_slope_is_per_rank() -> None:
    """The least-squares slope over 0, 1, 2, … of each seed."""
    values = {"a": [1.0, 1.2, 1.1], "b": [1.9, 2.3, 2.0], "c": [3.1, 3.2, 3.3], "d": [4.0, 4.4, 4.2]}
    (found,) = judged([claim(along=("guidance", "weight"), column="diversity", direction="more")], values, "diversity")
    slopes = [np.polyfit(range(4), [of[s] for of in values.values()], 1)[0] for s in range(3)]
    assert found.effect == pytest.approx(np.mean(slopes), rel=1e-12) and found.verdict == "holds"


def test_a_margin_moves_the_boundary() -> None:
    """At most a tenth more is no worse; a fifth more is; between them nothing can be told."""
    base = np.array([1.0, 2.0, 3.0])
    said = {}
    for factor in (1.0, 1.1, 1.3):
        noisy = base * factor * np.array([1.0, 1.01, 0.99])
        (found,) = judged([claim(margin=1.1)], {"a": list(noisy), "b": list(base)})
        said[factor] = found.verdict
    assert said == {1.0: "holds", 1.1: "undecided", 1.3: "fails"}


@pytest.mark.parametrize("column", ["fid", "precision"])
@pytest.mark.parametrize("direction", ["less", "more"])
def test_a_margin_allows_what_is_worse(column: str, direction: str) -> None:
    """In the direction that is worse, by a factor of distances and by a difference of all else: no effect agrees, the
    margin itself cannot be told, and twice the margin does not."""
    base, said = np.array([0.5, 0.6, 0.7]), []
    for times in (0, 1, 2):
        sign = times if direction == "less" else -times
        moved = base * 1.1**sign * [1.0, 1.001, 0.999] if column == "fid" else base + 0.1 * sign + [0.0, 0.001, -0.001]
        one = claim(margin=1.1 if column == "fid" else 0.1, direction=direction, column=column)
        (found,) = judged([one], {"a": list(moved), "b": list(base)}, column)
        said.append(found.verdict)
    assert said == ["holds", "undecided", "fails"]


def test_ratios_are_of_distances() -> None:
    """What is 0 or below it by chance has no logarithm: leaving such seeds out would choose by the outcome."""
    ratios = {"fid", "fid_binarized", "fid_over_topline", "fid_train", "sliced_wasserstein"}
    differences = {"kid", "copied", "memorised", "precision", "label_accuracy", "nll_bits_per_dim"}
    assert {column for column in ratios | differences if claim(column=column).ratio} == ratios


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ([1.0, 1.1], [2.0, 2.3], "3 seeds are needed"),
        ([1.0], [2.0], "3 seeds are needed"),
        ([], [], "no pair of rows has numbers"),
        ([1.0, 2.0, 4.0], [2.0, 4.0, 8.0], "no spread"),
        ([1.0, 2.0, 4.0], [2.0, 2.0, 2.0], "covers no effect"),
        ([-1.0, 2.0, 4.0], [2.0, 2.0, 2.0], "no pair of rows has numbers"),
    ],
)
def test_undecided_says_why(a: list[float], b: list[float], why: str) -> None:
    (found,) = judged([claim()], {"a": a, "b": b})
    assert found.verdict == "undecided" and why in found.reason


def test_a_pair_without_a_seed_is_left_out() -> None:
    """A seed that diverged in one pair takes that pair out of all seeds, and no seed out of the others."""
    values = {(name,): {0: 1.0, 1: 1.1, 2: 0.9} for name in "abcd"}
    values[("b",)] = {0: 2.0, 1: 2.3, 2: 1.9}
    del values[("d",)][1]
    of: list[list[Row]] = [[("a",), ("b",)], [("c",), ("d",)]]
    found = verdicts.seeds_effects(claim(), of, values)
    assert found == pytest.approx(np.log([1 / 2, 1.1 / 2.3, 0.9 / 1.9]), rel=1e-12)


def test_levels_follow_holm() -> None:
    """The k-th smallest p of m is held against 0.025/(m − k + 1), and after the first that fails, all fail."""
    rng = np.random.default_rng(3)
    shifts, base = (6.0, 2.0, 0.9, 0.1), rng.normal(size=(4, 5))
    tests, values = [], {}
    for i, shift in enumerate(shifts):
        values[(f"a{i}",)], values[(f"b{i}",)] = dict(enumerate(base[i] - shift)), dict.fromkeys(range(5), 0.0)
        tests.append((claim(column="diversity"), [[(f"a{i}",), (f"b{i}",)]]))
    found = verdicts.judged(tests, {"diversity": values}, first=5)
    p, rejected = np.array([v.p for v in found]), 0
    for k, i in enumerate(np.argsort(p)):
        if p[i] > 0.025 / (4 - k):
            break
        rejected += 1
    assert 0 < rejected < 4  # else this example shows nothing
    assert sorted(v.verdict for v in found) == ["holds"] * rejected + ["undecided"] * (4 - rejected)
    assert all((v.verdict == "holds") == (v.high < 0) for v in found)
    levels = sorted(1 - v.level for v in found)
    assert levels == pytest.approx(sorted([0.025 / (4 - min(k, rejected)) for k in range(4)]), rel=1e-9)


@pytest.mark.parametrize(("overlay", "seeds"), [("study", 3), ("ddim", 5)])
def test_chance_alone_decides_nothing(overlay: str, seeds: int) -> None:
    """1000 tables of one distribution for all rows, which share their seeds' luck: at most 5 % of the tables, not of
    the claims alone, have any false verdict. That margins hold under no effect is true, and no false verdict."""
    expanded = grid(overlay)
    tests = [(one, of) for one in claims.read() if (of := claims.groups(one, expanded))]
    rows = sorted({row for _, of in tests for group in of for row in group})
    assert len(tests) >= 5
    rng, false = np.random.default_rng(0), 0
    for _ in range(1000):
        drawn = np.exp(0.3 * rng.normal(size=(len(rows), seeds)) + 0.5 * rng.normal(size=seeds))
        values = {row: dict(enumerate(of)) for row, of in zip(rows, drawn.tolist(), strict=True)}
        found = verdicts.judged(tests, {one.column: values for one, _ in tests})
        false += any(v.verdict == "fails" or (v.verdict == "holds" and not v.claim.margin) for v in found)
    assert 0 < false <= 50


# ---- text and files ---------------------------------------------------------------------------------------


def test_text_and_table_say_the_same() -> None:
    """What holds stands first; a claim without rows is one word in one line; NaN is empty."""
    sure, absent = claim(name="sure", published="1 against 2"), claim(name="absent")
    rows: list[Row] = [("a",), ("b",)]
    values = {("a",): {0: 1.0, 1: 1.1, 2: 1.0}, ("b",): {0: 2.0, 1: 2.1, 2: 2.2}}
    found = verdicts.judged([(absent, []), (sure, [rows])], {"fid": values})
    text, frame = claims_text.text(found), claims_text.frame(found)
    assert "1 hold, 0 fail, 0 undecided; 1 are about rows" in text and "Not in this grid: `absent`.\n" in text
    assert "nan" not in text and "| 1 against 2 |" in text
    assert frame["verdict"].tolist() == ["not in this grid", "holds"] and math.isnan(frame["effect"][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column": "fiid"}, "a.column: 'fiid'; it must be a measured column: fid,"),
        ({"direction": "down"}, "a.direction: 'down'; it must be less or more"),
        ({"compare": {"objectiv": {"target": "eps"}}}, "a.compare.objectiv: unknown axis; known are objective,"),
        ({"compare": {"objective": {"target": "epsilon"}}}, "compare.objective.target: 'epsilon'; it must be one of"),
        ({"compare": {"sampler": {"method": ["ddim", "dim"]}}}, "compare.sampler.method: 'dim'; it must be one of"),
        ({"against": {"sampler": {"etta": 1.0}}}, "a.against.sampler.etta: unknown parameter; known are"),
        ({"against": None}, "a.against: None; it must be AXIS: {PARAMETER: VALUE}"),
        ({"along": "sampler.steps"}, "a.against: a claim has either `against`, other rows, or `along`"),
        ({"sources": [{"paper": "x", "document": "007", "place": "y"}]}, "a.sources.0.document: '007'; it must be one"),
        ({"sources": [{"paper": "x"}]}, "a.sources.0: has the keys paper; it must have paper, document, place"),
        ({"margin": -1}, "a.margin: -1; it must be a positive number"),
        (
            {"margin": 0.9, "column": "fid"},
            "a.margin: 0.9; of a distance it is a factor, how much worse still agrees: it",
        ),
        ({"weight": 1}, "a.weight: unknown key; known are"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict, said: str) -> None:
    """File, key, value and what would be right; all at once."""
    right = {
        "says": "b",
        "sources": [{"paper": "Ho et al. 2020", "document": "002", "place": "table 2"}],
        "compare": {"objective": {"target": "eps"}},
        "against": {"objective": {"target": "mu"}},
        "column": "fid",
        "direction": "less",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"a": right}))
    assert claims.read(folder=tmp_path)[0].sources == ("Ho et al. 2020 (002, table 2)",)
    path.write_text(yaml.safe_dump({"a": right | change, "b": {"says": 3}}))
    with pytest.raises(UserError) as caught:
        claims.read(folder=tmp_path)
    assert f"{path}: " in str(caught.value) and said in str(caught.value)
    assert f"{path}: b.says: 3; it must be text" in str(caught.value) and "b.column: missing" in str(caught.value)
