"""Files, machines and records that are not what they should be: one line each, before anything runs."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from project import DEFAULT, ROOT, said

from ddpm.errors import UserError
from ddpm.pipeline import config, history, machine, records, running, status
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results

# ---- files ------------------------------------------------------------------------------------------------

# Ten lines for 9¹⁰ values.
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
FILES = {
    "deep list": ("seeds: " + "[" * 10000 + "]" * 10000, "line 1: nested more than 20 deep"),
    "deep mapping": ("a: " + "{a: " * 10000 + "1" + "}" * 10000, "line 1: nested more than 20 deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(2000)), "line 21: nested more than 20 deep"),
    "bomb": (BOMB, "more than 100000 values once its aliases"),
    "itself": ("seeds: &a [*a]", "more than 100000 values once its aliases"),
    "itself as a mapping": ("training: &a {steps: *a}", "more than 100000 values once its aliases"),
    "digits": ("seeds: [" + "9" * 10000 + "]", "line 1: Exceeds the limit"),
    "date": ("a: 1\nseeds: [2026-13-45]", "line 2: month must be in 1..12"),
    "list": ("- a", "holds list; a configuration is a mapping of keys to values"),
    "empty": ("", "holds NoneType; a configuration is a mapping of keys to values"),
    "object": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "two documents": ("a: 1\n---\na: 2", "line 2: but found another document"),
}


@pytest.mark.parametrize(("text", "cause"), FILES.values(), ids=FILES.keys())
def test_a_file_that_cannot_be_a_configuration_is_refused_in_one_line(tmp_path: Path, text: str, cause: str) -> None:
    """The file, the line where there is one, and the cause, without a traceback and at once."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        config.read(ROOT / "config.yaml", path)
    assert str(caught.value).startswith(f"{path}: ") and cause in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400
    assert time.process_time() - start < 2


def test_keys_that_stand_twice_and_files_that_cannot_be_read_come_together(tmp_path: Path) -> None:
    """Of every file, each with its lines."""
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("training: {steps: 500, steps: 600}\nseeds: [1]\ntraining:\n  batch: 16\n")
    with pytest.raises(UserError) as caught:
        config.read(ROOT / "config.yaml", one, tmp_path, two)
    assert str(caught.value).splitlines() == [
        f"{one}: line 1: the key 'steps' stands in line 1 already; keep one",
        f"{one}: line 3: the key 'training' stands in line 1 already; keep one",
        f"{tmp_path}: cannot be read (Is a directory); it must be a file of YAML",
        f"{two}: no such configuration file",
    ]


# ---- the machine ------------------------------------------------------------------------------------------

LAYERS = {"Conv2d_1a_3x3.conv.weight": 1, "Mixed_7c.branch_pool.conv.weight": 2, "fc.weight": 3, "fc.bias": 4}
TENSORS = {name: torch.zeros(size) for name, size in LAYERS.items()}
INCEPTION = "{fidelity: {extractor: inception, weights: %s}}"


def test_weights_that_may_be_inceptions_are_accepted(tmp_path: Path) -> None:
    """Both formats of torch.save; a name that ends in the digits of the file's SHA-256."""
    torch.save(TENSORS, tmp_path / "new.pth")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    digits = records.sha256(tmp_path / "new.pth")[:8]
    shutil.copy(tmp_path / "new.pth", tmp_path / f"named-{digits}.pth")
    for name in ("new.pth", "old.pth", f"named-{digits}.pth"):
        assert said(INCEPTION % (tmp_path / name), "mnist", *machine.checks(cluster=True)) == [], name


def test_weights_that_cannot_be_inceptions_are_refused(tmp_path: Path) -> None:
    """Missing, a folder, text, other tensors, cut, and another content than the name says: before anything runs."""
    torch.save(TENSORS, tmp_path / "whole.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(content)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("weights")
    # Deflated, as other tools would write it: with one byte of the pickle damaged, and encrypted as its flags say.
    for name in ("damaged.pth", "locked.pth"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.pkl", bytes(1000))
    packed = bytearray((tmp_path / "damaged.pth").read_bytes())
    packed[30 + len("data.pkl")] = 0xFF  # the first byte after the member's header: no type of block
    (tmp_path / "damaged.pth").write_bytes(packed)
    packed = bytearray((tmp_path / "locked.pth").read_bytes())
    for header, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(header) + at] |= 1
    (tmp_path / "locked.pth").write_bytes(packed)
    found = records.sha256(tmp_path / "whole.pth")[:8]
    wrong = {
        "nowhere.pth": "does not exist",
        ".": "is a folder",
        "text.pth": "is not a valid file of torch.save",
        "empty.pth": "is not a valid file of torch.save",
        "damaged.pth": "is not a valid file of torch.save",
        "locked.pth": "is not a valid file of torch.save",
        "cut.pth": "is not a valid file of torch.save",
        "other.pth": "holds other tensors",
        "pt_inception-2015-12-05-6726825d.pth": f"is truncated or corrupt (its SHA-256 begins with {found})",
    }
    for name, cause in wrong.items():
        path = str(tmp_path / name)
        assert said(INCEPTION % path, "mnist", *machine.checks(cluster=True)) == [
            f"fidelity.weights: {path!r} {cause}: it must be Inception's state dict, "
            "pt_inception-2015-12-05-6726825d.pth"
        ]
    assert said(INCEPTION % (tmp_path / "nowhere.pth"), "mnist") == []  # who only reads results needs none


def test_results_where_a_file_lies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder cannot lie at or below a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    for results in ("taken", "taken/mine"):
        line = f"results: {results!r}, but taken is a file; it must be a folder"
        assert said(f"results: {results}", "digits", *machine.checks(cluster=True)) == [line]
    (tmp_path / "free").mkdir()
    assert said("results: free", "digits", *machine.checks(cluster=True)) == []


def test_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores limit threads and processes, GPUs those processes that compute on one; of a cluster Slurm is asked."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    here, there = [], ["GPU-1", "GPU-2"]

    def lines(overlay: str, gpus: list[str], cluster: bool = False) -> list[str]:
        monkeypatch.setattr(machine, "gpus", lambda: gpus)
        return said(overlay, "digits", *machine.checks(cluster))

    assert lines("threads: 5", here) == ["threads: 5, but this machine has 4 cores; it must be at most 4 here"]
    assert lines("training: {processes: 8}", here) == [
        "training.processes: 8, but this machine has 4 cores; it must be at most 4 here"
    ]
    assert lines("training: {processes: 4}", there) == [
        "training.processes: 4, but this machine has 2 GPUs; it must be at most 2 here"
    ]
    assert lines("{training: {processes: 4}, device: cpu}", there) == []
    assert lines("{training: {processes: 4}, threads: 4}", here) == []
    assert lines("training: {processes: 2}", there) == []
    assert lines("{training: {processes: 8}, threads: 64, device: cuda}", here, cluster=True) == []
    if not Path("/dev/kfd").exists():
        assert lines("device: cuda", here) == [
            "device: cuda, but this machine has no GPU (driver, CUDA_VISIBLE_DEVICES?); cpu or auto would run"
        ]
    assert lines("device: cuda", there) == []


def test_inception_is_loaded_before_a_cell_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no look at a file can tell is told before training, by who is about to measure; nobody else loads it."""
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path)
    with pytest.raises(UserError, match=r"fidelity\.weights: .*weights\.pth: not Inception's weights"):
        machine.load_extractor({"fidelity": {"extractor": "inception", "weights": str(path)}})
    machine.load_extractor({"fidelity": {"extractor": "classifier", "weights": ""}})


# ---- records ----------------------------------------------------------------------------------------------


def forged(layout: Layout, stage: str, name: str, change: dict, result: dict) -> Path:
    """A record with a right digest, made by another tool."""
    recorder, path = records.Recorder(stage, {"name": name}, "0" * 16, {}), layout.record(stage, name)
    recorder.finish(path, [], **result)
    record = json.loads(path.read_text()) | change
    record = {k: v for k, v in record.items() if v != "gone"}
    records.write_json(path, record | {"digest": records.digest(record)})
    return path


def without(values: dict, name: str) -> dict:
    """All but one."""
    return {k: v for k, v in values.items() if k != name}


TRAIN = {"steps": 1, "images_seen": 2, "parameters": 3, "space": {}, "classes": 10}
WORDS = ("stage", "code", "device", "hardware", "host", "status")
TABLES = ("job", "inputs", "versions", "outputs", "bytes", "result", "costs")
COSTS = {"started": "", "seconds": 1, "phases": {}, "peak_memory_mb": 1}
FORGED = {
    **{name: ({name: "gone"}, f"its {name} is missing") for name in (*WORDS, *TABLES, "commit", "dirty")},
    "number for a name": ({"host": 3}, "its host is of type int"),
    "list for a job": ({"job": []}, "its job is of type list"),
    "text for dirty": ({"dirty": "no"}, "its dirty is of type str"),
    **{
        f"costs without {name}": (
            {"costs": {k: v for k, v in COSTS.items() if k != name}},
            f"its costs.{name} is missing",
        )
        for name in COSTS
    },
    "seconds as text": ({"costs": COSTS | {"seconds": "1"}}, "its costs.seconds is of type str"),
    "number for a job's name": ({"job": {"name": 3}}, "its job.name is of type int"),
    "an output without its size": ({"outputs": {"weights": "0" * 64}}, "its bytes['weights'] is missing"),
    **{
        f"result without {name}": (
            {"result": {k: v for k, v in TRAIN.items() if k != name}},
            f"its result.{name} is missing",
        )
        for name in TRAIN
    },
}


@pytest.mark.parametrize(("change", "lacking"), FORGED.values(), ids=FORGED.keys())
def test_a_record_that_lacks_something_is_no_record(tmp_path: Path, change: dict, lacking: str) -> None:
    """Its digest may be right: what every reader takes for granted is looked for, and the job would run again."""
    grid = config.check(DEFAULT)
    name, layout = next(iter(grid.networks)), Layout(tmp_path)
    path = forged(layout, "train", name, {}, TRAIN)
    assert records.read_record(path, "train")["result"] == TRAIN
    path = forged(layout, "train", name, change, TRAIN)
    with pytest.raises(UserError) as caught:
        records.read_record(path, "train")
    assert str(caught.value) == f"{path}: not a record of ddpm, {lacking}; run again, the existing file is preserved"
    results = Results(grid, layout)
    assert [str(r) for r in results.todo["train", name] if r.kind == "record"] == [
        f"record.json: not a record of ddpm, {lacking}"
    ]
    assert any(lacking in line for line in status.lines(results))
    assert status.overview(results)["todo"]


@pytest.mark.parametrize("number", ["images", "extractor", "fid"])
def test_what_is_measured_is_in_its_record(tmp_path: Path, number: str) -> None:
    """What the verdict on samples reads too; of samples that diverged nothing is measured."""
    result = without({"images": 2, "extractor": "0" * 64, "fid": 1.0}, number)
    path = forged(Layout(tmp_path), "fidelity", "noise", {}, result)
    with pytest.raises(UserError, match=rf"its result\.{number} is missing"):
        records.read_record(path, "fidelity")
    forged(Layout(tmp_path), "fidelity", "noise", {"status": "diverged"}, {})
    assert records.read_record(path, "fidelity")["status"] == "diverged"


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A record is looked at before it is replaced, and what is wrong with it is said."""
    layout = Layout(tmp_path)
    path = forged(layout, "train", "a", {"job": {"name": 3}}, TRAIN)
    assert history.flaws(layout, path, path) == {path: "not a record of ddpm, its job.name is of type int"}


def made(layout: Layout, stage: str, name: str, outputs: list[Path], result: dict, change: dict | None = None) -> None:
    """A job's valid record, of outputs that hold nothing of sense; with `change`, of the right digest alone."""
    for path in layout.outputs(stage, name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    job, code = GRID.job(stage, name)
    record = layout.record(stage, name)
    records.Recorder(stage, job, code, layout.inputs(stage, name, job)).finish(record, outputs, **result)
    changed = json.loads(record.read_text()) | (change or {})
    records.write_json(record, changed | {"digest": records.digest(changed)})


GRID = config.check(DEFAULT)
NETWORK = next(iter(GRID.names["likelihood"]))


@pytest.mark.parametrize(
    ("stage", "result", "left_out", "change", "reason"),
    [
        ("train", TRAIN, "", {}, ""),
        ("train", without(TRAIN, "steps"), "", {}, "record.json: not a record of ddpm, its result.steps is missing"),
        ("train", TRAIN, "loss.csv", {}, "loss.csv: its record knows nothing of it"),
        ("train", TRAIN, "", {"stage": "guide"}, f"record.json: it is of guide {NETWORK}"),
        ("likelihood", {}, "", {}, ""),
        ("likelihood", {}, "likelihood.csv", {}, "likelihood.csv: its record knows nothing of it"),
    ],
)
def test_the_job_and_the_plan_agree(
    tmp_path: Path, stage: str, result: dict, left_out: str, change: dict, reason: str
) -> None:
    """What the plan would run again, its job does not call already there; kept results are told by the same."""
    layout = Layout(tmp_path)
    made(layout, "data", "", layout.outputs("data"), {})
    made(layout, "train", NETWORK, layout.outputs("train", NETWORK), TRAIN)
    outputs = [path for path in layout.outputs(stage, NETWORK) if path.name != left_out]
    made(layout, stage, NETWORK, outputs, result, change)
    assert [str(why) for why in Results(GRID, layout).reasons(stage, NETWORK)] == [reason] * bool(reason)
    assert running._there(layout, stage, NETWORK, *GRID.job(stage, NETWORK)) == (not reason)


@pytest.mark.parametrize("depth", [21, 500, 930, 100_000])
def test_a_record_nested_deeply_is_no_record(tmp_path: Path, depth: int) -> None:
    """Whether Python can read it or not."""
    layout, grid = Layout(tmp_path), config.check(DEFAULT)
    path = forged(layout, "data", "", {}, {})
    record = json.loads(path.read_text())
    if depth < 1000:
        deep: object = 1
        for _ in range(depth):
            deep = [deep]
        record["result"] = {"x": deep}
        text = json.dumps(record | {"digest": records.digest(record)})
    else:
        text = json.dumps(record).replace('"result": {}', '"result": {"x": ' + "[" * depth + "]" * depth + "}")
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        records.read_record(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert "nested more than 20 deep" in str(caught.value) or depth > 500
    results = Results(grid, layout)
    assert [r.kind for r in results.todo["data", ""]] == ["record"]
    assert list(status.lines(results))


def test_the_form_of_records_is_that_of_the_schema() -> None:
    """What is asked of a record before it is read is what its schema requires."""
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "record.schema.yaml").read_text(encoding="utf-8"))
    assert set(schema["required"]) == {"format", *records.FORM}
    assert set(schema["properties"]["costs"]["required"]) == records.COSTS.keys()
