"""The estimate before the first run: near what the jobs take, of every job whose work is known, in few seconds."""

import time
from pathlib import Path

import pytest
import torch
from tabled import configured

from ddpm import estimate
from ddpm.cli import main
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)
BLOCKS = [
    {"objective": ["eps", "x0"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim", "ancestral"]},
    {"objective": ["score"], "schedule": ["cosine"], "guidance": ["cfg-w1"], "sampler": ["ddim", "ode-adaptive"]},
]


def grid(steps: int = 200, sampling: int = 40) -> Grid:
    """Five networks' and cells' worth of work, some seconds."""
    read = configured() | {
        "grid": BLOCKS,
        "seeds": [0],
        "network": {"method": "unet", "width": 8, "multipliers": [1, 2]},
    }
    read["samplers"] = read["samplers"] | {
        "ddim": {"method": "ddim", "steps": sampling},
        "ode-adaptive": {"method": "ode-adaptive"},
    }
    read["training"] = read["training"] | {"steps": steps}
    return config.check(read | {"device": "cpu", "likelihood": read["likelihood"] | {"images": 64, "times": 10}})


def test_the_estimate_is_near_what_jobs_take(tmp_path: Path) -> None:
    """Within a factor of 3, in time of the CPU, of training, of sampling, and of the bound."""
    whole, layout = grid(), Layout(tmp_path)
    found = estimate.Estimate(whole, whole.jobs)
    for stage in ("data", "train", "likelihood", "sample"):
        name = whole.names[stage][0]
        start = time.process_time()
        execute(stage, *whole.job(stage, name), layout)
        took = time.process_time() - start
        if stage != "data":
            assert took / 3 < found.seconds[stage, name] < took * 3, (stage, found.seconds[stage, name], took)
    assert 100 < found.memory < 10_000


def test_what_is_estimated_grows_with_the_work() -> None:
    """Nine or ten times the steps: much more time. Samplers that choose their steps are not timed."""
    less, more = (estimate.Estimate(grid(*sizes), grid(*sizes).jobs).seconds for sizes in ((200, 10), (2000, 90)))
    assert (
        less.keys()
        == more.keys()
        == {job for job in grid().jobs if job[0] in ("train", "likelihood", "sample")}
        - {("sample", "score/cosine/cfg-w1/ode-adaptive/seed0")}
    )
    for job in (("train", "eps/linear/unconditional/seed0"), ("sample", "score/cosine/cfg-w1/ddim/seed0")):
        assert 2 < more[job] / less[job] < 30


def test_jobs_of_one_kind_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """ε and x̂0 take the same network: 2 kinds of training, 1 of the bound, and 3 of sampling, each in two lengths and
    each stage once before."""
    ran = []
    monkeypatch.setattr(estimate, "execute", lambda stage, *_: ran.append(stage))
    estimate.Estimate(grid(), grid().jobs)
    assert {stage: ran.count(stage) for stage in ran} == {"train": 2 * 2 + 1, "likelihood": 2 + 1, "sample": 3 * 2 + 1}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside what would run; nothing of the grid's own is written."""
    monkeypatch.setattr("ddpm.cli._grid", lambda _: grid())
    monkeypatch.setattr(estimate.Estimate, "_timed", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    assert main(["status", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "estimated by a few steps on cpu: 10 s of computing" in said
    assert "not timed: 1 data, 1 classifier, 1 sample, " in said and not [*tmp_path.iterdir()]
