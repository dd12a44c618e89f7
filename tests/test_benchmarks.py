"""Every file of benchmarks/ runs at its smallest size, and what it prints can be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT

MODULES = ("ddpm", "ddpm.pipeline.config", "torch", "ddpm.stages.train", "ddpm.stages.sample", "ddpm.stages.fidelity")
SMALL = {
    "network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None},
    "training": {"batch": 8},
    "sampling": {"batch": 8},
}


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


def speed(folder: Path) -> None:
    """Start-up grows with what is imported; the parts of a step add up to it; every rate is positive."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    printed = said("speed.py", "--configfile", str(folder / "small.yaml"), "--steps", "2", "--imports", "1")
    seconds = {name: float(value) for name, value in re.findall(r"^import (\S+) +([\d.]+) s$", printed, re.MULTILINE)}
    assert seconds.keys() >= set(MODULES) and 0 < seconds["ddpm"] < seconds["torch"] < 600
    whole, parts, forward = re.search(
        r"^training step +([\d.]+) ms +\((.*); forward ([\d.]+)\)$", printed, re.M
    ).groups()
    spent = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", parts)}
    assert list(spent) == ["draw", "times", "loss", "backward", "clip", "optimiser", "average"]
    assert 0 < float(forward) <= spent["loss"] < sum(spent.values())
    assert sum(spent.values()) == pytest.approx(float(whole), abs=0.05 * (len(spent) + 1))
    evaluations, batch = re.search(r"^sampling +(\d+) evaluations/s, batch (\d+)$", printed, re.MULTILINE).groups()
    (images,) = re.search(r"^noise +(\d+) images/s$", printed, re.MULTILINE).groups()
    assert batch == "8" and int(evaluations) > 0 and int(images) > 0


RUNS = {"parse.py": parse, "speed.py": speed}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmark(name: str, tmp_path: Path) -> None:
    """Whatever is added to benchmarks/ wants a run here."""
    RUNS[name](tmp_path)
