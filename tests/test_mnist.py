"""The MNIST overlay on the real files, end to end, with few steps."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from project import copy_project, snakemake_files

from ddpm.pipeline import config
from ddpm.pipeline.registry import known


@pytest.fixture(scope="module")
def mnist() -> str:
    """The folder that DDPM_DATA names; with DDPM_REQUIRE_DATA (as in CI) its absence is a failure."""
    folder = os.environ.get("DDPM_DATA")
    if not folder:
        message = "DDPM_DATA names no folder with MNIST/raw"
        if os.environ.get("DDPM_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def test_short_run(mnist: str, tmp_path: Path) -> None:
    """Data, classifier, training, sampling, FID and bits/dim on 28×28 images of 256 grey levels."""
    folder = copy_project(tmp_path)
    run = snakemake_files(folder, "workflow/config/mnist.yaml", "tests/tiny-mnist.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    results = folder / "results/tiny-mnist"
    table = pd.read_csv(results / "table.csv")
    assert list(table["status"]) == [*["ok"] * 5, "degenerate"]
    assert table["fid"].idxmin() == 0
    record = json.loads((results / "data/record.json").read_text())
    declared = known("dataset")["mnist"].attributes
    assert (declared["train"], declared["test"], declared["shape"]) == (60000, 10000, (1, 28, 28))
    assert (record["result"]["train"], record["result"]["test"]) == (60000, 10000)
    # Uniform grey levels, independent pixels, and pixels independent given the class.
    assert table.loc[[2, 3, 4], "nll_bits_per_dim"].tolist() == [8, 1.6888, 1.6037]
    # Hardly trained: far above the 1.1 of the poster, below the 8 bits of uniform grey levels.
    assert 1.5 < table.loc[5, "nll_bits_per_dim"] < 8


def test_full_size() -> None:
    """The overlay's network has about the thesis's 7.3 M parameters (001, chapter 6), the grid the poster's rows."""
    from ddpm import networks

    grid = config.check(config.read("config.yaml", "workflow/config/mnist.yaml"))
    spec = grid.job("train", "eps/linear/unconditional/seed0")[0]["network"]
    network = networks.build(spec, (1, 28, 28), 1, 0)
    assert 6.8e6 < sum(p.numel() for p in network.parameters()) < 7.8e6
    assert {c.objective for c in grid.runs.values()} >= {"x0", "eps", "score", "learned"}
