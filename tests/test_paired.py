"""Differences between networks in bits/dim: which are taken, their values and errors, and where they are read."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.tables import paired

ROOT = Path(__file__).parent.parent
SEEDS, OBJECTIVES, IMAGES = (0, 1), ("eps", "x0", "learned"), 10


def configured() -> Grid:
    """Two seeds of three objectives, each measured with both likelihoods, in seconds."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    axes = {"schedule": ["linear"], "guidance": ["none"], "sampler": ["ancestral"]}
    read["grid"] = [{"objective": list(OBJECTIVES)} | axes]
    small = {
        "seeds": list(SEEDS),
        "training": {"steps": 6, "batch": 16, "warmup": 2},
        "likelihood": {"images": IMAGES, "times": 5},
        "ode_likelihood": {"images": 4, "rtol": 1e-2, "atol": 1e-2},
    }
    return config.check(config.merge(read, small))


GRID = configured()


def name(objective: str, seed: int) -> str:
    return f"{objective}/linear/unconditional/seed{seed}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Networks and their likelihoods; read only."""
    layout = Layout(tmp_path_factory.mktemp("paired"))
    execute("data", *GRID.job("data"), layout)
    for network in GRID.networks:
        execute("train", *GRID.job("train", network), layout)
        execute("likelihood", *GRID.job("likelihood", network), layout)
        execute("ode_likelihood", *GRID.job("ode_likelihood", network), layout)
    return layout


@pytest.fixture
def layout(finished: Layout, tmp_path: Path) -> Layout:
    """A copy of it that a test may spoil."""
    shutil.copytree(finished.root, tmp_path / "results")
    return Layout(tmp_path / "results")


def bits(layout: Layout, stage: str, objective: str, seed: int) -> np.ndarray:
    """Every image's bits/dim, read without pandas' index."""
    lines = layout.output(stage, name(objective, seed), "images").read_text(encoding="utf-8").splitlines()
    at = lines[0].split(",").index("bits_per_dim")
    return np.array([float(line.split(",")[at]) for line in lines[1:]])


def best(layout: Layout, stage: str, objectives: tuple[str, ...] = OBJECTIVES) -> str:
    """The objective whose networks have the lowest mean."""
    return min(objectives, key=lambda objective: sum(bits(layout, stage, objective, s).mean() for s in SEEDS))


def test_values_and_errors(finished: Layout) -> None:
    """Against the best objective, for both measures: the mean over seeds and images, and both spreads."""
    found = paired.differences(Results(GRID, finished))
    assert list(found.columns) == paired.COLUMNS and len(found) == 4
    measures = {"likelihood": ("nll_bits_per_dim", IMAGES), "ode_likelihood": ("nll_ode_bits_per_dim", 4)}
    for stage, (measure, images) in measures.items():
        least = best(finished, stage)
        for objective in set(OBJECTIVES) - {least}:
            (row,) = found[(found["measure"] == measure) & (found["objective"] == objective)].to_dict("records")
            d = np.array([bits(finished, stage, objective, s) - bits(finished, stage, least, s) for s in SEEDS])
            assert d.shape == (2, images)
            assert (row["schedule"], row["against"]) == ("linear", f"{least}/linear") and row["difference"] > 0
            assert (row["seeds"], row["images"]) == (2, images)
            assert row["difference"] == pytest.approx(d.mean(), rel=1e-9)
            assert row["standard_error"] == pytest.approx(d.mean(0).std(ddof=1) / math.sqrt(images), rel=1e-9)
            assert row["std"] == pytest.approx(abs(d[0].mean() - d[1].mean()) / math.sqrt(2), rel=1e-9)


def test_they_are_differences_of_the_table_s_numbers(finished: Layout) -> None:
    """The mean of an objective's records minus the mean of the best one's."""
    found = paired.differences(Results(GRID, finished)).iloc[0]

    def mean(objective: str) -> float:
        found = [records.read_record(finished.record("likelihood", name(objective, s))) for s in SEEDS]
        return sum(r["result"]["bound_bits_per_dim"] for r in found) / 2

    least = best(finished, "likelihood")
    assert found["difference"] == pytest.approx(mean(found["objective"]) - mean(least), rel=1e-6)


@pytest.mark.parametrize("spoil", ["missing", "diverged", "edited"])
def test_what_is_not_there_is_left_out(layout: Layout, spoil: str) -> None:
    """One seed of the best objective is missing, diverged or edited: the next best stands in for it, and it says so."""
    least = best(layout, "likelihood")
    path = layout.record("likelihood", name(least, 1))
    if spoil == "missing":
        path.unlink()
    elif spoil == "edited":
        layout.output("likelihood", name(least, 1), "images").write_text(
            "image,bits_per_dim\n0,0.0\n", encoding="utf-8"
        )
    else:
        weights = {k: v * torch.nan for k, v in records.read_tensors(layout.output("train", name(least, 1)))[0].items()}
        records.write_tensors(layout.output("train", name(least, 1)), weights)
        execute("likelihood", *GRID.job("likelihood", name(least, 1)), layout)
        assert records.read_record(path)["status"] == "diverged"
        assert len(bits(layout, "likelihood", least, 1)) == IMAGES
    found = paired.differences(Results(GRID, layout))
    bound = found[found["measure"] == "nll_bits_per_dim"]
    left = tuple(objective for objective in OBJECTIVES if objective != least)
    second = best(layout, "likelihood", left)
    (last,) = set(left) - {second}
    assert bound[["objective", "against"]].values.tolist() == [[last, f"{second}/linear"]]


def test_where_they_are_read(finished: Layout) -> None:
    """A section of table.md; none where there is nothing to compare, and no column without a value."""
    found = paired.differences(Results(GRID, finished))
    text = paired.text(found)
    assert "## Differences in bits/dim" in text and text.count("/linear ") == 4
    assert text.count(f"| {best(finished, 'likelihood')}/linear ") >= 2
    assert f"{found['difference'][0]:.4f}" in text and f"{found['standard_error'][0]:.4f}" in text
    assert paired.text(found.iloc[:0]) == ""
    assert "std" not in paired.text(found.assign(std=math.nan)).split("\n\n")[-1]
