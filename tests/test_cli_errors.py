"""What the command refuses, and what it says where disks are full or somebody interrupts."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import CELL, NETWORK, done, overlay, project, refused, run, sampled, whole  # noqa: F401 - fixtures

from ddpm import cli
from ddpm.pipeline import config
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("command", "name", "close", "what"),
    [
        ("sample", "eps/linear/none/dimm/seed0", CELL, "cell"),
        ("fidelity", "eps/linear/none/ddim/seed9", CELL, "cell"),
        ("train", "eps/linear/none/seed0", NETWORK, "network"),
        ("likelihood", "epz/linear/unconditional/seed0", NETWORK, "network"),
        ("train", "", "unconditional", "network"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(
    capsys: pytest.CaptureFixture, command: str, name: str, close: str, what: str
) -> None:
    """What was asked for, what it should have been, and where the list is; nothing is written."""
    message = refused(capsys, command, name, *overlay())
    assert repr(name) in message and close in message and f"no {what}" in message and "ddpm check" in message
    assert not Path("out").exists()


def test_a_pair_that_cannot_work_is_no_cell_to_run(capsys: pytest.CaptureFixture) -> None:
    """An n/a cell is refused by name."""
    assert "learned/linear/none/ddim/seed0" in refused(capsys, "sample", "learned/linear/none/ddim/seed0", *overlay())


@pytest.mark.parametrize("command", ["check", "table", "figures"])
def test_a_missing_configuration_is_named(capsys: pytest.CaptureFixture, command: str) -> None:
    """Called outside the project."""
    Path("config.yaml").unlink()
    assert "config.yaml: no such configuration file" in refused(capsys, command)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {stps: 3}", "training.stps: unknown key; did you mean steps?"),
        ("training: {learning_rate: 2e-4}", "2.0e-4"),
        ("objectives: {eps: {target: noise}}", "objectives.eps.target: 'noise' is unknown"),
        ("samplers: {ddim: {eta: 3.0}}", "samplers.ddim.eta"),
        ("grid: 3", "grid: 3"),
        ("results: ../x", "results: '../x'"),
        ("a: [", "own.yaml"),
        ("[]", "own.yaml"),
    ],
)
def test_a_wrong_configuration_is_explained(capsys: pytest.CaptureFixture, text: str, said: str) -> None:
    """One message with the key or the file, before anything is run."""
    Path("own.yaml").write_text(text, encoding="utf-8")
    assert said in refused(capsys, "check", "--configfile", "own.yaml")


def test_parameters_that_do_not_fit_together_are_explained(capsys: pytest.CaptureFixture) -> None:
    """What only the method itself can judge is a message too: both keys and both values."""
    wrong = {"linear": {"beta_first": 0.5, "beta_last": 0.25}}
    message = refused(capsys, "train", NETWORK, *overlay(schedules=wrong))
    assert "beta_first: 0.5" in message and "beta_last, 0.25" in message


def test_no_gpu_is_explained(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda was asked for and is not there: the value and what would run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(capsys, "train", NETWORK, *overlay(device="cuda"))
    assert "device: cuda" in message and "cpu or auto" in message


def test_wrong_data_are_explained(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDPM_DATA names an empty folder."""
    monkeypatch.setenv("DDPM_DATA", "nowhere")
    message = refused(capsys, "train", NETWORK, *overlay(data={"name": "mnist", "seed": None}))
    assert "DDPM_DATA=nowhere" in message


@pytest.mark.parametrize("command", ["table", "figures"])
def test_an_empty_folder_is_explained(capsys: pytest.CaptureFixture, command: str) -> None:
    """Tables and pictures of results that are not there name a file that is missing."""
    code, _, err = run(capsys, command, *overlay())
    assert code == 2 and err.startswith("ddpm: out/") and "Traceback" not in err
    assert "missing" in err or "No such file" in err


STAGE_INPUTS = [
    ("train", NETWORK, "data"),
    ("sample", CELL, "weights"),
    ("fidelity", CELL, "samples"),
    ("fidelity", CELL, "classifier"),
    ("likelihood", NETWORK, "weights"),
]


@pytest.mark.parametrize(("stage", "name", "torn"), STAGE_INPUTS)
def test_a_torn_input_of_a_job_is_explained(
    capsys: pytest.CaptureFixture, done: Layout, stage: str, name: str, torn: str
) -> None:
    """Snakemake looks at times only: a job whose input is torn says which file that is."""
    files = {
        "data": done.output("data"),
        "weights": done.output("train", NETWORK),
        "samples": done.output("sample", CELL),
        "classifier": done.output("classifier"),
    }
    files[torn].write_bytes(files[torn].read_bytes()[:-1])
    job, code = config.check(whole()).job(stage, name)
    options = ["--job", canonical(job), "--code", code, "--results", "out", "--device", "cpu"]
    assert str(files[torn].relative_to(done.root)) in refused(capsys, "job", stage, *options)


def test_an_unknown_stage_is_explained(capsys: pytest.CaptureFixture) -> None:
    """A stage that there is none of."""
    stage = "nonsense"
    options = ["--job", "{}", "--code", "0", "--results", "out", "--device", "cpu"]
    try:
        message = refused(capsys, "job", stage, *options)
    except SystemExit as e:  # argparse may refuse it
        assert e.code == 2
        message = capsys.readouterr().err
    assert stage in message


# ---- disks and interruptions ------------------------------------------------------------------------------


def test_a_full_disk_gives_one_message(
    capsys: pytest.CaptureFixture, done: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3; finished results are as they were, and no temporary file is left."""
    before = {path: path.read_bytes() for path in done.root.rglob("*") if path.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(capsys, "train", NETWORK, *overlay(), "--again", code=3)
    assert "No space left on device" in message and "finished results are untouched" in message
    assert {path: path.read_bytes() for path in done.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stage", ["data", "train"])
def test_a_file_that_cannot_grow_gives_one_message(done: Layout, stage: str) -> None:
    """A real limit on what may be written (as a full quota): a stage that stores tensors ends with exit code 3."""
    name = NETWORK if stage == "train" else ""
    job, code = config.check(whole()).job(stage, name)
    done.record(stage, name).unlink()
    before = {path: path.read_bytes() for path in done.root.rglob("*.*") if "work" not in path.parts}
    script = (
        "import resource, sys; from ddpm import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512));"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    options = ["--job", canonical(job), "--code", code, "--results", "out", "--device", "cpu"]
    # -B: Python 3.11 would leave a bytecode file that is cut at the limit behind.
    found = subprocess.run([sys.executable, "-Bc", script, "job", stage, *options], capture_output=True, text=True)
    assert found.returncode == 3, found.stderr
    assert "Traceback" not in found.stderr and "File too large" in found.stderr
    assert {path: path.read_bytes() for path in done.root.rglob("*.*") if "work" not in path.parts} == before


@pytest.mark.parametrize("command", ["train", "table"])
def test_a_folder_that_cannot_be_written_gives_one_message(capsys: pytest.CaptureFixture, command: str) -> None:
    """A file lies where the results' folder should be."""
    Path("out").write_text("a file")
    message = refused(
        capsys, command, *([NETWORK] if command == "train" else []), *overlay(), code=3 if command == "table" else 2
    )
    assert "out" in message
    assert Path("out").read_text() == "a file"


def test_an_interruption_gives_one_message(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: exit code 130 and what will happen next time."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_stage", stop)
    message = refused(capsys, "train", NETWORK, *overlay(), code=130)
    assert "interrupted" in message and "checkpoint" in message


def test_the_installed_command_prints_no_traceback() -> None:
    """The same through the shell: exit code and stderr of `python -m ddpm`."""
    Path("own.yaml").write_text("foo: 1", encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", "ddpm", "check", "--configfile", "own.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("ddpm: foo: unknown key") and "Traceback" not in found.stderr
