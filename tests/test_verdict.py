"""Samples that are none of the data: what is measured of them, and the status that their row has."""

import shutil
from pathlib import Path

import pytest
import torch
from tabled import GRID, edit, finished, row  # noqa: F401 - a fixture

from ddpm.pipeline import status, verdict
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.verdict import degenerate
from ddpm.stages.sample import reaches, variance
from ddpm.tables.rows import collect

FINE = {"reach": 1.0, "spread": 0.9}


def test_reach() -> None:
    """max_d |x_d − centre_d|/half-width_d of every image."""
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 6.0])
    x = torch.tensor([[0.5, 4.0], [0.0, 8.0], [-3.0, 3.0], [0.0, 0.0]])
    assert reaches(x, low, high).tolist() == pytest.approx([0.5, 2.0, 3.0, 2.0])
    # The largest float32 is far, and not infinitely far, which no record could hold.
    assert reaches(torch.full((1, 2), 3e38), low / 4, high / 4).isfinite().all()
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 1, 0] = -7.5
    assert reaches(images, torch.tensor(-1.0), torch.tensor(1.0)).tolist() == [0.0, 7.5, 0.0]


def test_variance() -> None:
    """E‖x − E x‖², about the mean image."""
    images = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 5.0]]], [[[4.0, 3.0]]]])
    assert variance(images) == pytest.approx(8 / 3 + 8 / 3)
    assert variance(images + 7) == pytest.approx(16 / 3) and variance(images[:1].expand(5, -1, -1, -1)) == 0


@pytest.mark.parametrize(
    ("sample", "ours", "noise", "reason"),
    [
        (FINE, {"fid": 0.4}, {"fid": 40.0}, ""),
        ({"reach": 10.0, "spread": 0.01}, {"fid": 19.5}, {"fid": 40.0}, ""),
        (
            {"reach": 1294.0, "spread": 99.0},
            {"fid": 1.0},
            {"fid": 40.0},
            "samples reach 1.29e+03 times as far as the data",
        ),
        ({"reach": 1.0, "spread": 0.0099}, {"fid": 1.0}, {"fid": 40.0}, "samples have 0.0099 of the data's variance"),
        (FINE, {"fid": 90.0}, {"fid": 40.0}, "samples are 1.5 times as far from the test split as noise is"),
        (FINE, {"fid": 19.7}, {"fid": 40.0}, "samples are 0.7 times as far from the test split as noise is"),
        # Of points the sliced Wasserstein distance, whatever their mean and covariance say.
        (FINE, {"fid": 0.1, "sliced_wasserstein": 0.71}, {"fid": 40.0, "sliced_wasserstein": 1.0}, "samples are 0.71"),
        (FINE, {"fid": 90.0, "sliced_wasserstein": 0.69}, {"fid": 40.0, "sliced_wasserstein": 1.0}, ""),
        (FINE, None, None, ""),
        ({"reach": 11.0}, None, None, "samples reach 11 times"),
    ],
)
def test_degenerate(sample: dict, ours: dict | None, noise: dict | None, reason: str) -> None:
    """Ten times the data's range, a hundredth of its variance, or 0.7 of the noise's distance."""
    found = degenerate(sample, ours, noise)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_the_row_and_the_cell_say_so(finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One seed is enough; the numbers stay, and the table counts the cell as finished."""
    monkeypatch.setattr(verdict, "NOISE", float("inf"))  # the networks are hardly trained
    shutil.copytree(finished.root, tmp_path / "results")
    layout = Layout(tmp_path / "results")
    spoilt = "eps/linear/none/ddim/seed1"
    edit(layout.record("sample", spoilt), lambda record: record["result"].update(reach=55.5))
    results = Results(GRID, layout)
    found = row(collect(results), "eps", "linear", "none", "ddim")
    assert found["status"] == "degenerate" and found["fid"] > 0
    assert found["reason"] == "1 of 2 seeds (seed 1: samples reach 55.5 times as far as the data)"
    assert row(collect(results), "eps", "linear", "none", "ancestral")["status"] == "ok"
    states = status.states(results)
    assert states[spoilt] == ("degenerate", "samples reach 55.5 times as far as the data")
    assert states["eps/linear/none/ddim/seed0"] == ("finished", "")
    monkeypatch.setattr(verdict, "NOISE", 0.7)
    found = row(collect(Results(GRID, layout)), "score", "cosine", "cfg-w1", "ddim")
    assert found["status"] == "degenerate" and "2 of 2 seeds (seed 0: samples are" in found["reason"]
