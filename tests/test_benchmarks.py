"""Every file of benchmarks/ runs at its smallest size, and what it prints can be."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from project import ROOT

from ddpm.datasets import dataset as data
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import commit, read_tensors
from ddpm.pipeline.running import run_stage

MODULES = ("ddpm", "ddpm.pipeline.config", "torch", "ddpm.stages.train", "ddpm.stages.sample", "ddpm.stages.fidelity")
SMALL = {
    "network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None},
    "training": {"batch": 8},
    "sampling": {"batch": 8},
}

SMALLEST = ["--resolutions", "8", "--repeats", "2", "--turn", "1"]


def said(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    run = [sys.executable, f"benchmarks/{name}", *arguments]
    found = subprocess.run(
        run, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def parse(_: Path) -> None:
    """A dry run of 100 finished cells takes seconds, and Snakemake's start is a part of it, not of `ddpm status`."""
    found = re.fullmatch(r"100 cells: snakemake -n ([\d.]+) s, ddpm status ([\d.]+) s\n", said("parse.py", "100"))
    dry, status = map(float, found.groups())
    assert 0 < status < dry < 60


def parts(folder: Path) -> None:
    """Start-up grows with what is imported; the parts of a step add up to it; every rate is positive."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    printed = said("parts.py", "--configfile", str(folder / "small.yaml"), "--steps", "2", "--imports", "1")
    seconds = {name: float(value) for name, value in re.findall(r"^import (\S+) +([\d.]+) s$", printed, re.MULTILINE)}
    assert seconds.keys() >= set(MODULES) and 0 < seconds["ddpm"] < seconds["torch"] < 600
    whole, parts, forward = re.search(
        r"^training step +([\d.]+) ms +\((.*); forward ([\d.]+)\)$", printed, re.M
    ).groups()
    spent = {name: float(value) for name, value in re.findall(r"(\w[\w ]*) ([\d.]+)", parts)}
    assert list(spent) == ["draw", "times", "loss and gradient", "update"]
    assert 0 < float(forward) <= spent["loss and gradient"] < sum(spent.values())
    assert sum(spent.values()) == pytest.approx(float(whole), abs=0.05 * (len(spent) + 1))
    evaluations, batch = re.search(r"^sampling +(\d+) evaluations/s, batch (\d+)$", printed, re.MULTILINE).groups()
    (images,) = re.search(r"^noise +(\d+) images/s$", printed, re.MULTILINE).groups()
    assert batch == "8" and int(evaluations) > 0 and int(images) > 0


def peers(_: Path) -> None:
    """Who is there has as many parameters as ours; who is not is named."""
    lines = said("peers.py", "--threads", "2").splitlines()
    for resolution in ("8×8", "28×28"):
        here = [line.removeprefix(resolution + " ") for line in lines if line.startswith(resolution)]
        there = {x[1]: int(x[2]) for line in here if (x := re.fullmatch(r"(.+): (\d+) parameters", line))}
        assert {"ours, float32", "diffusers"} <= there.keys()
        assert all(abs(count / there["ours, float32"] - 1) < 0.05 for count in there.values())
        assert "denoising-diffusion-pytorch" in there or any("denoising-diffusion-pytorch: left out" in x for x in here)


def speed(folder: Path) -> None:
    """Rates, ratios and shares of the peak agree with one another, and the table says what the JSON does."""
    options = [*SMALLEST, "--batch", "4", "--steps", "2", "--no-memory", "--json"]
    printed, found = said("speed.py", *options, str(folder / "a.json")), json.loads((folder / "a.json").read_text())
    assert (found["about"]["device"], found["about"]["threads"]) == ("cpu", 1)
    passes = {"training": 3, "ancestral": 2, "ddim": 2, "dpm-solver++": 2, "likelihood": 41}
    assert {row["task"] for row in found["rows"]} == passes.keys()
    for row in found["rows"]:
        precision = "bfloat16" if row["contestant"].endswith("bfloat16") else "float32"
        work = row["images_per_second"] * passes[row["task"]] * row["mflop"] * 1e6
        assert row["share_of_peak"] == pytest.approx(work / found["peak"][precision]) and 0 < row["share_of_peak"] < 1
        if row["task"] == "likelihood":
            assert row["contestant"] == "ours, float32" and row["ratio"] is None
        else:
            low, high = row["ratio_range"]
            assert low <= row["ratio"] <= high and (row["contestant"] != "diffusers" or row["ratio"] == 1)
    ours = next(row for row in found["rows"] if row["contestant"].startswith("ours"))
    # By hand, two per multiplication: 3×3 convolutions of 32 and 64 channels, two skips of 1×1, the condition's layers.
    assert ours["mflop"] == pytest.approx(2 * macs() / 1e6, rel=1e-6)
    assert printed.count("\n| 8×8 |") == len(found["rows"])


def macs() -> int:
    """Multiplications of the default U-Net for one image of 8×8."""
    full, half, nine = 64, 16, 9
    blocks = [(32, 32, full), (64, 64, half), (64, 64, half), (128, 64, half), (64, 32, full)]
    total = sum(size * nine * (a * b + b * b) for a, b, size in blocks)
    total += half * 128 * 64 + full * 64 * 32  # skips of blocks that change the number of channels
    total += full * nine * (32 + 32)  # first and last
    total += half * nine * 32 * 64 + half * 64 * 4 * 32  # down and up
    return total + sum(128 * 2 * b for _, b, _ in blocks) + 64 * 128 + 128 * 128


def quality(folder: Path) -> None:
    """Time to quality ends at the target, or with the budget; what is finished is not done again."""
    options = ["--first", "0.5", "--budget", "1", "--images", "80", "--folder", str(folder)]
    printed = said("quality.py", *options)
    found = json.loads((folder / "quality.json").read_text())
    other = ["denoising-diffusion-pytorch"] if find_spec("denoising_diffusion_pytorch") else []
    there = ["ours", "diffusers", *other]
    assert set(found) == {f"digits {who} {budget} s, 80 images" for who in there for budget in ("0.5", "1")}
    for run in found.values():
        assert run["commit"] == commit()["commit"]
        assert run["ratio"] == pytest.approx(run["fid"] / run["topline"]) and run["ratio"] > run["target"] == 2
        assert run["budget"] <= run["seconds"] < run["budget"] + 1
        assert run["images_seen"] == run["steps"] * (run["images_seen"] // run["steps"])
    assert "ours: FID ≤ 2 × topline not reached in 1 s." in printed
    # As if the first run had reached it: nothing is trained, and the second is not looked at.
    found["digits ours 0.5 s, 80 images"]["ratio"] = 1.5
    (folder / "quality.json").write_text(json.dumps(found))
    again = said("quality.py", *options)
    assert "1.50 |" in again and re.search(r"ours: FID ≤ 2 × topline in \d s\.", again)
    assert json.loads((folder / "quality.json").read_text()) == found


def growth(folder: Path) -> None:
    """Every axis has its rows, a larger network costs more, and the picture is there twice."""
    small = ["--sizes", "8", "--batches", "8", "--widths", "8", "64", "--cells", "100", "--steps", "2"]
    printed = said("growth.py", *small, "--folder", str(folder))
    found = json.loads((folder / "growth.json").read_text())
    assert list(found) == ["image size", "batch", "parameters", "cells"]
    less, more = found["parameters"]
    assert less["value"] * 30 < more["value"] and less["training"] < more["training"]
    assert 0 < found["cells"][0]["status"] < found["cells"][0]["dry run"]
    assert all(file.stat().st_size > 5000 for file in (folder / "growth.png", folder / "growth.svg"))
    assert len(re.findall(r"^\| (image size|batch|parameters|100) \|", printed, re.MULTILINE)) == 5


RUNS = {
    "growth.py": growth,
    "parse.py": parse,
    "parts.py": parts,
    "peers.py": peers,
    "quality.py": quality,
    "speed.py": speed,
}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmark(name: str, tmp_path: Path) -> None:
    """Whatever is added to benchmarks/ wants a run here."""
    RUNS[name](tmp_path)


def test_ours_is_what_the_stage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training steps that are timed end in the weights of the `train` stage, bit for bit."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers

    grid = peers.configured(8, "float32", batch=4, steps=3, warmup=2)
    name = next(iter(grid.networks))
    for stage, job in (("data", ""), ("train", name)):
        run_stage(stage, *grid.job(stage, job), str(tmp_path), "cpu")
    layout = Layout(tmp_path)
    ours = peers.Ours(grid, data.read(layout.output("data")))
    for step in range(3):
        ours.train(step)
    for key, value in read_tensors(layout.output("train", name))[0].items():
        assert torch.equal(value, ours.state.average.state_dict()[key]), key


def test_seconds_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the clock is read when all is done that was given to it, before and after; with several threads of a CPU
    it is the wall's, with one the process's."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers
    import speed

    for threads, expected in ((1, time.process_time), (2, time.perf_counter)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert peers.clock("cpu") is expected
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("done"))
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: seen.append("read") or float(len(seen)))
        assert speed.seconds(lambda: seen.append("run"), "cuda") == 3
    assert seen == ["done", "read", "run", "done", "read"]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said so, and what would run; where it is there, its own memory is what counts."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers
    import speed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"--device cuda: torch sees no GPU here; --device cpu would run"):
        peers.prepare("cuda", 1)
    contestant = SimpleNamespace(train=lambda step: None, sample=lambda *of: None)
    monkeypatch.setattr(speed, "prepare", lambda device, threads: None)
    monkeypatch.setattr(speed, "builders", lambda *of: {"any": lambda: contestant})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert speed.memory(8, 4, "any", "cuda", 1) == 3 < speed.memory(8, 4, "any", "cpu", 1)


def test_all_computes_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants on torch's device without numbers, in place of a GPU: a tensor that stayed on the CPU is refused, and
    so is what waits for a number, of which ours has none in training and sampling."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers

    adam, cpu = torch.optim.Adam, torch.Tensor.cpu
    monkeypatch.setattr(torch.optim, "Adam", lambda *of, fused, **more: adam(*of, **more))
    monkeypatch.setattr(torch, "autocast", lambda *of, **more: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("ddpm.compute.COMPILING", float("inf"))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x))
    ours = peers.Ours(peers.configured(8, "auto", batch=4), peers.random_data(8), "meta")
    assert [ours.train(step).device.type for step in (0, 1)] == ["meta", "meta"]
    assert ours.likelihood(2, 5, 16).shape == (2,)
    theirs = peers.Diffusers(8, peers.random_data(8), 4, "bfloat16", "meta")
    for method in peers.SAMPLERS:
        assert ours.sample(method, 4, 3).shape == (4, 1, 8, 8) and theirs.sample(method, 4, 3).shape == (4, 8, 8, 1)
    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.0)  # which its own loop asks for at every step
    assert theirs.train(0) == 1


def test_real_images_are_judged_near_the_topline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training images are as far from the test split as fresh real ones; noise is much farther."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers
    import quality

    measure = quality.evaluator(peers.configured(8, "float32"), tmp_path)
    real, noise = data.reference(measure.dataset, "train", 400), peers.random_data(8, 400).train.images
    assert quality.judged(real, measure)["ratio"] == pytest.approx(1, abs=0.35)
    assert quality.judged(noise, measure)["ratio"] > 10


def test_a_network_of_diffusers_is_the_same_as_ours_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the log SNR of its time index i it predicts what it does at i."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import peers
    import quality

    theirs = peers.Diffusers(8, peers.random_data(8, 8), 4)
    ours, x, i = quality.imported(theirs.network, (1, 8, 8)), torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    kept = theirs.noise_schedule.alphas_cumprod.double()[i]
    with torch.no_grad():
        found, expected = ours(x, (kept / (1 - kept)).log()), theirs.network(x, i, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
