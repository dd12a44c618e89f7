"""Averages of weights of any length: the profile, the reconstruction, and a grid of lengths of one training."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpm import averaging, spot_checks
from ddpm.networks.mlp import MLP
from ddpm.pipeline import audit, config, records, status
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.stages import averages
from ddpm.stages import train as training
from ddpm.tables.rows import collect

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
BLOCK = {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}
SMALL = {
    "training": {"steps": 40, "snapshots": 8, "warmup": 2},
    "fidelity": {"extractor": "identity", "metrics": ["fid", "kid"]},
    "sampling": {"images": 70, "batch": 70},
    "grid": [BLOCK, BLOCK | {"ema": [0.1, 0.15]}],
}
USUAL, LONG = "eps/linear/unconditional/seed0", "eps/linear/unconditional/mlp-ema0.15/seed0"
STEPS, COUNT = 1000, 16


def expanded(**overlay: object) -> Grid:
    read = config.merge(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"), SMALL)
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    return config.check(config.merge(read, overlay))


# ---- the profile --------------------------------------------------------------------------------------------


def profile(t: int, length: float, steps: int = STEPS) -> np.ndarray:
    """The weights of θ_1 … θ_steps in the average after t of them, whose exponent is a root of the paper's cubic."""
    gamma = np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max()
    return np.diff((np.minimum(np.arange(steps + 1), t) / t) ** (gamma + 1))


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_average_is_its_sum(length: float) -> None:
    """θ_t = t and a random walk, step by step, against all weights at once; its length is the deviation of these."""
    walk = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    steps = torch.cat([torch.arange(1.0, 301.0, dtype=torch.float64)[:, None], walk], dim=1)
    found = [torch.full((4,), 77.0, dtype=torch.float64)]
    for t, theta in enumerate(steps, 1):
        averages.average(found, [theta], t, length)
        expected = torch.from_numpy(profile(t, length, 300)) @ steps
        assert torch.allclose(found[0], expected, rtol=1e-10, atol=1e-10)
    weights, back = profile(100_000, length, 100_000), np.linspace(0, 1, 100_000)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert np.sqrt(weights @ back**2 - (weights @ back) ** 2) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.075, 0.1, 0.15, 0.25])
def test_no_sum_of_snapshots_is_nearer(length: float) -> None:
    """Of the profiles themselves: least squares over all of them do no better, and the error is what it says it is."""
    kept = np.stack([profile(t, each) for t in averaging.moments(STEPS, COUNT) for each in averaging.KEPT], axis=1)
    wanted = profile(STEPS, length)
    found, said = averaging.coefficients(STEPS, COUNT, length)
    best, *_ = np.linalg.lstsq(kept, wanted, rcond=None)
    error, least = (np.linalg.norm(kept @ c - wanted) / np.linalg.norm(wanted) for c in (found, best))
    assert error <= 1.001 * least + 1e-12 and said == pytest.approx(error, rel=0.01, abs=1e-6)
    assert error < {0.03: 0.04, 0.05: 1e-12, 0.075: 0.004, 0.1: 1e-12, 0.15: 0.01, 0.25: 0.08}[length]
    assert sum(found) == pytest.approx(1, abs=0.02)


# ---- the stages ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Every job of the small grid's cells."""
    layout, grid = Layout(tmp_path_factory.mktemp("averages") / "results"), expanded()
    for stage, name in dict.fromkeys(job for cell in grid.runs.values() for job in grid.row(cell)):
        execute(stage, *grid.job(stage, name), layout)
    return layout


def test_lengths_are_networks_of_one_training() -> None:
    """One training serves all; another length changes no job; without snapshots all is as it was."""
    grid, more, plain = (
        expanded(),
        expanded(grid=[BLOCK, BLOCK | {"ema": [0.05, 0.1, 0.15]}]),
        expanded(training={"snapshots": None}, grid=[BLOCK]),
    )
    assert grid.names["snapshots"] == [USUAL] and not plain.names["snapshots"]
    assert list(grid.networks) == [USUAL, LONG.replace("0.15", "0.1"), LONG]
    assert list(grid.runs)[2] == "eps/linear/none/ddim/mlp-ema0.15/seed0"
    assert all(more.job(*job) == grid.job(*job) for job in grid.jobs)
    assert grid.parents("train", USUAL) == grid.parents("train", LONG) == {"snapshots": ("snapshots", USUAL)}
    job, code = plain.job("train", USUAL)
    trained = grid.job("snapshots", USUAL)[0]
    assert trained == job | {"training": job["training"] | {"snapshots": 8}} and code != grid.job("train", USUAL)[1]
    again = Grid(grid.job("table")[0]["config"] | {"results": "results"})
    assert again.jobs == grid.jobs and all(again.job(*job) == grid.job(*job) for job in grid.jobs)


def test_what_is_kept_are_the_averages(finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step's weights, watched in training that keeps nothing: the same usual average to the byte, the snapshots,
    and the weights of each length are the sums over them all."""
    plain, layout, seen = expanded(training={"snapshots": None}, grid=[BLOCK]), Layout(tmp_path), []
    real = training.average

    def watched(averaged: MLP, network: MLP, *rest: object) -> None:
        seen.append({name: p.detach().double().clone() for name, p in network.named_parameters()})
        real(averaged, network, *rest)

    monkeypatch.setattr(training, "average", watched)
    execute("data", *plain.job("data"), layout)
    execute("train", *plain.job("train", USUAL), layout)
    for file in ("weights", "loss"):
        assert layout.output("train", USUAL, file).read_bytes() == finished.output("train", USUAL, file).read_bytes()
    steps = {name: torch.stack([step[name] for step in seen]) for name in seen[0]}
    assert len(seen) == 40

    def summed(weights: np.ndarray, name: str) -> torch.Tensor:
        return torch.tensordot(torch.from_numpy(weights), steps[name], 1)

    kept, rebuilt = load_file(finished.output("snapshots", USUAL)), load_file(finished.output("train", LONG))
    assert len(kept) == len(steps) * (1 + 2 * 8) and rebuilt.keys() == steps.keys()
    coefficients, error = averaging.coefficients(40, 8, 0.15)
    of = [profile(t, length, 40) for t in range(5, 41, 5) for length in (0.05, 0.1)]
    mixed = sum(c * weights for c, weights in zip(coefficients, of, strict=True))
    for name in steps:
        for k, t in enumerate(range(5, 41, 5)):
            for i, length in enumerate((0.05, 0.1)):
                expected = summed(profile(t, length, 40), name)
                assert (kept[f"{k}.{i}.{name}"] - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (rebuilt[name] - summed(mixed, name)).abs().max() < 1e-5 * steps[name].abs().max()
        # Weights have moved by far more than the profile is missed by.
        away = (rebuilt[name] - summed(profile(40, 0.15, 40), name)).norm()
        assert away < 2 * error * (steps[name] - steps[name].mean(0)).norm() + 1e-3 * steps[name][-1].norm()
    same = load_file(finished.output("train", LONG.replace("0.15", "0.1")))
    assert all((same[name] - kept[f"7.1.{name}"]).abs().max() < 1e-6 for name in steps)
    record = records.read_record(finished.record("train", LONG), "train")["result"]
    assert record["profile_error"] == error and (record["steps"], record["images_seen"]) == (40, 640)


def test_a_kill_leaves_the_same_snapshots(finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped twice, with its snapshots, without one, with a corrupt one: the same bytes, and nothing beside them."""
    grid, real, expected = expanded(), training.learning_rate, finished.output("snapshots", USUAL).read_bytes()
    job = grid.job("snapshots", USUAL)

    def attempt(layout: Layout, stop: int) -> None:
        def stopping(step: int, *rest: object) -> float:
            if step == stop:
                raise KeyboardInterrupt
            return real(step, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "learning_rate", stopping)
            with pytest.raises(KeyboardInterrupt):
                execute("snapshots", *job, layout, checkpoint_seconds=0)

    def lose(path: Path) -> None:
        path.unlink()

    def shorten(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-10])

    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    for damage in (Path.touch, lose, shorten, change):
        layout = Layout(tmp_path / damage.__name__)
        shutil.copytree(finished.root / "data", layout.root / "data")
        attempt(layout, 12)
        work = layout.work("snapshots", USUAL)
        assert {path.stem for path in work.glob("snapshot-*")} == {"snapshot-5", "snapshot-10"}
        attempt(layout, 23)
        assert len(list(work.glob("snapshot-*"))) == 4
        damage(work / "snapshot-10.safetensors")
        execute("snapshots", *job, layout)
        assert layout.output("snapshots", USUAL).read_bytes() == expected
        assert not list(work.glob("*.safetensors"))


def test_training_that_diverges(finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No length of it is reconstructed: each is a diverged network, which is not sampled."""
    grid, layout = expanded(), Layout(tmp_path)
    shutil.copytree(finished.root / "data", layout.root / "data")
    monkeypatch.setattr(training, "backward", lambda *_: torch.full((16,), float("nan")))
    for job in [("snapshots", USUAL), ("train", LONG), ("sample", list(grid.runs)[2])]:
        execute(*job[:1], *grid.job(*job), layout)
        assert records.read_record(layout.record(*job), job[0])["status"] == "diverged"


def test_one_table_has_every_length(finished: Layout) -> None:
    """Each row by itself, all of one training; what they differ in is said."""
    results = Results(expanded(), finished)
    table = collect(results).dropna(subset=["schedule"])
    assert table["network"].tolist() == ["mlp", "mlp-ema0.1", "mlp-ema0.15"]
    assert table["status"].isin(["ok", "degenerate"]).all() and table["fid"].nunique() == 3
    assert table["nll_bits_per_dim"].nunique() == 3 and table["images_seen"].nunique() == 1
    differing = audit.differences(audit.facts(results))["training.ema"]
    assert {value: len(rows) for value, rows in differing.items()} == {"not stated": 1, "0.1": 1, "0.15": 1}


def test_what_lacks_is_said_of_the_snapshots(finished: Layout, tmp_path: Path) -> None:
    """In the table as in `ddpm status`: missing, and failed."""
    layout = Layout(tmp_path / "results")
    shutil.copytree(finished.root, layout.root)
    for path in (layout.record("snapshots", USUAL), layout.output("snapshots", USUAL)):
        path.unlink()

    def said() -> set[tuple[str, str]]:
        results = Results(expanded(), layout)
        table = collect(results).dropna(subset=["schedule"])
        told = {(state, f"1 of 1 seeds; {reason}") for state, reason in status.states(results).values()}
        assert set(zip(table["status"], table["reason"], strict=True)) == told
        return told

    assert said() == {("missing", "1 of 1 seeds; snapshots: missing")}
    job, code = expanded().job("snapshots", USUAL)
    records.write_json(layout.state("snapshots", USUAL), {"failed": "no luck\ntoday", "job": job, "code": code})
    assert said() == {("failed", "1 of 1 seeds; snapshots: no luck")}


def test_the_table_is_computed_again(finished: Layout, tmp_path: Path) -> None:
    """`ddpm verify` looks at the snapshots too, without whose records no row would be valid."""
    layout, grid = Layout(tmp_path / "results"), expanded()
    shutil.copytree(finished.root, layout.root)
    for job in [("fidelity", name) for name in grid.baselines] + [("table", "")]:
        execute(job[0], *grid.job(*job), layout)
    assert list(spot_checks.recomputed(Results(grid, layout), "table", "", Layout(tmp_path / "scratch"))) == []


def test_other_weights_are_found(finished: Layout, tmp_path: Path) -> None:
    """`ddpm verify` reconstructs again, where it does not train."""
    layout = Layout(tmp_path / "results")
    shutil.copytree(finished.root, layout.root)
    results, path, record = Results(expanded(), layout), layout.output("train", LONG), layout.record("train", LONG)

    def found() -> list[str]:
        return [f.text for f in spot_checks.check(results, 0) if f.path in (path, record)]

    assert found() == []
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    said = records.read_record(record)
    records.write_tensors(path, tensors)
    said["outputs"][path.name] = records.sha256(path)
    records.write_json(record, {k: v for k, v in said.items() if k != "digest"} | {"digest": records.digest(said)})
    results = Results(expanded(), layout)
    assert found() == [f"is not what train {LONG} makes"]


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"training": {"snapshots": None}}, "grid[1].ema: training keeps no snapshots; training.snapshots must be"),
        ({"training": {"snapshots": 50}}, "training.snapshots: 50; it must be at most training.steps, 40"),
        ({"grid": [BLOCK | {"ema": [0.01]}]}, "grid[0].ema: 0.01 cannot be told from 8 snapshots of 0.05 and 0.1: its"),
        ({"grid": [BLOCK | {"ema": [0.3]}]}, "grid[0].ema[0]: 0.3"),
        ({"grid": [BLOCK | {"ema": [0.1], "network": ["none"]}]}, "grid[0].network: 'none' is not defined"),
        ({"networks": {"mlp-ema0.1": {"method": "mlp"}}}, "networks.mlp-ema0.1: grid[1].ema calls an average of"),
    ],
)
def test_what_is_wrong_is_said(overlay: dict, said: str) -> None:
    """No snapshots, more than steps, too few for a length, one that is none, and a name that is taken."""
    with pytest.raises(ConfigError) as caught:
        expanded(**overlay)
    assert len(caught.value.messages) == 1 and caught.value.messages[0].startswith(said), caught.value.messages
