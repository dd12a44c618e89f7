"""kill -9 at random moments, again and again: the weights are those of a run that was left alone."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.pipeline.running import run_stage
from ddpm.stages import train as training

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
NAME = "learned/linear/unconditional/seed0"
KILLS = 50
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def grid() -> Grid:
    """A U-Net, whose tensors do not lie in memory as in a file, and enough steps to be killed in."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    return config.check(config.merge(read, {"training": {"steps": 150, "batch": 8, "warmup": 5}}))


def child(root: Path, job: dict, code: str) -> int:
    """Train in a process of its own, with the lock and the checkpoints of a job, some twenty of them."""
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        run_stage("train", job, code, str(root), "cpu", checkpoint_seconds=0.02)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    execute("data", *grid().job("data"), Layout(root))
    return root


def test_killed_at_random_moments(prepared: Path, tmp_path: Path) -> None:
    """Fifty kills, every other one at any time, also before there is anything to go on from, the others shortly after a
    checkpoint, however slow the machine is; then to the end."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    job = grid().job("train", NAME)
    for root in (alone, killed):
        shutil.copytree(prepared, root)
    # In this process: its children then need not warm up.
    run_stage("train", *job, str(alone), "cpu")
    wanted = Layout(alone).output("train", NAME).read_bytes(), Layout(alone).output("train", NAME, "loss").read_bytes()
    begun = time.monotonic()
    assert os.waitpid(child(alone, *job), 0)[1] == 0
    whole = time.monotonic() - begun
    rng, kills, positions = random.Random(0), 0, set()
    kept = Layout(killed).checkpoint("train", NAME)

    def position() -> int:
        with suppress(FileNotFoundError):
            return kept.stat().st_mtime_ns
        return 0

    while kills < KILLS:
        before, pid = position(), child(killed, *job)
        while kills % 2 and position() == before and not os.waitid(os.P_PID, pid, ENDED):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05 * whole if kills % 2 else 0.3 * whole))
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1]:
            kills += 1
            positions.add(position())
        else:  # it was faster
            assert Layout(killed).output("train", NAME).read_bytes() == wanted[0]
            shutil.rmtree(killed)
            shutil.copytree(prepared, killed)
    assert len(positions) > 10
    assert os.waitpid(child(killed, *job), 0)[1] == 0
    assert (
        Layout(killed).output("train", NAME).read_bytes(),
        Layout(killed).output("train", NAME, "loss").read_bytes(),
    ) == wanted
    assert not (killed / "work").exists()


@pytest.mark.parametrize("steps", [1, 40])
def test_a_resumed_u_net(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The moments of its weights go on in the order that they had in memory."""
    weights = []
    for stop in (None, steps):
        root = tmp_path / f"stop-{stop}"
        shutil.copytree(prepared, root)
        job, code = grid().job("train", NAME)
        with monkeypatch.context() as patch:
            rate = training.learning_rate

            def stopping(step: int, *rest: object, stop: int | None = stop, rate: object = rate) -> float:
                if step == stop:
                    raise KeyboardInterrupt
                return rate(step, *rest)

            patch.setattr(training, "learning_rate", stopping)
            if stop:
                with pytest.raises(KeyboardInterrupt):
                    execute("train", job, code, Layout(root), checkpoint_seconds=0)
        execute("train", job, code, Layout(root))
        weights.append(Layout(root).output("train", NAME).read_bytes())
    assert weights[0] == weights[1]
