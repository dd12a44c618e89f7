"""How far a grid is and when it ends: by the work of jobs, the seconds of finished ones and the bars of those under
way, against sums by hand; what a run of Snakemake shows of it."""

import io
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from project import ROOT, snakemake
from test_profile import record

from ddpm.pipeline import config, locks, progress
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.progress import Progress, Teller, attempt
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import STAGES

EPS, LEARNED = "eps/linear/unconditional/seed0", "learned/linear/unconditional/seed0"
TRAINING = 24 * 16  # units of work of a network of the tiny grid; one of sampling is an image and a step
SAMPLING, BOUND = 40 * 4, 20 * 5


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Of the tiny grid, of which nothing has run."""
    grid = config.check(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"))
    return Results(grid, Layout(tmp_path))


def finish(results: Results, stage: str, name: str, seconds: float) -> None:
    job = results.grid.job(stage, name)[0]
    record(results.layout.root, stage, 0, 1.0, seconds, job | ({"name": name} if name else {}))


def write_log(results: Results, stage: str, name: str, text: str) -> None:
    log = results.layout.log(stage, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text, encoding="utf-8")


def test_before_anything_has_run(results: Results) -> None:
    """Nothing is known of the time, and nothing is done."""
    look = Progress(results).look()
    assert (look.percent, look.finished, look.running, look.wait) == (0, 0, 0, None)
    assert look.jobs == len(results.grid.jobs) + 3 and "is known once" in str(look)


def test_what_is_left_follows_from_what_jobs_took(results: Results) -> None:
    """One network of three has trained, in 60 s; samples and bounds cost a third of that per unit of work."""
    progress = Progress(results, places=2)
    finish(results, "train", EPS, 60.0)
    look, rate = progress.look(), 60.0 / TRAINING / 3
    others = len(results.grid.names["fidelity"]) + 2 + 3  # data, the classifier, and what is made of all records
    assert look.left == pytest.approx(2 * 60 + rate * (4 * SAMPLING + 2 * BOUND) + 5 * others)
    assert look.done == pytest.approx(60) and look.finished == 1
    assert look.wait == pytest.approx(look.left / 2)
    # Of any number of places, what waits for one another: data, a network, its cell, its fidelity, table, page.
    progress.places = 1000
    assert progress.look().wait == pytest.approx(5 + 60 + rate * SAMPLING + 5 + 5 * 2)


def test_a_finished_stage_is_told_by_its_own_records(results: Results) -> None:
    """Of samples once one is there: as long for the others, of as many steps. What nothing tells, the bounds, takes
    as long per evaluation as the median of the stages that are known."""
    progress = Progress(results, places=1)
    finish(results, "train", EPS, 60.0)
    before, rate = progress.look().left, 60.0 / TRAINING / 3
    finish(results, "sample", "eps/linear/none/ddim/seed0", 7.0)
    bounds = 2 * BOUND * (rate - (rate + 7.0 / SAMPLING) / 2)
    assert before - progress.look().left == pytest.approx(4 * SAMPLING * rate - 3 * 7 + bounds)


def test_what_runs_tells_its_position(results: Results) -> None:
    """A live job's last bar, of its last attempt: 6 of 24 steps, 30 s left, so 40 s in all, and as much for the others;
    a job that holds no lock is not running, whatever its log says."""
    bars = "train x: 10%|# | 2/24 [00:01<01:00, 2s/step]\rtrain x: 25%|## | 6/24 [00:10<00:30, 1.6s/step]"
    old = "2026-01-01T00:00:00Z train network=x on vm\ntrain: 90%|# | 20/24 [00:01<00:02, 2s/step]\nddpm: killed\n"
    write_log(results, "train", EPS, f"{old}2026-01-01T00:01:00Z train network=x on vm\n{bars}")
    assert Progress(results, places=1).look().wait is None
    with locks.held(results.layout.work("train", EPS)):
        look = Progress(results, {("train", EPS), ("train", LEARNED)}).look()
    assert (look.running, look.finished, look.jobs) == (1, 0, 2)
    assert look.done == pytest.approx(10) and look.left == pytest.approx(30 + 40) and look.wait == pytest.approx(70)
    assert look.percent == 12 and "0 of 2 jobs, 1 running; about 70 s left, until " in str(look)


def test_a_folder_that_a_job_removes_is_passed_over(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may go between the moment that its name is read and the moment that it is."""
    gone, scan = results.layout.work("train", LEARNED), os.scandir
    gone.mkdir(parents=True)

    def removing(path):
        if Path(path) == gone.parent:
            gone.rmdir()
            gone.parent.rmdir()
        return scan(path)

    with locks.held(results.layout.work("train", EPS)):
        monkeypatch.setattr(os, "scandir", removing)
        assert Progress(results).look().running == 1
    assert not gone.exists()


def test_an_attempt_without_bars_is_not_the_one_before(results: Results) -> None:
    log = "2026-01-01T00:00:00Z train network=x on vm\ntrain: 90%|# | 20/24 [00:01<00:02, 2s/step]\n"
    write_log(results, "train", EPS, f"{log}2026-01-01T00:01:00Z train network=x on vm\nloading")
    assert attempt(results.layout.log("train", EPS), "train") == ("2026-01-01T00:01:00Z", "loading")
    assert attempt(results.layout.log("sample", EPS), "sample") == ("", "")
    with locks.held(results.layout.work("train", EPS)):
        look = Progress(results).look()
    assert look.running == 1 and look.wait is None


def test_what_has_no_bar_is_known_by_when_it_began(results: Results) -> None:
    """Of the 5 s that the data are taken to need, 2 have passed; more than all never have."""
    for seconds, done in ((2, 2.0), (100, 5.0)):
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))
        write_log(results, "data", "", f"{began} data  on vm\n")
        with locks.held(results.layout.work("data")):
            assert Progress(results).look().done == pytest.approx(done, abs=1.5 * (seconds < 5))


def test_every_stage_has_its_seconds(results: Results) -> None:
    """All is finished when every job is, aggregates too; nothing is left then."""
    progress = Progress(results)
    for stage, name in list(results.todo):
        finish(results, stage, name, 3.0)
    look = progress.look()
    assert (look.percent, look.left, look.done) == (100, 0, 3.0 * look.jobs) and look.finished == look.jobs
    assert str(look) == f"{look.jobs} of {look.jobs} jobs" and set(STAGES) >= {stage for stage, _ in progress.finished}


def logger_of(name: str) -> tuple[logging.Logger, io.StringIO]:
    """A logger as Snakemake's is, and what it shows."""
    logger, shown = logging.Logger(name), io.StringIO()
    logger.addHandler(logging.StreamHandler(shown))
    return logger, shown


def test_alone_only_what_is_wrong_is_shown(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Snakemake's own lines are not, a failed job's log is, in full and without bars, and where it lies."""
    monkeypatch.setattr(progress, "LOOK", 0.01)
    monkeypatch.setattr(progress, "LINE", 0.0)
    old, new = "2026-01-01T00:00:00Z train network=x on vm\nolder\n", "2026-01-01T00:01:00Z train network=x on vm\n"
    write_log(
        results, "train", EPS, f"{old}{new}train: 5%|# | 1/24 [00:01<00:40]\rTraceback\n  line\nddpm: no memory\n"
    )
    logger, shown = logger_of("alone")
    teller = Teller(Progress(results), logger, alone=True)
    logger.info("Select jobs to execute...")
    log = results.layout.log("train", EPS)
    logger.error("Exiting", extra={"rule_name": "train", "log": [str(log)]})
    teller.stop()
    said = capsys.readouterr().err
    assert f"train failed; its log is {log}:\nTraceback\n  line\nddpm: no memory\n" in said
    assert "older" not in said and "1/24" not in said
    assert shown.getvalue() == "Exiting\n" and said.splitlines()[-1].startswith("0% of the work is done, 0 of 23 jobs;")


def test_beside_snakemake_a_line_now_and_then(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among Snakemake's own messages, none of which it hides."""
    monkeypatch.setattr(progress, "LOOK", 0.01)
    monkeypatch.setattr(progress, "LINE", 0.0)
    logger, shown = logger_of("beside")
    logger.setLevel(logging.INFO)
    teller = Teller(Progress(results), logger, alone=False)
    logger.info("Select jobs to execute...")
    while "of the work" not in shown.getvalue():
        teller.thread.join(0.01)
    teller.stop()
    assert "Select jobs" in shown.getvalue() and "0% of the work is done, 0 of 23 jobs" in shown.getvalue()


def test_make_table_shows_one_line_and_what_is_wrong(tree: Path, tmp_path: Path) -> None:
    """As `make table` runs Snakemake: nothing of its rules, the log of what fails, and how far all is in the end."""
    quiet, copy = ("--quiet", "progress", "rules", "host"), shutil.copytree(tree, tmp_path / "copy")
    assert f"--{' '.join(quiet)[2:]}" in (ROOT / "Makefile").read_text()
    template = copy / "workflow" / "page" / "report.html.j2"
    text = template.read_text()
    template.write_text("{% broken %}")
    try:
        failed = snakemake(copy, *quiet)
    finally:
        template.write_text(text)
    assert failed.returncode == 1 and "page failed; its log is results/tiny/logs/page.log:\n" in failed.stderr
    assert "unknown tag 'broken'" in failed.stderr and "Error in rule" not in failed.stderr
    assert "python -m ddpm job" not in failed.stderr
    (copy / "results" / "tiny" / "table.csv").unlink()
    done = snakemake(copy, *quiet)
    assert done.returncode == 0, done.stderr
    assert done.stderr.rstrip().endswith("\n100% of the work is done, 23 of 23 jobs")
    assert "rule " not in done.stderr and "steps (" not in done.stderr and "Select jobs" not in done.stderr
