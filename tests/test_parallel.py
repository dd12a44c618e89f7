"""Two processes that train one network with Gloo: the weights of one process with the whole batch, up to rounding."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical
from ddpm.pipeline.run import execute

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
# Importance sampling of times: its history must hold the losses of both processes.
NAME, GUIDED = "eps/linear/unconditional/seed0", "score/cosine/conditional/seed0"


def grid(processes: int, **training: object) -> Grid:
    """A small U-Net, and one with labels and importance sampling."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["objectives"]["score"] |= {"weighting": "vlb", "times": "importance"}
    read["schedules"]["cosine"]["steps"] = 6
    size = {"steps": 24, "batch": 16, "warmup": 4, "processes": processes}
    # In bfloat16 the roundings of a sum in parts are 65 536 times as large.
    return config.check(config.merge(read, {"training": size | training, "compute": {"precision": "float32"}}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    execute("data", *grid(1).job("data"), Layout(root))
    return root


def start(root: Path, processes: int, name: str = NAME, seconds: float = 60, **training: object) -> subprocess.Popen:
    """The job as Snakemake starts it."""
    job, code = grid(processes, **training).job("train", name)
    options = ["--job", canonical(job), "--code", code, "--results", str(root), "--device", "cpu"]
    command = [sys.executable, "-m", "ddpm", "job", "train", *options, "--checkpoint-seconds", str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def train(root: Path, processes: int, name: str = NAME, **training: object) -> tuple[dict, str]:
    """The weights, and what the processes said."""
    process = start(root, processes, name, **training)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    return load_file(Layout(root).output("train", name)), said


@pytest.fixture
def folders(prepared: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(prepared, tmp_path / name)) for name in ("one", "two")]


@pytest.mark.parametrize("name", [NAME, GUIDED])
def test_two_processes_train_what_one_does(folders: list[Path], name: str) -> None:
    """Weights and curve agree to some roundings of float32, after 24 steps that moved them far more than that."""
    (one, _), (two, _) = (train(root, n, name) for n, root in enumerate(folders, 1))
    apart = max(float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-3)) for k in one)
    assert apart < 2e-5
    curves = [Layout(root).output("train", name, "loss").read_text().splitlines()[1:] for root in folders]
    for a, b in zip(*curves, strict=True):
        (*exact, loss), (*same, other) = a.split(","), b.split(",")
        assert exact == same and math.isclose(float(loss), float(other), rel_tol=2e-5)
    record = records.read_record(Layout(folders[1]).record("train", name))
    assert record["result"]["images_seen"] == 24 * 16 and record["job"]["training"]["processes"] == 2


def test_each_process_sees_its_own_part(folders: list[Path]) -> None:
    """A batch of two, one image each: the gradient is of both (one process with half the batch ends far away)."""
    (one, _), (two, _) = (train(root, n, batch=2) for n, root in enumerate(folders, 1))
    shutil.rmtree(folders[0] / "networks")
    half, _ = train(folders[0], 1, batch=1)

    def apart(a: dict, b: dict) -> float:
        return max(float((a[k] - b[k]).abs().max()) for k in a)

    assert apart(one, two) < 1e-4 < 1e-2 < apart(one, half)


def test_two_processes_resume_bit_for_bit_even_if_killed(folders: list[Path]) -> None:
    """SIGKILL to the one that was started: the others die with it, and the next run ends in the same bytes."""
    whole, _ = train(folders[0], 2, steps=150)
    killed = Layout(folders[1])
    process = start(folders[1], 2, seconds=0.1, steps=150)
    deadline = time.monotonic() + 60
    while not killed.checkpoint("train", NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    again, said = train(folders[1], 2, steps=150)
    assert "going on from this checkpoint" in said
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def children(pid: int) -> list[int]:
    """The Python processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(p) for p in found]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_checkpoint_of_another_number_of_processes(folders: list[Path]) -> None:
    """It is named with both numbers and not used."""
    process = start(folders[0], 2, seconds=0, steps=400)
    kept = Layout(folders[0]).checkpoint("train", NAME)
    deadline = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    _, said = train(folders[0], 1, steps=400)
    assert f"{kept}: checkpoint of another job" in said and "it belongs to training.processes = 2, now 1" in said


def test_a_failure_in_one_process_is_one_message(folders: list[Path]) -> None:
    """What it said, which one it was, no traceback; and the job's exit status."""
    data = Layout(folders[0]).output("data")
    data.write_bytes(b"torn")
    # As if it had been made so: else the job stops before its processes start.
    record = records.read_record(Layout(folders[0]).record("data"))
    record |= {"outputs": {data.name: records.sha256(data)}, "bytes": {data.name: 4}}
    records.write_json(Layout(folders[0]).record("data"), record | {"digest": records.digest(record)})
    process = start(folders[0], 2)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 2
    lines = [line for line in said.splitlines() if line.startswith("ddpm: ")]
    assert any("images.safetensors: is not a valid file of tensors" in line for line in lines)
    assert lines[-1].startswith("ddpm: training in 2 processes failed (process ")
    assert "Traceback" not in said


def test_a_batch_that_cannot_be_shared() -> None:
    """Both keys and values, before anything runs."""
    with pytest.raises(config.ConfigError, match=r"training\.batch: 16 .* evenly by training\.processes: 3"):
        grid(3)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not inside of another torchrun."""
    for name in [n for n in os.environ if n.startswith(("TORCHELASTIC", "RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
