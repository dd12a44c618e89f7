"""Results and their records: whole files or none, and a record that only fits what it was made from."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from ddpm.errors import UserError
from ddpm.pipeline import history, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.validity import valid

ROOT = Path(__file__).parent.parent
JOB = {"name": "a", "steps": 3}


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def written(folder: Path) -> Path:
    """A finished job's record with one input and two outputs beside it."""
    (folder / "in.bin").write_bytes(b"input")
    (folder / "one.bin").write_bytes(b"one")
    (folder / "two.bin").write_bytes(b"two")
    recorder = records.Recorder("train", JOB, "0" * 16, {"data": folder / "in.bin"})
    recorder.finish(folder / "record.json", [folder / "one.bin", folder / "two.bin"], steps=3)
    return folder / "record.json"


# ---- atomic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    """Whatever is raised while writing, the file is as it was."""
    path = tmp_path / "result.csv"
    path.write_text("old")
    with pytest.raises(type(error)), records.atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.csv"]


def test_a_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when the data reaches it counts as a failure."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "result.csv"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), records.atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result.csv"]


def test_success_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    """Until the end readers see the old file; the new one has the permissions of an ordinary one."""
    path = tmp_path / "deep" / "er" / "result.safetensors"
    with records.atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".safetensors"
    with records.atomic(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names(path.parent) == ["result.safetensors"]
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_json_refuses_what_no_reader_takes(tmp_path: Path) -> None:
    """NaN is no JSON: nothing is written."""
    path = tmp_path / "record.json"
    records.write_json(path, {"ü": 0.1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 0.1} and "ü" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": 0.1}
    assert names(tmp_path) == ["record.json"]


# ---- records ----------------------------------------------------------------------------------------------


def test_a_record_holds_what_the_result_depends_on(tmp_path: Path) -> None:
    """Job, code, hashes, status and numbers, in the form that the schema states."""
    record = records.read_record(written(tmp_path))
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "record.schema.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(record, schema)
    assert record["job"] == JOB and record["code"] == "0" * 16
    # sha256sum of "input", "one" and "two".
    assert record["inputs"] == {"data": "c96c6d5be8d08a12e7b5cdc1b207fa6b2430974c86803d8891675e76fd992c20"}
    assert record["outputs"] == {
        "one.bin": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "two.bin": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
    }
    assert record["status"] == "ok" and record["result"] == {"steps": 3}
    assert 0 <= record["costs"]["seconds"] < 60 and record["costs"]["peak_memory_mb"] > 1
    assert record["versions"]["python"].count(".") == 2 and "torch" in record["versions"]


def test_peak_memory_is_of_this_process_alone() -> None:
    """Not of the one that started it, which may have been larger."""
    says = "from ddpm.pipeline.records import peak_memory_mb; print(peak_memory_mb())"
    starts = f"large = b'1' * 3 * 10**8; import subprocess, sys; subprocess.run([sys.executable, '-c', {says!r}])"
    small, large = (
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for code in (says, starts)
    )
    assert small > 5 and large == pytest.approx(small, abs=20)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        (b'{"format": 1, "jo', "no JSON"),
        (b"", "no JSON"),
        (b"\xff\xfe{}", "no JSON"),
        (b'{"format": 99}', "format 99"),
        (b'{"job": {}}', "format None"),
        (b"[1]", "format list"),
    ],
    ids=["missing", "torn", "empty", "binary", "newer", "without format", "list"],
)
def test_a_record_that_cannot_be_read_names_its_file(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Missing, torn or of another format: one message with the file, what is wrong and what to do."""
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        records.read_record(path)
    message = str(caught.value)
    assert str(path) in message and said in message and "run" in message
    assert len(message.splitlines()) == 1


def test_a_fresh_record_matches(tmp_path: Path) -> None:
    """Same job, same code, outputs as they were left; the order of keys does not count."""
    path = written(tmp_path)
    assert valid(path, JOB, "0" * 16)
    assert valid(path, dict(reversed(JOB.items())), "0" * 16)


@pytest.mark.parametrize(("job", "code"), [(JOB | {"steps": 4}, "0" * 16), (JOB, "1" * 16), ({}, "0" * 16)])
def test_a_record_of_another_job_does_not_match(tmp_path: Path, job: dict, code: str) -> None:
    """Another configuration or other code."""
    assert not valid(written(tmp_path), job, code)


@pytest.mark.parametrize("output", ["one.bin", "two.bin"])
def test_an_edited_or_missing_output_does_not_match(tmp_path: Path, output: str) -> None:
    """One changed byte in one output is enough."""
    path = written(tmp_path)
    (tmp_path / output).write_bytes(b"twO")
    assert not valid(path, JOB, "0" * 16)
    (tmp_path / output).unlink()
    assert not valid(path, JOB, "0" * 16)


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', "[]"])
def test_a_torn_record_does_not_match(tmp_path: Path, content: str) -> None:
    """What cannot be read is no result."""
    path = written(tmp_path)
    path.write_text(content)
    assert not valid(path, JOB, "0" * 16)


def test_the_commit_is_that_of_the_project() -> None:
    """A full hash, or nothing where there is no git."""
    found = records.commit()
    if found["commit"] is None:
        assert found["dirty"] is None
    else:
        assert len(found["commit"]) == 40 and int(found["commit"], 16) >= 0
        assert isinstance(found["dirty"], bool)


def test_a_half_replaced_result_stays_kept(tmp_path: Path) -> None:
    """A job that fails between its files and its record: what it began to replace is kept whole, or not at all."""
    layout, name = Layout(tmp_path), "eps/linear/unconditional/seed0"
    record = layout.record("train", name)
    files = [*layout.outputs("train", name), record]
    for path in files[:-1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    records.Recorder("train", JOB, "0" * 16, {}).finish(record, files[:-1])
    old = {path.name: path.read_bytes() for path in files}
    folder = history.archive(layout, "train", name)
    with records.atomic(files[0]) as temporary:
        temporary.write_bytes(b"new")
    history.discard(folder, record)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old
    for path in files:
        path.unlink()
        path.hardlink_to(folder / path.name)
    history.discard(folder, record)
    assert not folder.exists() and {p.name: p.read_bytes() for p in files} == old
