"""Training: runs that resume bit for bit, the average that is stored, the curve, and divergence as a result."""

import csv
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm.pipeline import config, records
from ddpm.pipeline import run as runs
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.stages import train as training
from ddpm.tables.rows import collect

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
PLAIN, LEARNED, GUIDED, WEIGHED, SLICED = (
    "eps/linear/unconditional/seed0",
    "learned/linear/unconditional/seed0",
    "score/linear/conditional/seed0",
    "weighed/short/unconditional/seed0",
    "sliced/short/unconditional/seed0",
)
CODE = "0" * 16


def small(width: int = 8, **training: object) -> Grid:
    """The default grid with a tiny network, few steps and few images."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    steps = {"steps": 8, "batch": 16, "warmup": 2} | training
    read["network"] = {"method": "mlp", "width": width, "depth": 1}
    # T = 4, so that importance sampling has its ten losses of every t after three steps.
    read["schedules"]["short"] = {"method": "linear", "steps": 4, "beta_first": 4e-7, "beta_last": 2.2e-3}
    read["objectives"] |= {
        "weighed": {"target": "eps", "weighting": "vlb", "variance": "learned", "times": "importance"},
        "sliced": {"target": "score", "matching": "sliced"},
    }
    read["grid"] = [
        {
            "objective": ["eps", "learned"],
            "schedule": ["linear"],
            "guidance": ["none"],
            "sampler": ["ancestral", "ddim"],
        },
        {"objective": ["score"], "schedule": ["linear"], "guidance": ["cfg-w1"], "sampler": ["ancestral", "ddim"]},
        {"objective": ["weighed", "sliced"], "schedule": ["short"], "guidance": ["none"], "sampler": ["ancestral"]},
    ]
    return config.check(config.merge(read, {"training": steps}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder that holds the digits and the classifier."""
    root = tmp_path_factory.mktemp("prepared")
    grid = small()
    execute("data", *grid.job("data"), Layout(root))
    execute("classifier", *grid.job("classifier"), Layout(root))
    return root


@pytest.fixture
def layout(prepared: Path, tmp_path: Path) -> Layout:
    shutil.copytree(prepared, tmp_path / "results")
    return Layout(tmp_path / "results")


@pytest.fixture
def other(prepared: Path, tmp_path: Path) -> Layout:
    """A second folder, for the run that is compared."""
    shutil.copytree(prepared, tmp_path / "other")
    return Layout(tmp_path / "other")


def result(layout: Layout, name: str) -> tuple[bytes, bytes, dict]:
    """What training left: weights, curve, and the record's own numbers."""
    record = records.read_record(layout.record("train", name))
    return (
        layout.output("train", name).read_bytes(),
        layout.output("train", name, "loss").read_bytes(),
        record["result"],
    )


def interrupt(
    monkeypatch: pytest.MonkeyPatch, job: dict, layout: Layout, step: int, code: str = CODE, seconds: float = 0
) -> Path:
    """Train until Ctrl-C comes in the given step; the checkpoint that is left."""
    rate = training.learning_rate

    def stop(now: int, *rest: object) -> float:
        if now == step:
            raise KeyboardInterrupt
        return rate(now, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "learning_rate", stop)
        with pytest.raises(KeyboardInterrupt):
            execute("train", job, code, layout, checkpoint_seconds=seconds)
    assert not layout.record("train", job["name"]).exists()
    return layout.checkpoint("train", job["name"])


# ---- the same bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PLAIN, LEARNED, GUIDED, WEIGHED, SLICED])
def test_two_runs_leave_the_same_bytes(layout: Layout, other: Layout, name: str) -> None:
    """Weights and curve depend on the job alone, whatever was drawn before; another seed gives others."""
    job = small().job("train", name)[0]
    execute("train", job, CODE, layout)
    torch.rand(17)
    execute("train", job, CODE, other)
    assert result(layout, name) == result(other, name)
    record = records.read_record(layout.record("train", name))
    assert record["status"] == "ok"
    assert record["result"]["steps"] == 8 and record["result"]["images_seen"] == 128
    assert record["result"]["parameters"] > 1000
    execute("train", job | {"name": name.replace("seed0", "seed1")}, CODE, other)
    assert result(other, name.replace("seed0", "seed1"))[0] != result(other, name)[0]


@pytest.mark.parametrize("name", [PLAIN, LEARNED, GUIDED, WEIGHED, SLICED])
@pytest.mark.parametrize("step", [1, 5, 7])
def test_a_resumed_run_leaves_the_same_bytes(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    """Interrupted in any step and run again: as if it had never stopped, and the checkpoint is gone."""
    job = small().job("train", name)[0]
    execute("train", job, CODE, other)
    checkpoint = interrupt(monkeypatch, job, layout, step)
    assert checkpoint.exists()
    called: list[int] = []
    rate = training.learning_rate
    monkeypatch.setattr(training, "learning_rate", lambda now, *rest: called.append(now) or rate(now, *rest))
    execute("train", job, CODE, layout)
    assert called == list(range(step, 8))
    assert result(layout, name) == result(other, name)
    assert not checkpoint.exists()


def test_a_run_that_is_interrupted_again_and_again(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several interruptions, with curve rows of two steps each: nothing is lost or counted twice."""
    job = small(steps=401, batch=2).job("train", PLAIN)[0]
    execute("train", job, CODE, other)
    for step in (7, 8, 21):
        interrupt(monkeypatch, job, layout, step)
    execute("train", job, CODE, layout)
    assert result(layout, PLAIN) == result(other, PLAIN)


def test_a_run_that_is_interrupted_after_its_last_step(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the weights are written: the checkpoint of the last step gives the same result and record."""
    job = small().job("train", PLAIN)[0]
    execute("train", job, CODE, other)
    write = runs.write_tensors

    def stop(path: Path, *rest: object) -> None:
        if path == layout.output("train", PLAIN):
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_tensors", stop)
        with pytest.raises(KeyboardInterrupt):
            execute("train", job, CODE, layout, checkpoint_seconds=0)
    execute("train", job, CODE, layout)
    assert result(layout, PLAIN) == result(other, PLAIN)


# ---- checkpoints ------------------------------------------------------------------------------------------


def test_no_checkpoint_is_written_before_its_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption within the first minute leaves none."""
    assert not interrupt(monkeypatch, small().job("train", PLAIN)[0], layout, 5, seconds=60).exists()


@pytest.mark.parametrize("change", ["code", "job"])
def test_a_checkpoint_of_another_job_is_not_used(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, change: str
) -> None:
    """A checkpoint of other code or another configuration is named and not used."""
    old = small(learning_rate=1.0e-3 if change == "job" else 3.0e-3).job("train", PLAIN)[0]
    job, code = small(learning_rate=3.0e-3).job("train", PLAIN)[0], "1" * 16 if change == "code" else CODE
    checkpoint = interrupt(monkeypatch, old, layout, 5)
    capsys.readouterr()
    execute("train", job, code, layout)
    said = "".join(capsys.readouterr())
    reason = "it belongs to training.learning_rate = 0.001, now 0.003" if change == "job" else "other code"
    assert str(checkpoint) in said and "kept in" in said and reason in said
    execute("train", job, code, other)
    assert result(layout, PLAIN) == result(other, PLAIN)
    assert not checkpoint.exists()


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_torn_checkpoint_is_discarded(
    layout: Layout, other: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, size: int
) -> None:
    """A checkpoint that ends too early is named and not used."""
    job = small().job("train", PLAIN)[0]
    checkpoint = interrupt(monkeypatch, job, layout, 5)
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    capsys.readouterr()
    execute("train", job, CODE, layout)
    said = "".join(capsys.readouterr())
    assert str(checkpoint) in said and "discarded" in said
    execute("train", job, CODE, other)
    assert result(layout, PLAIN) == result(other, PLAIN)


def test_a_checkpoint_that_says_nothing_of_itself_is_discarded(
    layout: Layout, other: Layout, capsys: pytest.CaptureFixture
) -> None:
    """A file of tensors without an identity is not used."""
    job = small().job("train", PLAIN)[0]
    checkpoint = layout.checkpoint("train", PLAIN)
    records.write_tensors(checkpoint, {"a": torch.zeros(2)})
    execute("train", job, CODE, layout)
    assert "discarded" in "".join(capsys.readouterr())
    execute("train", job, CODE, other)
    assert result(layout, PLAIN) == result(other, PLAIN)


# ---- the average ------------------------------------------------------------------------------------------


def test_training_stores_the_average(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are evaluated are the formula's average of the network after every step."""
    history: list[dict[str, torch.Tensor]] = []

    def watched(averaged: nn.Module, network: nn.Module, n: int, decay: float) -> None:
        history.append({k: v.detach().clone() for k, v in network.state_dict().items()})
        average(averaged, network, n, decay)

    average = training.average
    monkeypatch.setattr(training, "average", watched)
    job = small(ema_decay=0.4).job("train", PLAIN)[0]
    execute("train", job, CODE, layout)
    assert len(history) == 8
    expected = history[0]
    for n, now in enumerate(history[1:], start=1):
        d = min(0.4, (1 + n) / (10 + n))
        expected = {k: torch.lerp(v, now[k], 1 - d) for k, v in expected.items()}
    stored = load_file(layout.output("train", PLAIN))
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[k], expected[k]) for k in stored)
    assert not torch.equal(stored["first.weight"], history[-1]["first.weight"])


# ---- the curve ----------------------------------------------------------------------------------------


def losses(monkeypatch: pytest.MonkeyPatch, poison: int = 0) -> list[float]:
    """Watch the loss of every step; in step number `poison` (from 1) it is made NaN."""
    seen: list[float] = []
    loss = training.Objective.loss

    def watched(self: training.Objective, *rest: object, **named: object) -> torch.Tensor:
        found = loss(self, *rest, **named)
        seen.append(float(found.detach().mean()))
        return found * math.nan if len(seen) == poison else found

    monkeypatch.setattr(training.Objective, "loss", watched)
    return seen


@pytest.mark.parametrize("steps", [8, 401])
def test_the_curve_holds_the_mean_loss(layout: Layout, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """A row stands for the steps since the last one: at most 201 rows, the last step included."""
    seen = losses(monkeypatch)
    job = small(steps=steps, batch=4, decay="cosine").job("train", PLAIN)[0]
    execute("train", job, CODE, layout)
    with layout.output("train", PLAIN, "loss").open() as f:
        rows = list(csv.DictReader(f))
    assert len(seen) == steps
    ends = [*range(2, 401, 2), 401] if steps == 401 else list(range(1, 9))
    assert [int(row["step"]) for row in rows] == ends
    before = 0
    for row, end in zip(rows, ends, strict=True):
        assert float(row["loss"]) == pytest.approx(sum(seen[before:end]) / (end - before), rel=1e-5)
        assert int(row["images"]) == 4 * end
        rate = training.learning_rate(end - 1, steps, job["training"]["learning_rate"], 2, "cosine")
        assert float(row["learning_rate"]) == rate
        before = end
    record = records.read_record(layout.record("train", PLAIN))
    assert record["result"]["final_loss"] == float(rows[-1]["loss"])


def test_training_lowers_the_loss(layout: Layout) -> None:
    """A few hundred steps of a small perceptron on digits beat the constant prediction."""
    execute("train", small(width=128, steps=400, batch=32).job("train", PLAIN)[0], CODE, layout)
    curve = pd.read_csv(layout.output("train", PLAIN, "loss"))
    assert curve["loss"].iloc[:3].mean() > 0.9
    assert curve["loss"].iloc[-20:].mean() < 0.7


# ---- divergence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PLAIN, GUIDED])
def test_a_loss_that_is_not_finite_is_a_result(layout: Layout, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Training ends as `diverged` with the step; samples, fidelity, bound and table carry on to a row that says so."""
    grid = small()
    with monkeypatch.context() as patch:
        losses(patch, poison=5)
        execute("train", *grid.job("train", name), layout)
    record = records.read_record(layout.record("train", name))
    assert record["status"] == "diverged" and record["result"]["steps"] == 5
    assert len(pd.read_csv(layout.output("train", name, "loss"))) == 4
    assert not layout.checkpoint("train", name).exists()

    cell = next(c for c in grid.runs.values() if grid.network(c).name == name)
    execute("sample", *grid.job("sample", cell.name), layout)
    execute("fidelity", *grid.job("fidelity", cell.name), layout)
    for stage in ("sample", "fidelity"):
        assert records.read_record(layout.record(stage, cell.name))["status"] == "diverged"
    assert len(load_file(layout.output("sample", cell.name))["images"]) == 0
    if name in grid.names["likelihood"]:
        execute("likelihood", *grid.job("likelihood", name), layout)
        assert records.read_record(layout.record("likelihood", name))["status"] == "diverged"

    for baseline in grid.baselines:
        execute("fidelity", *grid.job("fidelity", baseline), layout)
    table = collect(Results(grid, layout)).set_index(["objective", "guidance", "sampler"])
    row = table.loc[(cell.objective, cell.guidance, cell.sampler)]
    assert row["status"] == "diverged"
    assert "seed 0" in row["reason"] and "step 5" in row["reason"] and "1 of 1" in row["reason"]
    assert pd.isna(row["fid"]) and pd.isna(row["nll_bits_per_dim"])


def test_a_diverged_network_is_not_sampled(layout: Layout) -> None:
    """Whatever its weights are: the record says that training failed."""
    grid, cell = small(), "eps/linear/none/ddim/seed0"
    execute("train", *grid.job("train", PLAIN), layout)
    path = layout.record("train", PLAIN)
    record = records.read_record(path) | {"status": "diverged"}
    records.write_json(path, record | {"digest": records.digest(record)})
    execute("sample", *grid.job("sample", cell), layout)
    record = records.read_record(layout.record("sample", cell))
    assert record["status"] == "diverged" and record["result"]["images"] == 0


def test_samples_that_are_not_finite_are_a_result(layout: Layout) -> None:
    """Finite losses, broken weights: sampling ends as `diverged` without images, fidelity carries it on."""
    grid, cell = small(), "eps/linear/none/ddim/seed0"
    execute("train", *grid.job("train", PLAIN), layout)
    weights = load_file(layout.output("train", PLAIN))
    records.write_tensors(layout.output("train", PLAIN), {k: v * math.nan for k, v in weights.items()})
    execute("sample", *grid.job("sample", cell), layout)
    execute("fidelity", *grid.job("fidelity", cell), layout)
    for stage in ("sample", "fidelity"):
        record = records.read_record(layout.record(stage, cell))
        assert record["status"] == "diverged"
    assert records.read_record(layout.record("sample", cell))["result"]["images"] == 0
