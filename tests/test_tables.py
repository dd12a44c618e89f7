"""Tables: the rows and numbers that the records hold, in order, and the files that are written."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import math
import statistics
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import torch
import yaml
from tabled import (  # noqa: F401 - fixtures
    CELL,
    GRID,
    NETWORK,
    ROOT,
    SEEDS,
    build,
    configured,
    edit,
    finished,
    layout,
    number,
    row,
    table,
    untrained,
    write,
)

from ddpm.guidance import Guidance
from ddpm.pipeline import config, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES
from ddpm.pipeline.validity import valid
from ddpm.tables import markdown, paired, verdicts
from ddpm.tables.columns import OURS
from ddpm.tables.rows import collect

torch.set_num_threads(1)


# ---- rows and numbers -------------------------------------------------------------------------------------


def test_rows_come_in_order(table: pd.DataFrame) -> None:
    """Real data first, in both ways, noise and the histograms, then the cells as configured, one row for all seeds."""
    axes = table[["objective", "schedule", "guidance", "sampler"]].fillna("").agg("/".join, axis=1).tolist()
    assert axes == [
        "real data///",
        "real data, classes by chance///",
        "noise///",
        "histogram///",
        "class-histogram///",
        "eps/linear/none/ancestral",
        "eps/linear/none/ddim",
        "learned/linear/none/ddim",
        "learned/linear/none/ancestral",
        "score/cosine/cfg-w1/ddim",
    ]
    assert table["status"].tolist() == ["ok"] * 7 + ["n/a", "ok", "ok"]
    assert set(table["dataset"]) == {"digits"}


def test_columns_are_those_of_the_design(table: pd.DataFrame) -> None:
    """The columns that others read, in this order."""
    axes = ["dataset", "objective", "schedule", "guidance", "sampler", "network"]
    spent = ["steps", "nfe", "seeds", "samples"]
    found = ["fid", "fid_std", "fid_binarized", "fid_binarized_std", "nll_bits_per_dim", "nll_std", "fid_over_topline"]
    assert list(table.columns) == OURS.all
    assert list(table.columns[:11]) == [*axes, *spent, "fid"]
    assert set(found) <= set(table.columns[10:-2])
    assert list(table.columns[-2:]) == ["status", "reason"]


@pytest.mark.parametrize(
    ("column", "spread", "stage", "key"),
    [
        ("fid", "fid_std", "fidelity", "fid"),
        ("fid_binarized", "fid_binarized_std", "fidelity", "fid_binarized"),
        ("nll_bits_per_dim", "nll_std", "likelihood", "bound_bits_per_dim"),
        ("nll_standard_error", None, "likelihood", "standard_error"),
    ],
)
def test_mean_and_spread_over_seeds(
    finished: Layout, table: pd.DataFrame, column: str, spread: str | None, stage: str, key: str
) -> None:
    """The mean of two seeds and their standard deviation with N − 1, never the best."""
    names = [f"{NETWORK if stage == 'likelihood' else CELL}/seed{s}" for s in SEEDS]
    values = [number(finished, stage, name, key) for name in names]
    assert values[0] != values[1]
    found = row(table, *CELL.split("/"))
    assert found[column] == pytest.approx(statistics.mean(values), rel=1e-12)
    assert spread is None or found[spread] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert found["seeds"] == 2


def test_one_seed_has_no_spread(finished: Layout) -> None:
    """The standard deviation of one number is empty, not 0."""
    grid = config.check(config.merge(configured(), {"seeds": [1]}))
    found = row(collect(Results(grid, finished)), *CELL.split("/"))
    assert found["fid"] == number(finished, "fidelity", f"{CELL}/seed1", "fid")
    assert pd.isna(found["fid_std"]) and found["seeds"] == 1 and found["status"] == "ok"


def test_fid_is_given_as_a_multiple_of_the_topline(finished: Layout, table: pd.DataFrame) -> None:
    """FID ÷ FID of real data whose classes come as the row's do, plain and binarized; the interval beside it."""
    kinds = ["stratified", *["by chance"] * 6, None, "by chance", "stratified"]
    assert [None if pd.isna(kind) else kind for kind in table["topline"]] == kinds
    baselines = {"stratified": "real", "by chance": "real-by-chance"}
    for column in ("fid", "fid_binarized"):
        for _, found in table[table["status"] == "ok"].iterrows():
            of = records.read_record(finished.record("fidelity", baselines[found["topline"]]))["result"]
            assert found[f"{column}_over_topline"] == pytest.approx(found[column] / of[column], rel=1e-12)
            assert found[f"{column}_topline"] == of[column]
            assert found[f"{column}_topline_low"] == of[f"{column}_low"] < of[column]
            assert found[f"{column}_topline_high"] == of[f"{column}_high"] > of[column]
        assert table.loc[:1, f"{column}_over_topline"].tolist() == [1, 1]
        assert table.loc[1, column] == number(finished, "fidelity", "real-by-chance", column) != table.loc[0, column]
    assert table.loc[2, "fid"] == number(finished, "fidelity", "noise", "fid")
    assert table.loc[2, "fid_over_topline"] > 1


def test_a_missing_topline_leaves_its_rows_without_a_ratio(layout: Layout) -> None:
    """Their own FID stays."""
    layout.record("fidelity", "real-by-chance").unlink()
    found = collect(Results(GRID, layout))
    for _, of in found[found["status"] == "ok"].iterrows():
        assert pd.notna(of["fid"]) and pd.isna(of["fid_over_topline"]) == (of["topline"] == "by chance")
    assert found.loc[1, "status"] == "missing"
    write(layout)
    assert "95 of 100 sets" in (layout.root / "table.md").read_text(encoding="utf-8")


def test_the_heading_says_by_what_rows_are_compared(layout: Layout) -> None:
    """The protocol, what the features are, what intervals leave out, and that one seed tells of no other network."""
    results = Results(GRID, layout)
    found = collect(results)
    of = records.read_record(layout.record("fidelity", "real"))["result"]
    said = f"classifier trained on the training split (hash `{of['extractor']}`), protocol {of['protocol']}."
    text = markdown.reading(found, GRID)
    assert said in text and "spread over seeds, `fid_std`, `fid_binarized_std`, holds it" in text
    assert "each has several training seeds." in text
    found["seeds"] = found["seeds"].where(found["seeds"].isna(), 1)
    text = markdown.reading(found, GRID)
    assert "of which one seed tells nothing" in text and "several training seeds (here none has)." in text


@pytest.mark.parametrize(
    ("method", "weight", "given"),
    [
        ("cfg", -1.0, False),
        ("cfg", 0.0, True),
        ("cfg", 1.0, True),
        ("classifier", 0.0, False),
        ("classifier", 1.0, True),
    ],
)
def test_which_cells_are_given_classes(method: str, weight: float, given: bool) -> None:
    """Those whose labels play a part: w = −1 of classifier-free guidance is the unconditional model, as is w = 0 of a
    classifier's. Planning says what the guidance itself does."""
    read = config.merge(configured(), {"guidances": {"cfg-w1": {"method": method, "weight": weight}}})
    grid = config.check(read)
    assert Guidance.make(grid.axis("guidance", "cfg-w1")).steers is given
    assert [grid.is_given_classes(c) for c in grid.runs.values() if c.guidance == "cfg-w1"] == [given, given]
    assert not any(grid.is_given_classes(c) for c in grid.runs.values() if c.guidance == "none")


def test_the_heading_says_what_one_means(layout: Layout) -> None:
    """Both toplines with their intervals, as FID and as ratio, and nothing else of them in the rows."""
    write(layout)
    text = (layout.root / "table.md").read_text(encoding="utf-8")
    for name, baseline in (("stratified", "real"), ("by chance", "real-by-chance")):
        of = records.read_record(layout.record("fidelity", baseline))["result"]
        line = next(line for line in text.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() == name)
        for column in ("fid", "fid_binarized"):
            mean, low, high = (of[column + end] for end in ("", "_low", "_high"))
            assert f"{mean:.3f} " in line and f"{low:.3f} to {high:.3f}" in line
            assert f"{low / mean:.2f} to {high / mean:.2f}" in line
    rows = next(line for line in text.splitlines() if line.startswith("| objective"))
    assert " topline " in rows and "fid_over_topline" in rows and "topline_low" not in rows


def test_a_pair_that_cannot_work_is_a_row_with_its_reason(table: pd.DataFrame) -> None:
    """n/a, why, and no number."""
    found = row(table, "learned", "linear", "none", "ddim")
    assert found["status"] == "n/a" and "variance" in found["reason"]
    assert found[["steps", "nfe", "samples", "fid", "fid_binarized", "nll_bits_per_dim"]].isna().all()


def test_costs_of_a_cell_are_counted(table: pd.DataFrame) -> None:
    """Steps, network evaluations (two per step under guidance), samples and images seen."""
    plain, guided = row(table, *CELL.split("/")), row(table, "score", "cosine", "cfg-w1", "ddim")
    assert (plain["steps"], plain["nfe"], plain["samples"], plain["images_seen"]) == (4, 4, 24, 96)
    assert (guided["steps"], guided["nfe"]) == (4, 8)
    assert table["samples"].dropna().unique().tolist() == [24]
    assert guided["parameters"] > plain["parameters"]  # its labels


def test_the_bound_belongs_to_the_network(table: pd.DataFrame) -> None:
    """All samplers of one network share it; a guided cell has none, but the share of labels that it hit."""
    one, other = (row(table, "eps", "linear", "none", s) for s in ("ancestral", "ddim"))
    assert one["nll_bits_per_dim"] == other["nll_bits_per_dim"] and one["nll_std"] == other["nll_std"]
    assert one["fid"] != other["fid"]
    guided = row(table, "score", "cosine", "cfg-w1", "ddim")
    assert pd.isna(guided["nll_bits_per_dim"]) and 0 <= guided["label_accuracy"] <= 1
    assert pd.isna(one["label_accuracy"])


def test_histograms_stand_beside_the_networks(finished: Layout, table: pd.DataFrame) -> None:
    """Exact bits/dim of noise and histograms, and how far above the first histogram every other row is."""
    assert table.loc[2, "nll_bits_per_dim"] == pytest.approx(math.log2(17), rel=1e-14)
    for place, name in ((3, "histogram"), (4, "class-histogram")):
        assert table.loc[place, "objective"] == name
        assert table.loc[place, "nll_bits_per_dim"] == number(finished, "fidelity", name, "bits_per_dim")
        assert table.loc[place, "nll_standard_error"] == number(finished, "fidelity", name, "standard_error") > 0
        assert table.loc[place, "fid"] == number(finished, "fidelity", name, "fid")
    expected = table["nll_bits_per_dim"] - table.loc[3, "nll_bits_per_dim"]
    assert table["nll_minus_histogram"].tolist() == pytest.approx(expected.tolist(), rel=1e-12, nan_ok=True)
    assert table["nll_minus_histogram"].notna().tolist() == [*[False] * 2, *[True] * 5, False, True, False]


def test_every_record_has_the_form_of_the_schema(finished: Layout) -> None:
    """All stages write records of the same form, for the job and the code of the configuration."""
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "record.schema.yaml").read_text(encoding="utf-8"))
    for stage, name in GRID.jobs:
        path = finished.record(stage, name)
        jsonschema.validate(records.read_record(path), schema)
        assert records.read_record(path)["stage"] == stage
        assert valid(path, *GRID.job(stage, name))


# ---- what is written --------------------------------------------------------------------------------------

FILES = ("table.csv", "table.md", "published.md", "claims.md", "claims.csv", "differences.csv", "costs.csv")


def test_writing_twice_gives_the_same_bytes(layout: Layout, table: pd.DataFrame) -> None:
    """The files hold nothing of the run, and the table's numbers are those that were collected."""
    write(layout)
    first = [(layout.root / name).read_bytes() for name in FILES]
    write(layout)
    assert [(layout.root / name).read_bytes() for name in FILES] == first
    assert all(first)
    read = pd.read_csv(layout.root / "table.csv", keep_default_na=False, na_values=[""])
    assert list(read.columns) == list(table.columns)
    assert read["status"].tolist() == table["status"].tolist()
    assert read["guidance"].tolist()[5] == "none"
    for column in ("fid", "fid_std", "nll_bits_per_dim"):
        assert read[column].tolist() == pytest.approx(table[column].round(4).tolist(), abs=1e-4, nan_ok=True)


def test_another_run_of_everything_gives_the_same_table(finished: Layout, layout: Layout, tmp_path: Path) -> None:
    """Same seed, same bytes, from the data to the table; only the costs differ."""
    again = build(tmp_path / "again")
    write(layout)
    write(again)
    for name in set(FILES) - {"costs.csv"}:
        assert (layout.root / name).read_bytes() == (again.root / name).read_bytes()
    for network in GRID.networks:
        assert finished.output("train", network).read_bytes() == again.output("train", network).read_bytes()
    for cell in GRID.runs:
        assert finished.output("sample", cell).read_bytes() == again.output("sample", cell).read_bytes()


def test_costs_stand_apart(layout: Layout) -> None:
    """costs.csv has one row per job with seconds and memory; the table has neither."""
    write(layout)
    costs = pd.read_csv(layout.root / "costs.csv", keep_default_na=False)
    assert sorted(zip(costs["stage"], costs["name"], strict=True)) == sorted(GRID.jobs)
    assert (costs["seconds"] >= 0).all() and (costs["peak_memory_mb"] > 10).all()
    assert not {"seconds", "peak_memory_mb", "host", "device"} & set(pd.read_csv(layout.root / "table.csv").columns)


def test_reading_says_which_networks_are_worse_than_a_histogram(layout: Layout) -> None:
    """Every network once, by its sign; what x0 pays for stands there only where it does."""

    def measured(**bounds: float) -> pd.DataFrame:
        for objective, value in bounds.items():
            for seed in SEEDS:
                path = layout.record("likelihood", f"{objective}/linear/unconditional/seed{seed}")
                edit(path, lambda record, value=value: record["result"].update(bound_bits_per_dim=value))
        return collect(Results(GRID, layout))

    best = markdown.against_histograms(measured(eps=5.0, learned=2.0), GRID)
    assert (
        "**Worse than `histogram`: `eps/linear` (+2.56); better than `class-histogram`: `learned/linear` (-0.44).**"
        in best
    )
    between = measured(eps=2.4, learned=2.4)
    assert "**Worse than `histogram`: none; better than `class-histogram`: none.**" in markdown.against_histograms(
        between, GRID
    )
    predicts = {
        name: config.check(config.merge(configured(), {"objectives": {name: {"target": "x0"}}}))
        for name in ("eps", "score")
    }
    worse = measured(eps=5.0)
    assert "puts out x0 itself" in markdown.against_histograms(worse, predicts["eps"])
    assert "puts out x0 itself" not in markdown.against_histograms(worse, predicts["score"])
    assert "puts out x0 itself" not in markdown.against_histograms(between, predicts["eps"])
    write(layout)
    text = (layout.root / "table.md").read_text(encoding="utf-8")
    assert markdown.against_histograms(worse, GRID) in text and "nll_minus_histogram" in text


def test_without_the_histogram_nothing_is_said_of_it(layout: Layout) -> None:
    """A missing baseline is a row that says so."""
    layout.record("fidelity", "histogram").unlink()
    found = collect(Results(GRID, layout))
    assert found["nll_minus_histogram"].isna().all() and markdown.against_histograms(found, GRID) == ""
    assert found.loc[3, "status"] == "missing"


def test_claims_read_every_seed_of_a_row(layout: Layout) -> None:
    """A row's number of each seed, as its own multiple of its kind's topline: none of one that diverged, and no seed
    that is not finished."""
    edit(layout.record("fidelity", f"{CELL}/seed1"), lambda record: record.update(status="diverged"))
    results, row = Results(GRID, layout), ("eps", "linear", "none", "ddim", "mlp")
    fid = number(layout, "fidelity", f"{CELL}/seed0", "fid")
    assert verdicts.measured(results, "fid")[row] == {0: fid, 1: pytest.approx(math.nan, nan_ok=True)}
    by_chance = number(layout, "fidelity", "real-by-chance", "fid")
    assert verdicts.measured(results, "fid_over_topline")[row][0] == pytest.approx(fid / by_chance, rel=1e-12)
    bound = number(layout, "likelihood", f"{NETWORK}/seed1", "bound_bits_per_dim")
    found = verdicts.measured(results, "nll_bits_per_dim")
    assert found[row][1] == bound and len(found[row]) == 2
    assert not any(guidance == "cfg-w1" for _, _, guidance, *_ in found)
    guided = verdicts.measured(results, "fid_over_topline")["score", "cosine", "cfg-w1", "ddim", "mlp"][0]
    ours = number(layout, "fidelity", "score/cosine/cfg-w1/ddim/seed0", "fid")
    assert guided == pytest.approx(ours / number(layout, "fidelity", "real", "fid"), rel=1e-12)
    layout.record("fidelity", f"{CELL}/seed1").unlink()
    assert verdicts.measured(Results(GRID, layout), "fid")[row] == {0: fid}


def test_rows_may_have_further_seeds(layout: Layout) -> None:
    """Of one seed that all cells have, `ddim` of eps has another: table.md says how many each row has, differences in
    bits/dim are over the seed that both networks have."""
    more = configured() | {"seeds": [0]}
    more["grid"] = [*more["grid"], more["grid"][0] | {"sampler": ["ddim"], "further_seeds": [1]}]
    grid = config.check(more)
    results = Results(grid, layout)
    assert set(results.todo) == {(name, "") for name in AGGREGATES}
    found = collect(results)
    assert row(found, *CELL.split("/"))["seeds"] == 2 and row(found, "eps", "linear", "none", "ancestral")["seeds"] == 1
    assert row(found, *CELL.split("/"))["fid_std"] > 0
    assert "| seeds |" in markdown.reading(found, grid) and "| seeds |" not in markdown.reading(
        collect(Results(GRID, layout)), GRID
    )
    pairs = paired.differences(results)
    assert pairs["seeds"].tolist() == [1] and pairs["difference"].notna().all()


# ---- Markdown ---------------------------------------------------------------------------------------------


def test_markdown_escapes_pipes() -> None:
    """A pipe in a cell stays in its cell; numbers are right-aligned and rounded, gaps empty."""
    frame = pd.DataFrame({"row": ["s(x|y)", "b"], "fid": [1.2345, None], "n": pd.array([3, None], dtype="Int64")})
    lines = markdown.markdown(frame).splitlines()
    cells = [[cell.strip() for cell in line.replace("\\|", "@").strip("|").split("|")] for line in lines]
    assert cells == [["row", "fid", "n"], [":--", "--:", "--:"], ["s(x@y)", "1.23", "3"], ["b", "", ""]]
    assert len({len(line) for line in lines}) == 1
