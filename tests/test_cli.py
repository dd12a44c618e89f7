"""The command: one cell's stages without Snakemake, and one message instead of a traceback for every mistake."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ddpm
from ddpm import cli
from ddpm.errors import UserError
from ddpm.pipeline import config, machine, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.locks import held
from ddpm.pipeline.records import canonical
from ddpm.pipeline.validity import valid

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
CELL = "eps/linear/none/ddim/seed0"
NETWORK = "eps/linear/unconditional/seed0"
OVERLAY = {
    "results": "out",
    "device": "cpu",
    "network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None},
    "training": {"steps": 6, "batch": 16, "warmup": 2},
    "schedules": {"linear": {"steps": 100}, "cosine": {"steps": 100}},
    "samplers": {"ancestral": {"steps": 4}, "ddim": {"steps": 4}},
    "grid": [
        {
            "objective": ["eps", "learned"],
            "schedule": ["linear"],
            "guidance": ["none"],
            "sampler": ["ancestral", "ddim"],
        },
        {"objective": ["score"], "schedule": ["linear"], "guidance": ["cfg-w1"], "sampler": ["ddim"]},
    ],
    "sampling": {"images": 24, "batch": 16},
    "classifier": {"width": 4, "features": 8, "epochs": 1},
    "likelihood": {"images": 4, "times": 3},
}


def overlay(**changes: object) -> list[str]:
    """Write the overlay into the current folder; the options that name it."""
    Path("tiny.yaml").write_text(yaml.safe_dump(config.merge(OVERLAY, changes)), encoding="utf-8")
    return ["--configfile", "tiny.yaml"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, as the working directory; what the command sets in the environment is undone."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv("DDPM_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    overlay()
    return tmp_path


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one cell up to its fidelity; read only."""
    root = tmp_path_factory.mktemp("sampled")
    grid = config.check(whole())
    for stage, name in [*grid.needed("fidelity", CELL), ("likelihood", NETWORK)]:
        cli.run_stage(stage, *grid.job(stage, name), str(root), "cpu")
    return root


def whole(**changes: object) -> dict:
    """The configuration that the overlay makes of the default one."""
    return config.merge(config.read(ROOT / "config.yaml"), config.merge(OVERLAY, changes))


@pytest.fixture
def done(project: Path, sampled: Path) -> Layout:
    """The working directory with that cell's results."""
    shutil.copytree(sampled, project / "out")
    return Layout(project / "out")


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ddpm arguments`; progress bars are left out."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    return code, out, "\n".join(line for line in lines if "step/s" not in line and "%|" not in line)


def refused(capsys: pytest.CaptureFixture, *arguments: str, code: int = 2) -> str:
    """The message of a command that must fail: short, without a traceback, and with nothing on stdout."""
    found, out, err = run(capsys, *arguments)
    err = "\n".join(line for line in err.splitlines() if not line.endswith(": already there"))
    assert found == code, err
    assert out == ""
    assert err.startswith("ddpm: ") and "Traceback" not in err
    assert len(err.splitlines()) <= 3
    return err


# ---- what it does -----------------------------------------------------------------------------------------


def test_check_lists_the_cells(capsys: pytest.CaptureFixture) -> None:
    """Every cell by its name, n/a with the reason, and the sum; without an overlay it is config.yaml's."""
    code, out, _ = run(capsys, "check", *overlay(seeds=[0, 1]))
    lines = out.splitlines()
    assert code == 0
    assert lines[:2] == ["eps/linear/none/ancestral/seed0", "eps/linear/none/ancestral/seed1"]
    assert lines[6].startswith("learned/linear/none/ddim/seed0   n/a: this sampler sets its own variance")
    assert lines[-1] == "8 cells to run on 6 networks, 2 n/a"
    code, out, _ = run(capsys, "check")
    assert code == 0 and out.splitlines()[-1] == "23 cells to run on 7 networks, 1 n/a"


def test_version_and_help(capsys: pytest.CaptureFixture) -> None:
    """The version is the package's; help names every command."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"ddpm {ddpm.__version__}\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(
        f"\n    {name}" in shown for name in ("init", "train", "sample", "likelihood", "fidelity", "check", "table")
    )


def test_fidelity_runs_what_it_needs(capsys: pytest.CaptureFixture, sampled: Path) -> None:
    """From nothing to one cell's FID: data, network, samples, classifier, where Snakemake would put them."""
    code, out, err = run(capsys, "fidelity", CELL, *overlay())
    assert code == 0, err
    layout, found = Layout(Path("out")), json.loads(out)
    assert found["status"] == "ok" and found["images"] == 24 and found["fid"] > 0
    grid = config.check(whole())
    for stage, name in grid.needed("fidelity", CELL):
        assert valid(layout.record(stage, name), *grid.job(stage, name))
    assert found["fid"] == records.read_record(Layout(sampled).record("fidelity", CELL))["result"]["fid"]
    assert not layout.record("likelihood", NETWORK).exists()


def test_threads_are_fixed_before_inception_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It brings torch and scipy, which look at them once."""
    variables, seen = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), []

    def load(_: dict) -> None:
        seen.extend(os.environ[variable] for variable in variables)
        raise UserError("no weights")

    for variable in variables:
        monkeypatch.setenv(variable, "7")
    monkeypatch.setattr(machine, "load_extractor", load)
    assert cli.main(["fidelity", CELL, *overlay()]) == 2
    assert capsys.readouterr().err == "ddpm: no weights\n" and seen == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("command", "name", "key"),
    [
        ("train", NETWORK, "final_loss"),
        ("sample", CELL, "nfe"),
        ("fidelity", CELL, "fid_binarized"),
        ("likelihood", NETWORK, "bound_bits_per_dim"),
    ],
)
def test_a_second_call_says_that_it_is_there(
    capsys: pytest.CaptureFixture, done: Layout, command: str, name: str, key: str
) -> None:
    """Nothing is run again, and the result is printed all the same; `--again` runs that stage and no other."""
    record = done.record(command, name)
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()}
    code, out, err = run(capsys, command, name, *overlay())
    assert code == 0 and f"{Path('out') / record.relative_to(done.root)}: already there" in err
    stored = records.read_record(record)
    assert json.loads(out) == {"status": "ok"} | stored["result"] and key in json.loads(out)
    assert {path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()} == before
    code, _, err = run(capsys, command, name, *overlay(), "--again")
    assert code == 0 and f"{Path('out') / record.relative_to(done.root)}: already there" not in err
    assert record.stat().st_mtime_ns > before[record]
    assert records.read_record(record)["result"] == stored["result"]
    touched = {p for p in before if p.stat().st_mtime_ns != before[p]}
    assert {p.parent for p in touched} == {record.parent}


def test_an_edited_result_is_made_again(capsys: pytest.CaptureFixture, done: Layout) -> None:
    """Weights that are no longer those of the record are trained anew, to the same bytes."""
    weights = done.output("train", NETWORK)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    code, _, _ = run(capsys, "train", NETWORK, *overlay())
    assert code == 0 and weights.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "command", "name", "output"),
    [
        ({"training": {"steps": 7}}, "sample", CELL, "samples.safetensors"),
        ({"training": {"steps": 7}}, "likelihood", NETWORK, "likelihood.json"),
        ({"samplers": {"ddim": {"eta": 1.0}}}, "fidelity", CELL, "fidelity.json"),
        ({"classifier": {"epochs": 2}}, "fidelity", CELL, "fidelity.json"),
    ],
    ids=["network then samples", "network then bound", "samples then FID", "classifier then FID"],
)
def test_what_follows_from_a_change_is_made_again(
    capsys: pytest.CaptureFixture, done: Layout, change: dict, command: str, name: str, output: str
) -> None:
    """A result whose inputs were made anew is not `already there`: it is what a fresh folder would give."""
    code, out, err = run(capsys, command, name, *overlay(**change))
    assert code == 0, err
    grid = config.check(whole(**change))
    for stage, of in grid.needed(command, name):
        cli.run_stage(stage, *grid.job(stage, of), "fresh", "cpu")
    fresh = records.read_record(Layout(Path("fresh")).record(command, name))
    assert json.loads(out) == {"status": "ok"} | fresh["result"]
    assert records.read_record(done.record(command, name))["inputs"] == fresh["inputs"]
    if output.endswith("safetensors"):
        assert done.output("sample", name).read_bytes() == Layout(Path("fresh")).output("sample", name).read_bytes()


@pytest.mark.parametrize("place", ["file", "standard input"])
def test_a_job_that_no_command_line_could_hold(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In a file, or on standard input: the same result as where it is given as text; a missing file is named."""
    job, code = config.check(whole()).job("data")
    Path("job.json").write_text(json.dumps(job, indent=1))
    monkeypatch.setattr("sys.stdin", io.StringIO(canonical(job)))
    options = ["--code", code, "--results", "out", "--device", "cpu"]
    assert run(capsys, "job", "data", "--job", "@job.json" if place == "file" else "-", *options)[0] == 0
    assert valid(Layout(Path("out")).record("data"), job, code)
    code, _, err = run(capsys, "job", "data", "--job", "@nothing.json", *options)
    assert code and "nothing.json" in err and len(err.splitlines()) == 1


def test_a_job_as_snakemake_calls_it(capsys: pytest.CaptureFixture) -> None:
    """Stage, job, code, folder and device as text give the record that the configuration expects."""
    grid = config.check(whole())
    job, code = grid.job("data")
    arguments = ["--job", canonical(job), "--code", code, "--results", "out", "--device", "cpu"]
    assert run(capsys, "job", "data", *arguments)[0] == 0
    assert valid(Layout(Path("out")).record("data"), job, code)


# ---- what it refuses --------------------------------------------------------------------------------------


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


def test_a_batch_measures_only_what_changed(capsys: pytest.CaptureFixture, done: Layout) -> None:
    """Of two cells with valid records the one whose samples were drawn again is measured, and only that one."""
    grid = config.check(whole())
    other = "eps/linear/none/ancestral/seed0"
    batch, code = grid.batch(NETWORK)
    assert batch["names"] == [other, CELL]
    cli.run_stage("sample", *grid.job("sample", other), "out", "cpu")
    options = ["--job", canonical(batch), "--code", code, "--results", "out", "--device", "cpu", "--batch", NETWORK]
    first = done.record("fidelity", CELL).read_bytes()
    assert run(capsys, "job", "fidelity", *options)[0] == 0
    assert done.record("fidelity", CELL).read_bytes() == first
    assert valid(done.record("fidelity", other), *grid.job("fidelity", other))
    found = json.loads(done.measured(NETWORK).read_text())
    assert found == {name: records.read_record(done.record("fidelity", name))["digest"] for name in (other, CELL)}
    second = done.record("fidelity", other).read_bytes()
    done.output("sample", CELL).write_bytes(done.output("sample", other).read_bytes())
    record = records.read_record(done.record("sample", CELL))
    record |= {k: records.read_record(done.record("sample", other))[k] for k in ("outputs", "bytes")}
    records.write_json(done.record("sample", CELL), record | {"digest": records.digest(record)})
    assert run(capsys, "job", "fidelity", *options)[0] == 0
    assert done.record("fidelity", other).read_bytes() == second
    assert done.record("fidelity", CELL).read_bytes() != first
    measured = records.read_record(done.record("fidelity", CELL))["result"]
    assert measured == json.loads(second)["result"]


def test_a_table_measures_what_was_sampled(capsys: pytest.CaptureFixture, done: Layout) -> None:
    """A cell whose siblings were never sampled is measured and stands in the table, "1 of 5 cells"."""
    done.record("fidelity", CELL).unlink()
    code, out, _ = run(capsys, "table", *overlay(objectives={"learned": {"variance": "fixed", "vlb_weight": None}}))
    assert code == 0 and out == "out/table.csv: 1 of 5 cells\n"
    assert valid(done.record("fidelity", CELL), *config.check(whole()).job("fidelity", CELL))


def test_status_of_a_cell(capsys: pytest.CaptureFixture, done: Layout) -> None:
    """Its state, and for each of its jobs the record, the log, the command and the numbers; an unknown one is told."""
    code, out, _ = run(capsys, "status", CELL, *overlay())
    assert code == 0 and out.startswith(f"{CELL}: finished\n")
    for stage, name in (("train", NETWORK), ("sample", CELL), ("fidelity", CELL), ("likelihood", NETWORK)):
        assert f"{stage} {name}: ok\n" in out and f"ddpm {stage} {name}\n" in out
        assert str(Path("out") / done.record(stage, name).relative_to(done.root)) in out
    assert "commit" in out and "nfe 4" in out and str(Path("out/cells") / CELL / "samples.safetensors") in out
    assert "close are" in refused(capsys, "status", CELL.replace("ddim", "dimm"), *overlay())


def test_status_without_results(capsys: pytest.CaptureFixture) -> None:
    """All is missing, and nothing is known of what it costs."""
    code, out, _ = run(capsys, "status", *overlay())
    lines = out.splitlines()
    assert code == 0 and lines[0] == "out: 0 of 4 cells (4 missing, 1 n/a)"
    assert any("jobs of unknown cost" in line for line in lines)
    assert not Path("out").exists()


def test_status_of_a_job_that_runs(capsys: pytest.CaptureFixture, done: Layout) -> None:
    """Whoever holds a job's lock is named; a dead holder is nobody."""
    with held(done.work("sample", CELL)):
        code, out, _ = run(capsys, "status", "--json", *overlay())
        assert code == 0
        assert json.loads(out)["cells"][CELL]["state"] == "running"
        assert f"process {os.getpid()} on " in json.loads(out)["cells"][CELL]["reason"]
        (lock,) = done.work("sample", CELL).glob("lock-*")
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"born": "0"}))
        assert json.loads(run(capsys, "status", "--json", *overlay())[1])["cells"][CELL]["state"] == "finished"
