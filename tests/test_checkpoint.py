"""Sampling and likelihood go on where they were interrupted, and end in the same bytes."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import copy
import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from interrupted import BATCHES, CELL, JOBS, NETWORK, counted, interrupt, layouts, result, run, small, trained  # noqa: F401 - fixtures
from safetensors.torch import load_file

from ddpm import compute
from ddpm.pipeline import checkpoint, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.stages import sample as sampling
from ddpm.stages import train as training

torch.set_num_threads(1)


@pytest.mark.parametrize(("stage", "name"), JOBS)
@pytest.mark.parametrize(("stop", "precision"), [(1, "auto"), (2, "auto"), (1, "float32")])
def test_a_resumed_job_ends_in_the_same_bytes(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, stage: str, name: str, stop: int, precision: str
) -> None:
    """Interrupted in any batch and run again: only the batches that are left are run, to the twin's result."""
    (one, two), grid = layouts, small(compute={"precision": precision})
    kept = interrupt(stage, name, one, stop, grid=grid)
    assert kept.exists()
    seen = counted(monkeypatch, stage)
    for layout, batches in ((one, BATCHES[stage] - stop), (two, 2 * BATCHES[stage] - stop)):
        run(stage, name, layout, grid)
        assert len(seen) == batches
    assert result(stage, name, one) == result(stage, name, two)
    assert not kept.exists() and not list(one.root.rglob(".*"))


@pytest.mark.parametrize(("stage", "name"), [("sample", CELL), ("train", NETWORK)])
def test_attempts_of_several_precisions_are_recorded(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, stage: str, name: str
) -> None:
    """A job that goes on where there is no bfloat16 says that both had a part in it, each once."""
    one, _ = layouts
    one.record(stage, name).unlink(missing_ok=True)
    for has in (True, True, False):
        monkeypatch.setattr(compute, "has_bfloat16", lambda device, has=has: has)
        module, attribute = {"sample": (sampling, "reaches"), "train": (training, "learning_rate")}[stage]
        done = getattr(module, attribute)
        calls: list[int] = []

        def stop(*arguments: object, done: Callable = done, calls: list[int] = calls, has: bool = has) -> object:
            calls.append(1)
            if has and len(calls) == 2:
                raise KeyboardInterrupt
            return done(*arguments)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(module, attribute, stop)
            run(stage, name, one)
    assert result(stage, name, one)[0]["compute"]["precision"] == "bfloat16, then float32"


@pytest.mark.parametrize(("stage", "name"), JOBS)
def test_a_job_that_stopped_after_its_last_batch(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, stage: str, name: str
) -> None:
    """All batches in the checkpoint and no result: nothing is run twice."""
    one, two = layouts
    with monkeypatch.context() as patch:
        patch.setattr(records.Recorder, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(stage, name, one)
    seen = counted(monkeypatch, stage)
    run(stage, name, one)
    assert seen == []
    run(stage, name, two)
    assert result(stage, name, one) == result(stage, name, two)


def test_an_interval_without_a_checkpoint(layouts: tuple[Layout, Layout]) -> None:
    """Before the first interval is over nothing is written."""
    assert not interrupt("sample", CELL, layouts[0], 2, seconds=1000).exists()


def other_sampler() -> Grid:
    return small(samplers={"ancestral": {"steps": 5}})


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (other_sampler, "sampler.steps = 4, now 5"),
        (lambda: small(sampling={"images": 41}), "sampling.images = 40, now 41"),
    ],
)
def test_a_checkpoint_of_another_configuration(
    layouts: tuple[Layout, Layout], capsys: pytest.CaptureFixture, grid: Callable[[], Grid], reason: str
) -> None:
    """The file, the key and both values are named, and the job starts from the beginning."""
    one, two = layouts
    kept = interrupt("sample", CELL, one, 2)
    capsys.readouterr()
    run("sample", CELL, one, grid())
    said = capsys.readouterr().err
    assert f"{kept}: checkpoint of another job" in said and reason in said
    run("sample", CELL, two, grid())
    assert result("sample", CELL, one) == result("sample", CELL, two)


@pytest.mark.parametrize("stop", [None, 0, 3])
def test_a_checkpoint_of_another_configuration_is_kept(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    """A change that is taken back costs no batch, whether the other job ended (None), began, or left a checkpoint."""
    one, two = layouts
    kept = interrupt("sample", CELL, one, 2)
    if stop is None:
        run("sample", CELL, one, other_sampler())
        one.record("sample", CELL).unlink()
    else:
        interrupt("sample", CELL, one, stop, grid=other_sampler())
    seen = counted(monkeypatch, "sample")
    run("sample", CELL, one)
    assert len(seen) == BATCHES["sample"] - 2
    run("sample", CELL, two)
    assert result("sample", CELL, one) == result("sample", CELL, two)
    assert not kept.exists() and len([*kept.parent.glob("other-*")]) == (stop == 3)
    if stop == 3:  # the other job's own
        seen.clear()
        run("sample", CELL, one, other_sampler())
        assert len(seen) == BATCHES["sample"] - 3 and not list((one.root / "work").rglob("*.safetensors"))


def test_a_checkpoint_that_cannot_be_kept(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On a full disk the other job goes on, and says so."""
    one, two = layouts
    interrupt("sample", CELL, one, 2)
    capsys.readouterr()
    make = Path.mkdir

    def full(path: Path, *of: object, **named: object) -> None:
        if path.name.startswith("other-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *of, **named)

    monkeypatch.setattr(Path, "mkdir", full)
    for layout in (one, two):
        run("sample", CELL, layout, other_sampler())
    assert "checkpoint of another job, not kept (No space left on device): it belongs to" in capsys.readouterr().err
    assert result("sample", CELL, one) == result("sample", CELL, two)


def test_a_checkpoint_of_other_weights(layouts: tuple[Layout, Layout], capsys: pytest.CaptureFixture) -> None:
    """Weights that were trained anew since: the images of the old ones are not used."""
    one, _ = layouts
    interrupt("sample", CELL, one, 2)
    weights = load_file(one.output("train", NETWORK))
    records.write_tensors(one.output("train", NETWORK), {k: v * 1.5 for k, v in weights.items()})
    capsys.readouterr()
    run("sample", CELL, one)
    said = capsys.readouterr().err
    assert all(text in said for text in ("it was made from other weights", "the job starts from the beginning"))


def test_a_checkpoint_of_other_packages(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A result is of one version of each package; one that the stage does not use may differ."""
    one, _ = layouts
    now = records.versions()
    for package, discarded in (("torch-fidelity", False), ("torch", True)):
        shutil.rmtree(one.work("sample", CELL), ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr("ddpm.pipeline.stage.versions", lambda package=package: now | {package: "0.1"})
            interrupt("sample", CELL, one, 2)
        capsys.readouterr()
        interrupt("sample", CELL, one, 0)
        said = capsys.readouterr().err
        assert (f": it was made with torch 0.1, this is {now['torch']}" in said) == discarded
        assert ("going on from this checkpoint" in said) != discarded


@pytest.mark.parametrize("size", [0, 7, 100, -1])
@pytest.mark.parametrize(("stage", "name"), [JOBS[0], JOBS[-1]])
def test_a_torn_checkpoint(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    stage: str, name: str, size: int,
) -> None:  # fmt: skip
    """Cut anywhere, it is named, and the one before it stands in for it: one batch is run again, none twice more."""
    one, two = layouts
    kept = interrupt(stage, name, one, 2)
    kept.write_bytes(kept.read_bytes()[:size])
    capsys.readouterr()
    seen = counted(monkeypatch, stage)
    run(stage, name, one)
    said = capsys.readouterr().err
    assert f"{kept}: checkpoint discarded" in said and f"{kept.with_suffix('.previous.safetensors')}: going on" in said
    assert len(seen) == BATCHES[stage] - 1
    run(stage, name, two)
    assert result(stage, name, one) == result(stage, name, two)
    assert not list((one.root / "work").rglob("*.safetensors"))


def test_a_torn_checkpoint_does_not_replace_a_whole_one(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Torn, gone on from the one before, interrupted, torn again: never back at the start until both are torn."""
    one, two = layouts
    kept = interrupt("sample", CELL, one, 2)
    previous = kept.with_suffix(".previous.safetensors")
    for stop in (0, 1, 1):  # before and after the next checkpoint
        kept.write_bytes(kept.read_bytes()[:100])
        interrupt("sample", CELL, one, stop)
        assert f"{previous}: going on" in capsys.readouterr().err
    for path in (kept, previous):
        path.write_bytes(path.read_bytes()[:100])
    seen = counted(monkeypatch, "sample")
    run("sample", CELL, one)
    assert (
        "nothing to go on from, the job starts from the beginning" in capsys.readouterr().err
        and len(seen) == BATCHES["sample"]
    )
    run("sample", CELL, two)
    assert result("sample", CELL, one) == result("sample", CELL, two)


def test_a_full_disk_costs_the_checkpoint_only(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """No space for a checkpoint is said, and the job goes on to the same result."""
    one, two = layouts

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        run("sample", CELL, one)
    said = capsys.readouterr().err
    kept = one.checkpoint("sample", CELL)
    assert said.count(f"{kept}: checkpoint not written, the job goes on: No space left on device") == 4
    run("sample", CELL, two)
    assert result("sample", CELL, one) == result("sample", CELL, two)


def test_seconds_add_up(layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's seconds hold those of the attempts before it."""
    one, _ = layouts
    kept = interrupt("sample", CELL, one, 2)
    tensors, about = records.read_tensors(kept)
    aged = copy.copy(about) | {"state": about["state"].replace('"seconds": ', '"seconds": 100')}
    records.write_tensors(kept, tensors, aged | {"digest": checkpoint.digest(tensors, aged)})
    run("sample", CELL, one)
    assert 1000 <= records.read_record(one.record("sample", CELL))["costs"]["seconds"] < 2000
