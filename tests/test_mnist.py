"""The MNIST overlay on the real files, end to end, with few steps."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import yaml
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


def test_the_sizes() -> None:
    """0.8 M parameters for two cores, about the thesis's 7.3 M (001, ch. 6) for a GPU; the poster's rows in both."""
    from ddpm import networks

    sizes = []
    for overlays in (["mnist"], ["mnist", "mnist-gpu"]):
        grid = config.check(config.read("config.yaml", *(f"workflow/config/{name}.yaml" for name in overlays)))
        spec = grid.job("train", "eps/linear/unconditional/seed0")[0]["network"]
        network = networks.build(spec, (1, 28, 28), 1, 0)
        sizes.append(sum(p.numel() for p in network.parameters()) / 1e6)
        rows = yaml.safe_load(Path("workflow/published/poster.yaml").read_text())["rows"]
        cells = [row["cell"] for row in rows]
        assert cells and all("/".join([*cell.values(), "seed0"]) in grid.runs for cell in cells)
    assert sizes == [pytest.approx(0.8, abs=0.05), pytest.approx(7.3, abs=0.5)]
