"""Whole runs of Snakemake: a change and its reversal, failures, kills, two at once."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from finished_tree import EPS, EPS_DDIM, EVERYTHING, SCORE_DDIM, TABLE, copy, drawn, results, status  # noqa: F401 - fixtures
from project import command, copy_project, planned, snakemake

from ddpm.pipeline import records


def tiny(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`ddpm` with the tiny configuration."""
    run = [sys.executable, "-m", "ddpm", *arguments, "--configfile", "tests/tiny.yaml"]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True)


def test_a_change_and_its_reversal(copy: Path) -> None:
    """What a change replaces is named before, kept, and put back instead of computed when the change is taken back."""
    at = results(copy)
    table, samples = (at.root / "table.csv").read_bytes(), at.output("sample", SCORE_DDIM).read_bytes()
    (copy / "change.yaml").write_text("guidances: {cfg-w1: {weight: 2.0}}\n")
    told = snakemake(copy, "-n", overlay="change.yaml").stdout
    assert "guidance.weight: 1.0 → 2.0" in told and "kept in results/tiny/replaced: 2 results" in told
    run = snakemake(copy, overlay="change.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert at.output("sample", SCORE_DDIM).read_bytes() != samples and (at.root / "table.csv").read_bytes() != table
    (kept,) = (at.root / "replaced/cells" / SCORE_DDIM).glob("samples-*/samples.safetensors")
    assert kept.read_bytes() == samples
    assert [p.read_bytes() for p in at.root.glob("replaced/table-*/table.csv")] == [table]
    run = snakemake(copy)
    assert run.returncode == 0, run.stdout + run.stderr
    log = at.log("sample", SCORE_DDIM).read_text().splitlines()[-1]
    assert "put back from results/tiny/replaced/cells" in log
    assert at.output("sample", SCORE_DDIM).read_bytes() == samples and (at.root / "table.csv").read_bytes() == table
    assert planned(copy) == []


def test_a_failure_leaves_no_old_table(copy: Path) -> None:
    """After --keep-going: the old table is set aside, `ddpm table` makes the one of what is there, and says so."""
    at, path = results(copy), copy / "ddpm/guidance.py"
    table, text = (at.root / "table.csv").read_bytes(), path.read_text()
    path.write_text(text.replace("both =", "raise ValueError('no luck today')\n        both =", 1))
    assert path.read_text() != text
    assert set(planned(copy)) >= drawn(SCORE_DDIM)
    run = snakemake(copy, "--keep-going")
    assert run.returncode != 0 and "no luck today" in run.stdout + run.stderr
    assert not (at.root / "table.csv").exists()
    found = json.loads(status(copy, "--json"))
    assert found["cells"][SCORE_DDIM] == {"state": "failed", "reason": "sample: no luck today"}
    assert found["counts"] == {"degenerate": 3, "failed": 1, "n/a": 1}
    run = tiny(copy, "table")
    assert run.returncode == 0 and run.stdout == "results/tiny/table.csv: 3 of 4 cells\n"
    assert "# digits: 3 of 4 cells" in (at.root / "table.md").read_text()
    rows = pd.read_csv(at.root / "table.csv", keep_default_na=False)
    assert list(rows["status"]) == ["ok"] * 5 + ["degenerate"] * 3 + ["n/a", "failed"]
    assert rows["reason"].iloc[-1] == "1 of 1 seeds; sample: no luck today"
    assert set(planned(copy)) >= drawn(SCORE_DDIM)
    path.write_text(text)
    assert planned(copy) == [("page", ""), ("table", "")]  # nothing else was replaced
    run = snakemake(copy)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (at.root / "table.csv").read_bytes() == table


def test_two_snakemakes_on_one_tree(copy: Path) -> None:
    """The second one is refused with a message while the first runs; the first is not disturbed."""
    (copy / "change.yaml").write_text("guidances: {cfg-w1: {weight: 2.0}}\n")
    files = ("tests/tiny.yaml", "change.yaml")
    first = subprocess.Popen(
        command(files=files), cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list((copy / ".snakemake/locks").glob("*")) and first.poll() is None:
        time.sleep(0.02)
    second = snakemake(copy, overlay="change.yaml")
    assert second.returncode != 0 and "lock" in second.stdout + second.stderr
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert planned(copy, "change.yaml") == []


def test_code_that_is_edited_after_it_was_planned(copy: Path) -> None:
    """A job refuses to record a fingerprint that is not that of the code it would run; nothing is replaced."""
    at, path = results(copy), copy / "ddpm/samplers/singlestep.py"
    record = at.record("sample", EPS_DDIM).read_bytes()
    job = json.loads(record)["job"]
    path.write_text(path.read_text().replace("self.eta**2 *", "1.0 * self.eta**2 *"))
    options = ["--code", json.loads(record)["code"], "--results", "results/tiny", "--device", "cpu"]
    call = [sys.executable, "-m", "ddpm", "job", "sample", "--job", json.dumps(job), *options]
    run = subprocess.run(call, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 2
    assert f"sample {EPS_DDIM}: its code was edited after it was planned" in run.stderr
    assert at.record("sample", EPS_DDIM).read_bytes() == record


def test_without_git_and_with_a_clock_that_runs_backwards(copy: Path) -> None:
    """No commit is known; a result of the future is a result; durations are never negative."""
    at = results(copy)
    for path in at.root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert planned(copy) == []
    record = records.read_record(at.record("train", EPS))
    assert record["commit"] is None and record["dirty"] is None
    said = status(copy, EPS_DDIM)
    assert "commit unknown (no git)" in said and str(Path("results/tiny/cells") / EPS_DDIM) in said
    run = tiny(copy, "sample", EPS_DDIM, "--again")
    assert run.returncode == 0, run.stderr
    assert records.read_record(at.record("sample", EPS_DDIM))["costs"]["seconds"] >= 0
    assert planned(copy) == sorted(TABLE)


def test_a_kill_leaves_exactly_the_rest(tree: Path, tmp_path: Path) -> None:
    """SIGKILL to Snakemake and its jobs: what has its record is done, all else is planned, and nothing else."""
    other = copy_project(tmp_path / "killed")
    at = results(other)
    process = subprocess.Popen(
        command(), cwd=other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 180
    while not at.record("sample", EPS_DDIM).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlock = snakemake(other, "--unlock")
    assert unlock.returncode == 0, unlock.stderr
    done = {("data", ""), ("train", EPS), ("sample", EPS_DDIM)}
    rest = set(planned(other))
    assert not rest & done
    for stage, name in EVERYTHING - rest:
        path = at.measured(name) if stage == "fidelity" else at.record(stage, name)
        assert path.exists(), (stage, name)
    weights = at.output("train", EPS).read_bytes()
    run = snakemake(other)
    assert run.returncode == 0, run.stdout + run.stderr
    assert at.output("train", EPS).read_bytes() == weights == results(tree).output("train", EPS).read_bytes()
    assert (at.root / "table.csv").read_bytes() == (results(tree).root / "table.csv").read_bytes()
