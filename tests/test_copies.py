"""Jobs as copies of a loaded process: what they are given, how they end, and that they compute the same bytes.

Most of it with a command in place of ddpm's own, which does as it is told.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from project import ROOT

from ddpm.pipeline import copies, locks, records
from ddpm.pipeline.layout import Layout

COMMAND = """
import os, subprocess, sys, time
from pathlib import Path

def main():
    what = sys.argv[2]
    if what == "say":
        print("this" in sys.modules, Path.cwd().name, os.environ.get("WORD"), "DDPM_COPIES" in os.environ)
        print(sys.argv[1:], sys.stdin.read())
        print("wrong", file=sys.stderr)
        return 3
    if what == "fail":
        raise RuntimeError("made up")
    Path("process").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path("interrupted").touch()
        return 130
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """With a package `ddpm` of this command, and a server of it that has loaded `this`."""
    package = tmp_path / "ddpm"
    (package / "pipeline").mkdir(parents=True)
    for file in ("__init__.py", "__main__.py", "pipeline/__init__.py", "pipeline/copies.py"):
        shutil.copy(ROOT / "ddpm" / file, package / file)
    (package / "cli.py").write_text(COMMAND)
    file = package / "pipeline" / "copies.py"
    text = file.read_text()
    file.write_text(text.replace("PACKAGES = (", 'PACKAGES = ("this",) or ('))
    (tmp_path / "short").mkdir()
    yield tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Path]:
    """Where its socket lies."""
    place = folder / "short" / "socket"
    run = [sys.executable, "-m", "ddpm.pipeline.copies", str(place)]
    process = subprocess.Popen(run, cwd=folder, env=environment(folder), stdin=subprocess.PIPE)
    until(place.exists)
    yield place
    assert process.stdin
    process.stdin.close()
    assert process.wait(20) == 0 and not place.parent.exists()


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != copies.PLACE} | {"PYTHONPATH": str(folder)} | more


def until(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def job(folder: Path, place: Path | str, *what: str) -> subprocess.Popen:
    run = [sys.executable, "-m", "ddpm", "job", *what]
    at = environment(folder, DDPM_COPIES=str(place), WORD="wörd")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # What a shell runs in the background ignores SIGINT, and so would all that it starts.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(run, cwd=folder / "ddpm", env=at, text=True, preexec_fn=hears, **pipes)


def test_a_copy_is_given_what_the_process_has(folder: Path, server: Path) -> None:
    """Arguments, folder, environment but for the server's place, and open files; it gives its status back."""
    out, err = (asked := job(folder, server, "say", "a b")).communicate("to it")
    assert (asked.returncode, err) == (3, "wrong\n")
    assert out == "True ddpm wörd False\n['job', 'say', 'a b'] to it\n"
    out, err = (asked := job(folder, server, "fail")).communicate()
    assert asked.returncode == 1 and err.endswith("RuntimeError: made up\n")


def test_a_copy_runs_the_code_that_lies_there(folder: Path, server: Path) -> None:
    """Also of what the server itself has loaded."""
    (folder / "ddpm" / "__init__.py").write_text("word = 'edited'\n")
    (folder / "ddpm" / "cli.py").write_text("import ddpm\n\ndef main():\n    print(ddpm.word)\n    return 0\n")
    assert job(folder, server, "say").communicate()[0] == "edited\n"


def test_where_nobody_answers_the_job_runs_itself(folder: Path) -> None:
    out, _ = (asked := job(folder, folder / "nowhere", "say")).communicate("")
    assert asked.returncode == 3 and out.startswith("False ddpm")


def test_an_interrupt_reaches_the_copy(folder: Path, server: Path) -> None:
    asked, process = job(folder, server, "wait"), folder / "ddpm" / "process"
    until(lambda: process.exists() and process.read_text())
    copy = int(process.read_text())
    assert copy != asked.pid and os.getsid(copy) == copy  # Ctrl-C, which all of a terminal get, is not its twice
    asked.send_signal(signal.SIGINT)
    assert asked.wait(20) == 130 and (folder / "ddpm" / "interrupted").exists()


def test_a_copy_ends_with_the_one_who_asked(folder: Path, server: Path) -> None:
    asked, process = job(folder, server, "wait"), folder / "ddpm" / "process"
    until(lambda: process.exists() and process.read_text())
    asked.kill()
    until(lambda: locks.born(int(process.read_text())) is None)
    assert not (folder / "ddpm" / "interrupted").exists()


def test_a_copy_that_is_killed_fails_alone(folder: Path, server: Path) -> None:
    asked, process = job(folder, server, "wait"), folder / "ddpm" / "process"
    until(lambda: process.exists() and process.read_text())
    os.kill(int(process.read_text()), signal.SIGKILL)
    assert "was killed" in asked.communicate()[1] and asked.returncode == 137
    assert job(folder, server, "say").communicate("")[0].startswith("True")


def test_a_copy_computes_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    """Snakemake's own jobs were copies; one network and one cell by processes of their own."""
    other = shutil.copytree(tree, tmp_path / "other")
    layout = Layout(other / "results" / "tiny")
    for stage, name in (("train", "eps/linear/unconditional/seed0"), ("sample", "eps/linear/none/ancestral/seed0")):
        before = records.read_record(layout.record(stage, name))
        run = [sys.executable, "-m", "ddpm", stage, name, "--again", "--configfile", "tests/tiny.yaml"]
        subprocess.run(run, cwd=other, check=True, capture_output=True)
        after = records.read_record(layout.record(stage, name))
        assert before["outputs"] == after["outputs"] and before["costs"] != after["costs"]
