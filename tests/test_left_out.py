"""What a table leaves out: records of other jobs, code or inputs, damaged and missing ones, diverged seeds."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

from pathlib import Path

import pandas as pd
import pytest
import torch
from tabled import CELL, GRID, NETWORK, edit, finished, layout, row, untrained, write  # noqa: F401 - fixtures

from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES
from ddpm.tables.rows import collect

torch.set_num_threads(1)


def told(layout: Layout) -> dict[str, tuple[str, str]]:
    """Row → status and reason, where a result is left out."""
    found = collect(Results(GRID, layout)).astype(object)
    found = found.where(found.notna(), "")
    rows = found[~found["status"].isin(["ok", "n/a"])]
    assert (rows[["fid", "nll_bits_per_dim"]] == "").all(axis=None)
    return {"/".join([r.objective, r.schedule, r.guidance, r.sampler]): (r.status, r.reason) for r in rows.itertuples()}


ONE_OF_EACH = sorted({stage: (stage, name) for stage, name in GRID.jobs}.values())


@pytest.mark.parametrize(("stage", "name"), ONE_OF_EACH)
def test_a_record_of_another_configuration_is_left_out(layout: Layout, stage: str, name: str) -> None:
    """The rows that it belongs to say which key differs, those that follow from it what they follow from."""
    key = "data" if stage == "data" else "threads"
    edit(layout.record(stage, name), lambda record: record["job"].update({key: 7}))
    rows = told(layout)
    if stage in ("data", "classifier"):
        assert len(rows) == 9 and all(stage in reason for _, reason in rows.values())
    elif name == "class-histogram":
        assert rows == {"class-histogram///": ("missing", "fidelity: threads: 7 → 1")}
    else:
        cell = {"score": "score/cosine/cfg-w1/ddim", "learned": "learned/linear/none/ancestral"}[name.split("/")[0]]
        assert rows == {cell: ("stale", f"1 of 2 seeds; {stage}: threads: 7 → 1")}


@pytest.mark.parametrize(("stage", "name"), [job for job in ONE_OF_EACH if "/" in job[1]])
def test_a_record_of_other_code_is_left_out(layout: Layout, stage: str, name: str) -> None:
    """Which code is not known here, only that it is another."""
    edit(layout.record(stage, name), lambda record: record.update(code="0" * 16))
    (found,) = told(layout).values()
    assert found == ("stale", f"1 of 2 seeds; {stage}: code: {'0' * 16} → {GRID.job(stage, name)[1]}")


def test_results_of_other_weights_are_left_out(layout: Layout) -> None:
    """A network trained anew: what was sampled and measured with the old weights is no result of the new ones."""
    network = f"{NETWORK}/seed0"
    edit(layout.record("train", network), lambda record: record["outputs"].update({"weights.safetensors": "0" * 64}))
    why = ("stale", "1 of 2 seeds; likelihood: made from other weights than lies there now")
    assert told(layout) == {CELL: why, "eps/linear/none/ancestral": why}
    results = Results(GRID, layout)
    assert [str(r) for r in results.todo["likelihood", network]] == ["made from other weights than lies there now"]
    assert [str(r) for r in results.todo["fidelity", f"{CELL}/seed0"]] == [f"follows from sample {CELL}/seed0"]


@pytest.mark.parametrize("damage", ["torn", "format", "edited", "missing"])
def test_a_record_that_cannot_be_read_is_left_out(layout: Layout, damage: str) -> None:
    """The row says what is wrong with it."""
    path = layout.record("fidelity", f"{CELL}/seed1")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(content[:100])
    elif damage == "format":
        edit(path, lambda record: record.update(format=99))
    else:
        path.write_bytes(content.replace(b'"fid": ', b'"fid": 1'))
    status, reason = told(layout)[CELL]
    assert status == ("missing" if damage == "missing" else "stale")
    said = {"torn": "not valid", "format": "format 99", "edited": "edited", "missing": "missing"}[damage]
    assert reason.startswith("1 of 2 seeds; fidelity: ") and said in reason


def test_a_table_says_how_many_cells_it_holds(layout: Layout) -> None:
    """Its heading, and its record, which then asks for another run."""
    write(layout)
    results = Results(GRID, layout)
    assert set(results.todo) == {("figures", ""), ("page", "")}
    assert "# digits: 4 of 4 cells" in (layout.root / "table.md").read_text()
    layout.record("fidelity", f"{CELL}/seed1").unlink()
    write(layout)
    assert "# digits: 3 of 4 cells" in (layout.root / "table.md").read_text()
    found = records.read_record(layout.record("table"))["result"]
    assert found == {"cells": 3, "of": 4, "missing": 1}
    results = Results(GRID, layout)
    assert set(results.todo) == {("fidelity", f"{CELL}/seed1"), *((name, "") for name in AGGREGATES)}


def test_a_missing_seed_makes_the_row_missing(layout: Layout) -> None:
    """One of two seeds is no mean: the row says how many are missing, the others keep their numbers."""
    layout.record("fidelity", f"{CELL}/seed1").unlink()
    found = collect(Results(GRID, layout))
    spoilt = row(found, *CELL.split("/"))
    assert spoilt["status"] == "missing" and "1 of 2" in spoilt["reason"]
    assert pd.isna(spoilt["fid"])
    assert row(found, "eps", "linear", "none", "ancestral")["status"] == "ok"


def test_an_empty_folder_gives_a_table_of_missing_rows(tmp_path: Path) -> None:
    """Nothing was run: every row stands there as missing, but for those that never will be."""
    found = collect(Results(GRID, Layout(tmp_path)))
    assert found["status"].tolist() == ["missing"] * 7 + ["n/a"] + ["missing"] * 2
    assert found["fid"].isna().all()


def test_a_diverged_seed_makes_the_row_diverged(layout: Layout) -> None:
    """The row says which seed and where; a diverged seed is not averaged away."""
    network, cell = f"{NETWORK}/seed1", f"{CELL}/seed1"
    edit(layout.record("train", network), lambda r: (r.update(status="diverged"), r["result"].update(steps=3)))
    for path in (layout.record("sample", cell), layout.record("fidelity", cell)):
        edit(path, lambda r: r.update(status="diverged"))
    found = row(collect(Results(GRID, layout)), *CELL.split("/"))
    assert found["status"] == "diverged"
    assert "1 of 2" in found["reason"] and "seed 1" in found["reason"] and "step 3" in found["reason"]
    assert pd.isna(found["fid"]) and pd.isna(found["nll_bits_per_dim"])
