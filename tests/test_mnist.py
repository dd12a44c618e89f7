"""The MNIST overlay on the real files, end to end, with few steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from project import ROOT, copy_project, snakemake_files
from torch.utils.flop_counter import FlopCounterMode

from ddpm import networks
from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.guidance import Guidance
from ddpm.networks.network import Network
from ddpm.objectives import Objective
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.registry import known
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.stages.sample import chain
from ddpm.tables import printed, selectors


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


@pytest.fixture(scope="module")
def finished(mnist: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which mnist.yaml has run, with few steps."""
    folder = copy_project(tmp_path_factory.mktemp("mnist"))
    run = snakemake_files(folder, "workflow/config/mnist.yaml", "tests/tiny-mnist.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_short_run(finished: Path) -> None:
    """Data, classifier, training, sampling, FID and bits/dim on 28×28 images of 256 grey levels."""
    results = finished / "results/tiny-mnist"
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


def test_the_script_for_a_gpu(finished: Path) -> None:
    """It makes the table of mnist-gpu.yaml, here with few steps on a CPU, then speed.json; run again after it was
    killed, it does what is left and nothing else."""
    shutil.copytree(ROOT / "benchmarks", finished / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    speed, results = finished / "results/speed/cpu.json", finished / "results/tiny-mnist"
    small = "--resolutions 8 --repeats 1 --turn 1 --batch 4 --steps 2 --no-memory"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    about = {"PATH": path, "PYTHONPATH": str(finished), "CORES": "2", "DEVICE": "cpu", "SPEED": small}

    def script() -> str:
        (finished / ".snakemake/locks").mkdir(parents=True, exist_ok=True)  # as a killed Snakemake leaves it
        (finished / ".snakemake/locks/0.output.lock").write_text("results/tiny-mnist/table.csv\n")
        run = ["sh", "benchmarks/gpu.sh", "tests/tiny-mnist.yaml"]
        found = subprocess.run(run, cwd=finished, env=os.environ | about, capture_output=True, text=True, timeout=600)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout + found.stderr

    data = (results / "data/record.json").read_bytes()
    script()
    job = json.loads((results / "networks/learned/linear/unconditional/seed0/record.json").read_text())["job"]
    assert job["network"]["multipliers"] == [1, 2, 3] and job["training"]["learning_rate"] == 1e-3
    assert (results / "data/record.json").read_bytes() == data
    table = pd.read_csv(results / "table.csv")
    assert len(table) == 6 and 1.5 < table.loc[5, "nll_bits_per_dim"] < 8
    assert {row["task"] for row in json.loads(speed.read_text())["rows"]} >= {"training", "ancestral", "likelihood"}
    speed.write_text("kept")
    assert "Nothing to be done" in script() and speed.read_text() == "kept"


def configured(*overlays: str) -> Grid:
    return config.check(config.read("config.yaml", *(f"workflow/config/{name}.yaml" for name in overlays)))


def test_the_sizes() -> None:
    """0.8 M parameters for two cores, about the thesis's 7.3 M (001, ch. 6) for a GPU; the poster's rows in both."""
    sizes = []
    for overlays in (["mnist"], ["mnist", "mnist-gpu"]):
        grid = configured(*overlays)
        spec = grid.job("train", "eps/linear/unconditional/seed0")[0]["network"]
        network = networks.build(spec, (1, 28, 28), 1, 0)
        sizes.append(sum(p.numel() for p in network.parameters()) / 1e6)
        there = {cell.row: selectors.values_of(cell.row, grid) for cell in grid.runs.values()}
        rows = printed.read_all()["poster"]["rows"]
        assert rows and all(len(selectors.fitting(there, row["cell"])) == 1 for row in rows)
    assert sizes == [pytest.approx(0.8, abs=0.05), pytest.approx(7.3, abs=0.5)]


class Nothing(Network):
    """A network that costs nothing, so that its evaluations can be counted."""

    classes = 10

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros_like(x)


@cache
def evaluations(guidance: str, sampler: str) -> int:
    """How often this guidance and sampler, as JSON, evaluate the network for one image."""
    objective, schedule = Objective.make({"target": "eps"}), Schedule.make({"method": "linear", "steps": 1000})
    guided = Guidance.make(json.loads(guidance))(Denoiser(Nothing(), objective, schedule))
    condition = Condition(torch.zeros(1, dtype=torch.int64))
    for _ in chain(guided, Sampler.make(json.loads(sampler)), "any", torch.arange(1), condition, (1, 1, 1)):
        pass
    return guided.evaluated


def forward(job: dict) -> float:
    """PFLOP of one evaluation of a network for one image."""
    heads, classes = Objective.make(job["objective"]).variance.heads, 10 if job["conditional"] else 0
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks.build(job["network"], (1, 28, 28), heads, classes)(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    return counter.get_total_flops() / 1e15


def petaflop(grid: Grid) -> tuple[float, float, float]:
    """What networks take in training (three evaluations per image and step), in sampling and in the bound."""
    trained = {name: grid.job("train", name)[0] for name in grid.networks}
    one = {name: forward(job) for name, job in trained.items()}
    training = sum(3 * job["training"]["steps"] * job["training"]["batch"] * one[name] for name, job in trained.items())
    sampling = 0.0
    for name in grid.runs:
        job = grid.job("sample", name)[0]
        times = evaluations(json.dumps(job["guidance"]), json.dumps(job["sampler"]))
        sampling += job["sampling"]["images"] * times * one[job["network"]]
    settings = grid.config["likelihood"]
    bound = sum(settings["images"] * (1 + settings["times"]) * one[name] for name in grid.names["likelihood"])
    return training, sampling, bound


def test_the_work_of_a_gpu() -> None:
    """The numbers in the head of mnist-gpu.yaml are those of its grid, and fit into its time."""
    text = " ".join(Path("workflow/config/mnist-gpu.yaml").read_text().replace("#", " ").split())
    training, sampling, bound = found = petaflop(configured("mnist", "mnist-gpu"))
    said = [float(number) for number in re.findall(r"(?:training|sampling|bound) ([\d.]+) PFLOP", text)]
    assert said == pytest.approx(found, abs=0.05)
    peaks = r"(\d+) % of an H100's dense peak \((\d+) TFLOP/s in bfloat16, (\d+) in float32"
    share, low, full = map(float, re.search(peaks, text).groups())
    minutes = ((training + sampling) / low + bound / full) * 1000 / (share / 100) / 60
    computing, rest, whole, limit = (
        float(re.search(pattern, text)[1])
        for pattern in (r"are ([\d.]+) minutes", r"assumed (\d+) minutes", r"takes (\d+) of", r"of the (\d+) minutes")
    )
    assert computing == pytest.approx(minutes, abs=0.05) and whole == pytest.approx(minutes + rest, abs=0.5)
    assert computing < 10 and whole < limit
