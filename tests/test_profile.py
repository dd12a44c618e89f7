"""The profile of a tree: sums, shares and the critical path, by records with known times."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm import cli
from ddpm.errors import UserError
from ddpm.pipeline import profile, records
from ddpm.pipeline.layout import Layout

SLOW, FAST = "eps/linear/unconditional/seed0", "x0/linear/unconditional/seed0"
DDIM, HEUN = "eps/linear/none/ddim/seed0", "eps/linear/none/heun/seed0"


def record(root: Path, stage: str, start: int, loading: float, seconds: float, job: dict, own: float = 0.0) -> None:
    """A record of a job that started `start` seconds after noon; `own`: seconds of the last attempt, if not all."""
    costs = {
        "started": f"2026-01-01T12:{start // 60:02d}:{start % 60:02d}Z",
        "seconds": seconds,
        "phases": {"loading": loading, "reading": 0.5, "working": (own or seconds) - 0.5},
        "peak_memory_mb": 1.0,
    }
    texts = dict.fromkeys(("code", "device", "hardware", "host"), "")
    content = texts | {"stage": stage, "job": job, "costs": costs, "status": "ok", "format": records.FORMAT}
    content |= {"inputs": {}, "versions": {}, "outputs": {}, "bytes": {}, "result": {}, "commit": None, "dirty": None}
    path = Layout(root).record(stage, job.get("name", ""))
    records.write_json(path, content | {"digest": records.digest(content)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two networks at once, one of two threads, one interrupted; two cells of the slower; after a pause, the
    table. Beside them a truncated record and a replaced one."""
    train = {"training": {"processes": 1}, "threads": 1}
    sampled = {"network": SLOW, "model": {}, "threads": 1}
    measured = {"needs": [], "threads": 1}
    record(tmp_path, "data", 2, 2, 1, {})
    record(tmp_path, "train", 10, 3, 25, train | {"name": SLOW}, own=20)
    record(tmp_path, "train", 10, 3, 10, train | {"name": FAST, "threads": 2})
    record(tmp_path, "sample", 40, 3, 5, sampled | {"name": DDIM})
    record(tmp_path, "sample", 40, 3, 6, sampled | {"name": HEUN})
    # One process: the second one's loading contains the first one's seconds.
    record(tmp_path, "fidelity", 60, 5, 2, measured | {"name": DDIM})
    record(tmp_path, "fidelity", 62, 7, 3, measured | {"name": HEUN})
    record(tmp_path, "table", 200, 0.5, 1, {"config": {}})
    shutil.copytree(tmp_path / "networks", tmp_path / "replaced" / "networks")
    (tmp_path / "baselines" / "noise").mkdir(parents=True)
    (tmp_path / "baselines" / "noise" / "fidelity.json").write_text("{")
    return tmp_path


def test_sums(root: Path) -> None:
    """Wall time without the pause, the cores that computed at once, and loading once per process."""
    found = profile.Profile(root)
    assert len(found.jobs) == 8 and found.runs == [(found.runs[0][0], found.runs[0][0] + 65), found.runs[1]]
    assert found.wall == pytest.approx(65 + 1.5) and found.cores == 3
    stages = {stage: sum(job.core_seconds for job in of) for stage, of in found.stages().items()}
    assert stages == {"train": 25 + 2 * 10, "sample": 11, "fidelity": 5, "data": 1, "table": 1}
    assert next(iter(stages)) == "train"
    assert sum(job.loading for job in found.jobs.values()) == 2 + 3 + 3 + 3 + 3 + 5 + 0.5


def test_processes_that_load_apart(root: Path) -> None:
    """Fidelities of one network in two processes have loaded twice."""
    record(root, "fidelity", 62, 1, 3, {"needs": [], "threads": 1, "name": HEUN})
    assert sum(job.loading for job in profile.Profile(root).jobs.values()) == 2 + 3 + 3 + 3 + 3 + 5 + 1 + 0.5


def test_critical_path(root: Path) -> None:
    """The slower network's slower cell; its network's fidelities are one process; the table waits for all."""
    seconds, path = profile.Profile(root).critical_path()
    assert seconds == pytest.approx((2 + 1) + (3 + 25) + (3 + 6) + (5 + 2 + 3) + 1.5)
    assert path == [("data", ""), ("train", SLOW), ("sample", HEUN), ("fidelity", SLOW), ("table", "")]


def test_the_text(root: Path, capsys: pytest.CaptureFixture) -> None:
    """Shares are of wall time × cores, and the rest is what is left of it."""
    assert cli.main(["profile", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{root}: 8 jobs in 66 s of wall time on 3 cores, 1 pause left out"
    total, computed, loading = 3 * 66.5, 45 + 11 + 5 + 1 + 1, 19.5
    assert lines[1].split()[:5] == ["train", "2", "45.0", "s", f"{45 / total:.1%}"]
    assert lines[1].endswith("reading 1.5, working 38.5")  # of two threads, both count; none of earlier attempts
    rest = next(line for line in lines if line.strip().startswith("the rest"))
    assert rest.split()[2:5] == [f"{total - computed - loading:.1f}", "s", f"{1 - (computed + loading) / total:.1%}"]
    assert lines[lines.index("slowest jobs:") + 1].split() == ["25.0", "s", "train", SLOW]
    assert lines[-2].startswith("critical path: 52 s (77% of wall time)")


def test_a_real_tree(tree: Path) -> None:
    """Every job of a tiny grid is found; nothing takes longer than all of it, and torch is not asked."""
    code = (
        "import sys; from pathlib import Path; from ddpm.pipeline import profile; found = profile.Profile(Path('.'));"
        "print(*profile.lines(found), sep='\\n'); assert 'torch' not in sys.modules;"
        "seconds, path = found.critical_path();"
        "assert path[0] == ('data', '') and path[-1] == ('page', ''), path;"
        "assert 0 < seconds <= found.wall + 2 * len(path) and found.cores <= 2"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tree / "results" / "tiny", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result is there"):
        profile.Profile(tmp_path)
