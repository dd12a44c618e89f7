"""Further seeds for undecided claims: what looking again does to false verdicts, which seeds are asked for, at what
cost, and the overlay that asks for them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from project import ROOT
from scipy import stats
from test_claims import claim

from ddpm.cli import main
from ddpm.errors import UserError
from ddpm.pipeline import config, history, looks, records, status
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.tables import claims, claims_text, further, verdicts
from ddpm.tables.verdicts import Verdict

READ = config.read(ROOT / "config.yaml", ROOT / "workflow/config/study.yaml")
STUDY = config.check(READ)

# ---- looks ------------------------------------------------------------------------------------------------


def looked(differences: dict[str, list[float]]) -> dict[str, Verdict]:
    """Verdicts on claims of these names, each with the effects of its seeds, from three on."""
    tests, values = [], {}
    for name, of in differences.items():
        values[(f"{name}+",)], values[(f"{name}-",)] = dict(enumerate(of)), dict.fromkeys(range(len(of)), 0.0)
        tests.append((claim(name=name, column="diversity"), [[(f"{name}+",), (f"{name}-",)]]))
    return {v.claim.name: v for v in verdicts.judged(tests, {"diversity": values})}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_looking_again_adds_no_false_verdicts(share: float) -> None:
    """1000 tables of three claims that are not true, looked at with 3, 6 and 12 seeds: at most 5 % of the tables have
    any verdict in the end, whether all undecided claims get seeds or only the half that is nearest to one."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(1000):
        drawn = {name: rng.normal(size=12).tolist() for name in "abc"}
        seen = dict.fromkeys(drawn, 3)
        for _ in range(3):
            found = looked({name: drawn[name][: seen[name]] for name in drawn})
            rest = sorted((v for v in found.values() if v.verdict == "undecided"), key=lambda v: v.p)
            for v in rest[: math.ceil(share * len(rest))]:
                seen[v.claim.name] = min(12, 2 * seen[v.claim.name])
        false += any(v.verdict != "undecided" for v in found.values())
    assert 15 < false <= 50


def test_levels_halve_from_look_to_look() -> None:
    """One of two claims has further seeds: its interval is scipy's of six, at 0.0125 of a family of two."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=6).tolist(), rng.normal(size=3).tolist()
    found = looked({"a": a, "b": b})
    assert [(v.looks, v.seeds, v.verdict) for v in found.values()] == [(2, 6, "undecided"), (1, 3, "undecided")]
    assert found["a"].level == pytest.approx(1 - 0.0125 / 2, rel=1e-12)
    ends = stats.ttest_1samp(a, 0).confidence_interval(1 - 0.0125 / 2)
    assert (found["a"].low, found["a"].high) == pytest.approx(tuple(ends), rel=1e-9)
    assert sorted(1 - v.level for v in looked({"a": a[:3], "b": b}).values()) == pytest.approx([0.0125, 0.0125])


def test_a_look_takes_all_seeds_or_none() -> None:
    """Five seeds say what three do, a verdict stays whatever follows, and what three leave open six may decide."""
    sure, open_ = [-5.0, -5.1, -4.9], [-1.0, -1.5, -0.5]
    three, five = looked({"a": open_}), looked({"a": [*open_, -1.0, -1.0]})
    assert (five["a"].low, five["a"].high, five["a"].seeds) == (three["a"].low, three["a"].high, 3)
    found = looked({"sure": [*sure, 9.0, 9.0, 9.0], "open": [*open_, -0.9, -1.1, -1.0]})
    assert [(v.verdict, v.looks, v.seeds) for v in found.values()] == [("holds", 1, 3), ("holds", 2, 6)]
    assert found["sure"].effect == pytest.approx(-5.0) and found["open"].reason == ""
    assert found["open"].level == pytest.approx(1 - 0.0125)  # the only one that was open
    text = claims_text.frame(list(found.values()))
    assert text["looks"].tolist() == [1, 2]


def test_the_first_look_takes_the_seeds_of_all_cells() -> None:
    """At least three; every further one twice as many."""
    more = config.check(config.merge(READ, {"seeds": [0, 1, 2, 3, 4]}))
    one = config.check(config.read(ROOT / "config.yaml"))
    assert [[verdicts.at(grid, look) for look in (1, 2, 3)] for grid in (STUDY, more, one)] == [
        [3, 6, 12],
        [5, 10, 20],
        [3, 6, 12],
    ]


def kept(layout: Layout, seeds: list[int], **more: object) -> Grid:
    """The study with these seeds, whose table lies there: one that lay there before is replaced."""
    history.archive(layout, "table")
    grid = config.check(config.merge(READ, {"seeds": seeds} | more))
    records.Recorder("table", grid.job("table")[0], "0" * 16, {}).finish(
        layout.record("table"), [], cells=1, of=1, missing=0
    )
    return grid


def test_a_look_at_more_seeds_by_hand_is_said(tmp_path: Path) -> None:
    """By the table that lies there and by those that it has replaced; not where no look was taken, or with no more."""
    layout, six = Layout(tmp_path), list(range(6))
    one = kept(layout, [0])
    assert looks.taken(Results(one, layout)) == set()
    three = kept(layout, [0, 1, 2])
    assert looks.taken(Results(one, layout)) == {3} and not list(looks.lines(Results(three, layout)))
    more = kept(layout, six)
    assert looks.taken(Results(more, layout)) == {3, 6}
    (line,) = looks.lines(Results(more, layout))
    assert line.startswith("seeds: 6, and claims were looked at with 3 before; this looks at the full level again")
    results = Finished(more, layout)
    results.unmarked = {}
    assert status.plan_lines(results) == [line]
    layout.record("table").write_text("{", encoding="utf-8")
    assert list(looks.lines(Results(more, layout))) == [line]
    again = kept(Layout(tmp_path / "other"), [0], grid=[READ["grid"][0] | {"further_seeds": [1, 2]}])
    assert looks.taken(Results(again, Layout(tmp_path / "other"))) == {3}


# ---- what is asked for ------------------------------------------------------------------------------------


class Finished(Results):
    """Results of a finished grid in which training takes a hundred seconds, everything else one."""

    todo: dict = {}

    def known(self, stage: str, name: str = "") -> dict:
        return {"costs": {"seconds": 100.0 if stage == "train" else 1.0}}


def undecided(name: str, p: float = 0.5, looks: int = 1) -> Verdict:
    (one,) = (c for c in claims.read() if c.name == name)
    return Verdict(one, "undecided", p=p, looks=looks, reason="the interval covers no effect")


CODES, GUIDED = "learned-variance-codes-better", "guidance-costs-diversity"


def planned(*given: Verdict, grid: Grid = STUDY, budget: float = 1e6, most: int = 24) -> further.Plan:
    return further.plan(Finished(grid, Layout(Path("results"))), list(given), budget, most)


def test_only_rows_of_undecided_claims_get_seeds() -> None:
    """Four networks of three seeds more, and what their cells take: nothing else of the grid."""
    found = planned(undecided(CODES), Verdict(undecided(GUIDED).claim, "holds"))
    rows = {(o, s, "none", "ancestral", "unet") for o in ("eps", "learned") for s in ("linear", "cosine")}
    assert found.seeds == {row: [3, 4, 5] for row in rows}
    assert found.seconds == 4 * 3 * (100 + 1 + 1 + 1) and found.spent == 0  # likelihood, samples, FID
    assert list(found.given) == [CODES] and found.left == {}
    later = planned(undecided(CODES, looks=2))
    assert set(map(tuple, later.seeds.values())) == {tuple(range(3, 12))}


def test_the_overlay_adds_cells_and_changes_no_job(tmp_path: Path) -> None:
    """Expanded, it is the old grid and the further cells alone; every old job keeps its text; no file is replaced."""
    found = planned(undecided(CODES))
    path = further.overlay(tmp_path, READ["grid"], found)
    assert path.name == "further-1.yaml" == further.overlay(tmp_path, READ["grid"], found).name
    more = config.check(config.merge(READ, config.load(path)))
    new = {name for name in more.runs if name not in STUDY.runs}
    assert new == {f"{'/'.join(row[:4])}/seed{seed}" for row in found.seeds for seed in (3, 4, 5)}
    assert set(STUDY.runs) <= set(more.runs)
    assert all(more.job(*job) == STUDY.job(*job) for job in STUDY.jobs)
    path.write_text("mine", encoding="utf-8")
    assert further.overlay(tmp_path, READ["grid"], found).name == "further-2.yaml"
    assert path.read_text(encoding="utf-8") == "mine"
    # The next look of the same claim counts what the last one took, and asks for what lacks.
    following = planned(undecided(CODES, looks=2), grid=more)
    assert following.spent == found.seconds
    assert set(map(tuple, following.seeds.values())) == {tuple(range(6, 12))}


def test_the_budget_goes_to_what_is_nearest_to_a_verdict() -> None:
    """Jobs that two claims share are paid once; what is over the budget, or takes too many seeds, says so."""
    both = planned(undecided(CODES, 0.5), undecided("cosine-codes-better", 0.04))
    assert list(both.given) == ["cosine-codes-better", CODES]
    assert both.seconds == planned(undecided(CODES)).seconds  # of the same four rows
    three = [undecided(CODES, 0.04), undecided(GUIDED, 0.5)]
    found = planned(*three, budget=1300)
    assert list(found.given) == [CODES] and found.left == {GUIDED: "its next look takes 6 min, and 64 s are left"}
    said = "\n".join(further.lines(found, STUDY, 1300))
    assert "2 claims are undecided" in said and f"  {CODES}: 6 seeds of 4 rows, 21 min more" in said
    assert "would run: 12 train, 12 likelihood, 12 sample, 12 fidelity: 21 min" in said
    few = planned(*three, most=5)
    assert not few.given and few.left[CODES] == "its next look takes 6 seeds, and 5 are the most"
    none = planned(undecided(CODES, looks=0))  # finished, and nothing to test
    assert none.left == {CODES: "the interval covers no effect"} and not none.seeds


def test_of_one_seed_the_first_look_takes_three() -> None:
    """The default grid, which has one."""
    one = config.check(config.read(ROOT / "config.yaml"))
    found = planned(undecided(CODES, math.nan, looks=0), grid=one)
    assert set(map(tuple, found.seeds.values())) == {(1, 2)}


def test_an_unfinished_grid_is_finished_first() -> None:
    results: Any = Finished(STUDY, Layout(Path("results")))
    results.todo = {("train", "eps/linear/unconditional/seed0"): []}
    with pytest.raises(UserError, match=r"results: 1 jobs of this configuration are not finished; run snakemake first"):
        further.plan(results, [], 1.0, 24)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what would run and writes the overlay; a budget is stated, and none is a mistake."""
    study = str(ROOT / "workflow/config/study.yaml")
    monkeypatch.setattr(looks, "taken", lambda _: {2})
    monkeypatch.setattr("ddpm.cli.Results", lambda grid: Finished(grid, Layout(tmp_path)))
    monkeypatch.setattr(verdicts, "decide", lambda _: [undecided(CODES)])
    monkeypatch.chdir(ROOT)
    for budget in ([], ["--budget", "0"], ["--budget", "nan"]):
        assert main(["claims", "--decide", *budget, "--configfile", study]) == 2
        assert "--budget: " in capsys.readouterr().err
    assert main(["claims", "--budget", "0.5"]) == 2 and "it goes with --decide" in capsys.readouterr().err
    assert main(["claims", "--decide", "--budget", "0.5", "--configfile", study]) == 0
    (said, warned), path = capsys.readouterr(), tmp_path / "further-1.yaml"
    assert f" --configfile {study} {path}\n" in said and "21 min" in said and warned.startswith("seeds: 3, and claims")
    assert f"--budget 0.5 --most 24 --configfile {study} --configfile {path}" in said
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["grid"][: len(READ["grid"])] == READ["grid"]
    assert main(["claims", "--decide", "--budget", "0.01", "--configfile", study]) == 0
    assert capsys.readouterr().out.endswith("nothing to run\n") and len([*tmp_path.iterdir()]) == 1
