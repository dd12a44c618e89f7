"""Sampling seeds beside training seeds: other noise of one network, averaged within it, and both spreads stated."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from project import ROOT
from tabled import untrained  # noqa: F401 - a fixture

from ddpm import spot_checks
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stages import AGGREGATES
from ddpm.tables import markdown, paired, verdicts
from ddpm.tables.rows import collect

torch.set_num_threads(1)
CELL = "score/cosine/cfg-w1/ddim"
NETWORK = "score/cosine/conditional/seed0"


def configured(**sampling: int) -> Grid:
    """Two seeds of two networks, one of them given labels, with two samplers."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    read["grid"] = [
        {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]},
        {"objective": ["score"], "schedule": ["cosine"], "guidance": ["cfg-w1"], "sampler": ["ddim", "ancestral"]},
    ]
    del read["sampling"]["seeds"]
    small = {
        "seeds": [0, 1],
        "training": {"steps": 6, "batch": 16, "warmup": 2},
        "sampling": {"images": 40, "batch": 24} | sampling,
        "classifier": {"width": 4, "features": 8, "epochs": 1},
        "likelihood": {"images": 4, "times": 3},
        "fidelity": {"metrics": ["fid"], "paired": True},
    }
    return config.check(config.merge(read, small))


GRID = configured(seeds=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A complete results folder."""
    layout = Layout(tmp_path_factory.mktemp("sampling"))
    for stage, name in GRID.jobs:
        execute(stage, *GRID.job(stage, name), layout)
    return layout


def fids(layout: Layout, cell: str) -> np.ndarray:
    """FID by training seed and sampling seed."""
    names = [[f"{cell}/seed{s}{f'-sampling{r}' if r else ''}" for r in range(3)] for s in (0, 1)]
    return np.array(
        [[records.read_record(layout.record("fidelity", n))["result"]["fid"] for n in row] for row in names]
    )


def test_one_sampling_seed_changes_no_job() -> None:
    """Without the key, with 1, and of the first of three: the same names, texts, code and places."""
    without, one = configured(), configured(seeds=1)
    assert without.jobs == one.jobs and set(without.jobs) < set(GRID.jobs)
    kept = [job for job in without.jobs if job[0] != "paired"]
    assert all(without.job(*job) == one.job(*job) == GRID.job(*job) for job in kept)
    assert without.job("table") != GRID.job("table")
    more = {name for stage, name in GRID.jobs if stage == "sample"} - set(without.runs)
    assert more == {f"{cell}-sampling{r}" for cell in without.runs for r in (1, 2)}
    assert len(GRID.networks) == len(without.networks)
    assert GRID.names["paired"] == [f"score/cosine/conditional/seed{seed}" for seed in (0, 1)]  # of several rows


def test_sets_differ_in_noise_and_order_of_labels_alone(finished: Layout) -> None:
    """Of one network: other images, as many of each label in another order; cells of the same set share labels."""

    def read(cell: str) -> dict[str, torch.Tensor]:
        return records.read_tensors(finished.output("sample", cell))[0]

    first, second, third = (read(f"{CELL}/seed0{end}") for end in ("", "-sampling1", "-sampling2"))
    for one, other in ((first, second), (second, third), (first, third)):
        assert not torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["labels"].bincount(), other["labels"].bincount())
        assert not torch.equal(one["images"], other["images"])
    beside = read("score/cosine/cfg-w1/ancestral/seed0-sampling1")
    assert torch.equal(beside["labels"], second["labels"])
    job = records.read_record(finished.record("sample", f"{CELL}/seed0-sampling1"))["job"]
    assert (job["network"], job["sampling_seed"]) == (NETWORK, 1)


def test_verify_draws_them_again(finished: Layout, tmp_path: Path) -> None:
    """By the noise of their own seed: as those of the first they would be wrong; errors of differences come out too."""
    results = Results(GRID, finished)
    assert set(results.todo) == {(name, "") for name in AGGREGATES}
    for end in ("", "-sampling1"):
        assert list(spot_checks.redrawn(results, f"{CELL}/seed0{end}", 0)) == []
    assert list(spot_checks.recomputed(results, "paired", NETWORK, Layout(tmp_path / "results"))) == []
    edited = results.known("paired", NETWORK)["result"]["standard_errors"]["fid"][f"{CELL}/seed0"]
    edited[f"{CELL}/seed0-sampling1"] *= 1.01
    (found,) = spot_checks.recomputed(results, "paired", NETWORK, Layout(tmp_path / "again"))
    assert "standard_errors" in found.text


def test_rows_average_within_training_seeds(finished: Layout, tmp_path: Path) -> None:
    """Mean of means, their spread over two training seeds, the spread within one, and an interval of all six sets."""
    found, values = collect(Results(GRID, finished)), fids(finished, CELL)
    (row,) = found[(found["objective"] == "score") & (found["sampler"] == "ddim")].to_dict("records")
    assert (row["seeds"], row["sampling_seeds"], row["status"]) == (2, 3, "ok")
    assert row["fid"] == pytest.approx(values.mean(), rel=1e-12)
    assert row["fid_std"] == pytest.approx(values.mean(1).std(ddof=1), rel=1e-9)
    assert row["fid_sampling_std"] == pytest.approx(values.var(1, ddof=1).mean() ** 0.5, rel=1e-9)
    lows = [
        records.read_record(finished.record("fidelity", name))["result"]["fid_low"]
        for name, cell in GRID.runs.items()
        if cell.row[:4] == ("score", "cosine", "cfg-w1", "ddim")
    ]
    away = math.hypot(*(values.ravel() - lows)) / 6
    assert row["fid_low"] == pytest.approx(values.mean() - away, rel=1e-9)
    text = markdown.reading(found, GRID)
    assert "| sampling_seeds |" in text and "| fid_sampling_std |" in text
    alone = collect(Results(configured(), finished))
    assert not [column for column in alone if "sampling" in column]
    of_first = alone[(alone["objective"] == "score") & (alone["sampler"] == "ddim")]
    assert of_first["fid"].item() == pytest.approx(values[:, 0].mean(), rel=1e-12)


def test_claims_and_differences_take_training_seeds_as_their_unit(finished: Layout) -> None:
    """A number per training seed, the mean over its sets, once all of them are there."""
    results, values = Results(GRID, finished), fids(finished, CELL)
    row = ("score", "cosine", "cfg-w1", "ddim", "mlp")
    assert verdicts.measured(results, "fid")[row] == {s: pytest.approx(values[s].mean(), rel=1e-12) for s in (0, 1)}
    (pair,) = (p for p in paired.of_cells(results) if p["measure"] == "fid")
    apart = values - fids(finished, "score/cosine/cfg-w1/ancestral")
    assert pair["seeds"] == 2 and abs(pair["difference"]) == pytest.approx(abs(apart.mean()), rel=1e-9)
    assert pair["std"] == pytest.approx(apart.mean(1).std(ddof=1), rel=1e-9)
    results.todo["fidelity", f"{CELL}/seed1-sampling2"] = []
    assert list(verdicts.measured(results, "fid")[row]) == [0]
