"""The command: one cell's stages without Snakemake, what follows from a change, and what is there."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import io
import json
import os
from pathlib import Path

import pytest
import torch
from commands import CELL, NETWORK, done, overlay, project, refused, run, sampled, whole  # noqa: F401 - fixtures

import ddpm
from ddpm import cli
from ddpm.errors import UserError
from ddpm.pipeline import config, machine, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.locks import held
from ddpm.pipeline.records import canonical
from ddpm.pipeline.validity import valid

torch.set_num_threads(1)


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
