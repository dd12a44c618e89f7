"""Differences in FID between cells of one network: their errors against simulated sets, and where they are read."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import randn
from test_winners import rows

from ddpm.datasets import dataset as data
from ddpm.metrics.distances import statistics
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.fid import Fid, FidBinarized
from ddpm.metrics.intervals import influences, variance
from ddpm.metrics.toplines import Distance
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.stages.paired import standard_errors
from ddpm.tables import paired
from ddpm.tables.winners import winners

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
NETWORK = "eps/linear/unconditional"

# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0.9, 0.0])
def test_intervals_hold_the_difference(shared: float) -> None:
    """Of 300 pairs of sets of 200 samples that share most of their noise, 95 % have the mean difference in their
    interval, within chance, where that of independent sets is more than twice as wide; without shared noise both agree.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(200, 5, generator=generator, dtype=torch.float64)

    real, found = statistics(draw()), []
    distance = Distance(real)
    for _ in range(300):
        common = draw()
        sets = [shared**0.5 * common + (1 - shared) ** 0.5 * draw() for _ in range(2)]
        pair = {"a": 1.3 * sets[0] + 0.4, "b": 1.2 * sets[1] + 0.5}
        fid = [distance(x.mean(0), x.T.cov()) for x in pair.values()]
        h = {name: influences(x, real) for name, x in pair.items()}
        (error,) = standard_errors(h, {"a": None, "b": None})["a"].values()
        found.append((fid[0] - fid[1], error, math.hypot(*(variance(one) ** 0.5 for one in h.values()))))
    difference, error, apart = np.array(found).T
    assert 0.92 < (abs(difference - difference.mean()) < 1.96 * error).mean() < 0.98
    assert error.mean() == pytest.approx(difference.std(ddof=1), rel=0.12)
    ratio = apart.mean() / error.mean()
    assert ratio > 2 if shared else ratio == pytest.approx(1, rel=0.05)


def test_errors_are_of_differences_within_classes() -> None:
    """sd of h_a − h_b over √N, and within the classes that either cell is given."""
    a, b, group = randn(0, 12).double(), randn(1, 12).double(), torch.arange(12) % 3
    plain = standard_errors({"a": a, "b": b}, {"a": None, "b": None})
    assert plain == {"a": {"b": pytest.approx(float((a - b).std()) / 12**0.5, rel=1e-12)}, "b": {}}
    within = sum(float((a - b)[group == c].var()) * 4 for c in range(3)) ** 0.5 / 12
    for labels in ({"a": group, "b": None}, {"a": None, "b": group}, {"a": group, "b": group}):
        assert standard_errors({"a": a, "b": b}, labels)["a"]["b"] == pytest.approx(within, rel=1e-12)


# ---- a grid -----------------------------------------------------------------------------------------------


def configured(**fidelity: object) -> Grid:
    """Two seeds of one network with two samplers, and one with a single cell."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    axes = {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"]}
    read["grid"] = [axes | {"sampler": ["ddim", "ancestral"]}, axes | {"objective": ["x0"], "sampler": ["ddim"]}]
    small = {
        "seeds": [0, 1],
        "training": {"steps": 6, "batch": 16, "warmup": 2},
        "sampling": {"images": 40, "batch": 40},
        "classifier": {"width": 4, "features": 8, "epochs": 1},
        "fidelity": {"metrics": ["fid", "fid_binarized"]} | fidelity,
    }
    return config.check(config.merge(read, small))


GRID = configured(paired=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """All that differences in FID read."""
    layout = Layout(tmp_path_factory.mktemp("paired"))
    for stage, name in GRID.jobs:
        if stage != "likelihood" and not name.startswith("x0"):
            execute(stage, *GRID.job(stage, name), layout)
    return layout


def test_only_where_it_is_asked_for() -> None:
    """One job per network of several cells; asking changes no other job, and no cell lacks it."""
    assert GRID.names["paired"] == [f"{NETWORK}/seed0", f"{NETWORK}/seed1"]
    without = configured()
    assert without.names["paired"] == [] == configured(paired=False).names["paired"]
    assert [job for job in GRID.jobs if job[0] != "paired"] == without.jobs
    assert all(GRID.job(*job) == without.job(*job) for job in without.jobs)
    assert all(GRID.row(cell) == without.row(cell) for cell in GRID.runs.values())
    assert Grid(GRID.job("figures")[0]["config"]).names["paired"] == []  # which know nothing of fidelity


def test_values_and_errors(finished: Layout) -> None:
    """The difference of the records' FIDs, and the error of influences that are computed here."""
    found = pd.DataFrame(paired.of_cells(Results(GRID, finished))).set_index("measure")
    assert list(found.index) == ["fid", "fid_binarized"] and (found["images"] == 40).all()
    spec = {"extractor": "classifier", "weights": ""}
    measure = Evaluator(data.read(finished.output("data")), spec, finished.output("classifier"))
    for name, metric in (("fid", Fid), ("fid_binarized", FidBinarized)):
        ends, variances = [], []
        for seed in (0, 1):
            cells = [f"eps/linear/none/{sampler}/seed{seed}" for sampler in ("ddim", "ancestral")]
            h, fid = [], []
            for cell in cells:
                samples = Samples(records.read_tensors(finished.output("sample", cell))[0]["images"])
                features = measure.sample_features(samples, metric.binarized)
                h.append(influences(features, measure.real_statistics("test", metric.binarized)))
                fid.append(records.read_record(finished.record("fidelity", cell))["result"][name])
            ends.append(fid[0] - fid[1])
            variances.append(float((h[0] - h[1]).var()) / 40)
        sign = 1 if np.mean(ends) > 0 else -1
        row = found.loc[name]
        assert (row["sampler"], row["against"]) == (("ddim", "none/ancestral"), ("ancestral", "none/ddim"))[sign < 0]
        assert row["difference"] == pytest.approx(sign * np.mean(ends), rel=1e-9) and row["seeds"] == 2
        assert row["standard_error"] == pytest.approx(sum(variances) ** 0.5 / 2, rel=1e-6)
        assert row["std"] == pytest.approx(abs(ends[0] - ends[1]) / 2**0.5, rel=1e-9)


def test_sections(finished: Layout) -> None:
    """FID has one of its own in table.md, with guidance and sampler; nothing where nothing was measured."""
    results = Results(GRID, finished)
    text = paired.text(paired.differences(results))
    assert "## Differences in FID" in text and "bits/dim" not in text and text.count("| none/") == 2
    results.todo["paired", f"{NETWORK}/seed1"] = []
    one = pd.DataFrame(paired.of_cells(results))
    assert one["seeds"].tolist() == [1, 1] and one["std"].isna().all()
    assert paired.of_cells(Results(configured(), finished)) == []


# ---- bold -------------------------------------------------------------------------------------------------


def test_winners_of_one_network_are_compared_image_by_image() -> None:
    """A difference that both intervals would hide is seen, and one that they would show may be chance; rows of other
    networks are compared as before."""
    table = rows((1.0, 0.5), (1.3, 0.5), (9.0, 0.5))
    axes = ["objective", "schedule", "guidance", "sampler", "network"]
    table[axes] = [[o, "linear", "none", s, "unet"] for o, s in (("eps", "a"), ("eps", "b"), ("x0", "a"))]

    def bold(difference: float, error: float, against: str = "none/a") -> list[int]:
        pair = dict(zip(axes, table.loc[1, axes], strict=True)) | {"measure": "fid", "against": against, "seeds": 1}
        pairs = pd.DataFrame([pair | {"difference": difference, "standard_error": error}], columns=paired.COLUMNS)
        return winners(table, pairs, ["fid"], pd.Series("a", table.index))["fid"]

    assert bold(0.3, 0.1) == [0] and bold(0.3, 0.2) == []
    assert bold(0.3, 0.1, against="none/b") == []  # another pair says nothing of this one
    table.loc[1, ["fid", "fid_low", "fid_high"]] = 5.0, 4.5, 5.5
    assert bold(4.0, 3.0) == [] and bold(4.0, 0.1) == [0]
    table.loc[2, "fid"] = 1.1
    assert bold(4.0, 0.1) == []
