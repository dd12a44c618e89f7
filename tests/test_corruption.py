"""Whatever is deleted, cut, flipped, swapped or emptied in a finished tree is named, and healed by two runs."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from corruption import KINDS, TRAINED, Here, Snakemake, Trial, carry_out, content, drawn, grid, sketches, trees

from ddpm.errors import UserError
from ddpm.pipeline import checkpoint, locks, records, running
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.stages import AGGREGATES, STAGES

SEED = 0
NETWORK = "eps/linear/unconditional/seed0"
CELL, OTHER = "eps/linear/none/ddim/seed0", "eps/linear/none/ancestral/seed0"
WEIGHTS = f"networks/{NETWORK}/weights.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with sketches():
        yield trees(tmp_path_factory.mktemp("trees"))


FIXED = {
    "weights that a sample needs": ("finished", "flip", WEIGHTS, f"cells/{CELL}/samples.json"),
    "samples that the figures need": ("finished", "flip", f"cells/{OTHER}/samples.safetensors", "figures/record.json"),
    "bits/dim that the table needs": ("finished", "flip", f"networks/{NETWORK}/likelihood.csv", "table.json"),
    "a table that nobody reads": ("finished", "flip", "table.csv", ""),
    "records of two cells": ("finished", "swap", f"cells/{CELL}/samples.json", ""),
    "a folder in the data's place": ("finished", "folder", "data/images.safetensors", ""),
    "a file in a folder's place": ("finished", "file", f"cells/{CELL}/fidelity.json", ""),
    "a mark": ("finished", "empty", f"fidelity/{NETWORK}.json", ""),
    "a checkpoint": ("interrupted", "flip", f"work/train/{TRAINED}/checkpoint.safetensors", ""),
    "a lock": ("interrupted", "garbage", f"work/train/{TRAINED}/lock-1", ""),
    "a lock that is a link to nothing": ("interrupted", "dangle", f"work/train/{TRAINED}/lock-1", ""),
}  # fmt: skip


@pytest.mark.parametrize("chosen", FIXED.values(), ids=FIXED.keys())
def test_what_was_corrupted(made: dict[str, Path], tmp_path: Path, chosen: tuple[str, str, str, str]) -> None:
    found = carry_out(Trial(*chosen), made, tmp_path / "trial", random.Random(SEED))
    assert not found.wrong, f"{found}\n{found.said}"


@pytest.mark.parametrize("number", range(int(os.environ.get("DDPM_CORRUPTIONS", "5"))))
def test_a_random_corruption(made: dict[str, Path], tmp_path: Path, number: int) -> None:
    """DDPM_CORRUPTIONS=200 for more; `python tests/corruption.py` prints each."""
    rng = random.Random(f"{SEED} {number}")
    found = carry_out(drawn(made, rng), made, tmp_path / "trial", rng)
    assert not found.wrong, f"{found}\n{found.said}"


def test_a_job_that_finds_corrupt_weights(made: dict[str, Path], tmp_path: Path) -> None:
    """It stops before it computes, with one line: the file, both hashes, where it is now; what was made from the good
    file stays, to the byte."""
    shutil.copytree(made["finished"], tmp_path / "tree")
    run = Here(tmp_path / "tree")
    layout = Layout(run.root)
    weights, good = layout.output("train", NETWORK), layout.output("train", NETWORK).read_bytes()
    KINDS["flip"](weights, random.Random(SEED))
    bad, record = weights.read_bytes(), layout.record("sample", OTHER).read_bytes()
    layout.record("sample", CELL).unlink()
    code, said = run.run()
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("ddpm: ")]
    wanted = records.read_record(layout.record("train", NETWORK))["outputs"]["weights.safetensors"]
    (kept,) = layout.root.glob(f"replaced/corrupt-*/networks/{NETWORK}/weights.safetensors")
    assert line == (
        f"ddpm: {weights}: corrupt: its SHA-256 is {records.sha256(kept)}, its record says {wanted}; set aside in "
        f"{kept.parents[5]}: run again, the next `snakemake` makes it again"
    )
    assert kept.read_bytes() == bad and not weights.exists()
    assert run.results().todo["train", NETWORK][0].text == "weights.safetensors: it is missing"
    code, said = run.run()
    assert code == 0 and weights.read_bytes() == good
    assert layout.record("sample", OTHER).read_bytes() == record
    assert f"{layout.record('likelihood', NETWORK)}: already there" in said


@pytest.mark.parametrize("kind", ["flip", "garbage"])
def test_a_table_of_corrupt_bits(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """`ddpm table` on a part of the tree too: it says which file, and the next one leaves that network out; a network
    without a valid result is no mistake."""
    shutil.copytree(made["finished"], tmp_path / "tree")
    run = Here(tmp_path / "tree")
    layout, other = Layout(run.root), "learned/linear/unconditional/seed0"
    path = layout.output("likelihood", NETWORK, "images")
    KINDS[kind](path, random.Random(SEED))
    layout.record("likelihood", other).unlink()
    job, code = run.grid.job("table")
    with pytest.raises(UserError, match=rf"^{path}: corrupt: its SHA-256 is \w+, its record says \w+; set aside in "):
        running.run_stage("table", job, code, str(layout.root), "cpu")
    assert not path.exists() and layout.record("table").exists()
    running.run_stage("table", job, code, str(layout.root), "cpu")
    assert records.read_record(layout.record("table"))["result"]["missing"]


def test_a_corrupt_kept_result_is_not_put_back(made: dict[str, Path], tmp_path: Path) -> None:
    """It is computed instead; --hash names the file and sets it aside."""
    shutil.copytree(made["replaced"], tmp_path / "tree")
    run = Here(tmp_path / "tree")
    (kept,) = run.root.glob(f"replaced/cells/{OTHER}/samples-*/samples.safetensors")
    KINDS["flip"](kept, random.Random(SEED))
    code, said = run.run()
    assert code == 0 and f"samples.json: put back from {kept.parent}" not in said
    assert content(run.root) == content(made["finished"] / "results/tiny")
    code, said = run.verify()
    assert code and said.strip().startswith(f"{kept}: its SHA-256 is ") and len(said.strip().splitlines()) == 1
    assert not kept.exists() and run.verify() == (0, "\n")


def test_verify_names_all_at_once(made: dict[str, Path], tmp_path: Path) -> None:
    """Every file of every record, the tables, the figures and the code among them, though their sizes and times are
    right; then the next run misses them."""
    shutil.copytree(made["finished"], tmp_path / "tree")
    run = Here(tmp_path / "tree")
    layout = Layout(run.root)
    records = {job: run.results().record(*job) for job in [*run.grid.jobs, *((name, "") for name in AGGREGATES)]}
    outputs = {
        Path(os.path.normpath(layout.record(*job).parent / name)) for job in records for name in records[job]["outputs"]
    }
    hit = outputs | set((run.root / "code").glob("*.json"))
    assert len(outputs) == 54
    for path in hit:
        KINDS["flip"](path, random.Random(SEED))
    assert set(run.results().todo) == {("table", ""), ("page", "")}  # the tables are always hashed
    code, said = run.verify()
    assert code and {line.split(": ")[0] for line in said.strip().splitlines()} == {str(path) for path in hit}
    assert not any(path.exists() for path in outputs)
    assert {job for job in run.results().todo if job[0] in ("data", "train")} == {
        job for job in run.grid.jobs if job[0] in ("data", "train")
    }


def test_a_lock_in_which_something_else_stands(tmp_path: Path) -> None:
    """Nothing that stands in a lock ends the job that looks at it; it counts until it has been silent for long."""
    texts = (b"", b"\xff\xfe", b"[1]", b"{", b'{"machine": "%s"}' % locks.machine().encode(), b"[[1, 2]]", b"null")
    for text in texts:
        (tmp_path / "lock-7").write_bytes(text)
        begun = time.monotonic()
        with locks.held(tmp_path, beat=0.05, stale=0.2):
            assert time.monotonic() - begun > 0.2
            assert locks.holder(tmp_path)
        tmp_path.mkdir(exist_ok=True)


def test_snakemake_heals(made: dict[str, Path], tmp_path: Path) -> None:
    """Through Snakemake itself, all at once: a run that names the corrupt weights, and one that makes all again."""
    shutil.copytree(made["finished"], tmp_path / "tree")
    run, rng = Snakemake(tmp_path / "tree"), random.Random(SEED)
    layout = Layout(run.root)
    log = layout.log("sample", CELL)
    log.parent.mkdir(parents=True)
    log.write_text("a log")
    corrupted = {
        log: "folder",
        layout.output("train", NETWORK): "flip",
        layout.record("sample", CELL): "empty",
        layout.record("sample", "learned/linear/none/ancestral/seed0"): "folder",
        layout.measured("baselines"): "empty",
        layout.output("sample", "score/cosine/cfg-w1/ddim/seed0"): "dangle",
        layout.root / "table.csv": "flip",
        layout.root / "table.json": "dangle",
        layout.root / "figures/samples.png": "truncate",
    }
    for path, kind in corrupted.items():
        KINDS[kind](path, rng)
    shutil.rmtree(layout.root / "code")
    (layout.root / "code").write_text("a file")
    first, said = run.run()
    place = layout.output("train", NETWORK).relative_to(run.folder)
    assert first and f"{place}: corrupt: its SHA-256 is " in said
    second, more = run.run()
    assert second == 0, more
    wanted, found = content(made["finished"] / "results/tiny"), content(run.root)
    # The pictures of the trees are coarse.
    assert [
        k for k in wanted if not k.endswith(".png") and wanted[k] != found[k]
    ] == [] and found.keys() == wanted.keys()
    run.verify()  # writes what stands for the code again
    assert run.verify()[0] == 0 and not run.results().todo and not run.results().unmarked


def test_a_checkpoint_knows_its_bytes(made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One bit of a tensor, of a name or of the state: the checkpoint is not what it says."""
    path = made["interrupted"] / f"results/tiny/work/train/{TRAINED}/checkpoint.safetensors"
    tensors, about = records.read_tensors(path)
    name = next(iter(tensors))
    flipped = tensors[name].clone()
    flipped.view(-1)[0] += 1
    others = (
        (tensors | {name: flipped}, about),
        ({f"{k}.": v for k, v in tensors.items()}, about),
        ({k: v.reshape(1, -1) for k, v in tensors.items()}, about),
        (tensors, about | {"state": about["state"].replace('"at": 2', '"at": 1')}),
    )
    assert checkpoint.digest(tensors, about) == about["digest"]
    assert about["digest"] not in {checkpoint.digest(*other) for other in others}
    shutil.copytree(made["interrupted"] / "results", tmp_path / "results")
    layout = Layout(tmp_path / "results/tiny")
    job, code = grid().job("train", TRAINED)
    recorder = records.Recorder("train", job, code, layout.inputs("train", TRAINED, job))
    held = checkpoint.Checkpoint(layout.checkpoint("train", TRAINED), recorder, STAGES["train"].environment(job))
    assert held.load()[1]["at"] == 20
    records.write_tensors(held.path, tensors | {name: flipped}, about)
    assert held.load()[1]["at"] == 19  # the one before it
    assert f"{held.path}: checkpoint discarded: corrupt" in capsys.readouterr().err
