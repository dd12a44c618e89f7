"""Jobs of sampling and likelihood that are interrupted in any batch, with a twin that is not."""

import shutil
from pathlib import Path

import pytest

from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.stages import likelihood
from ddpm.stages import sample as sampling

ROOT = Path(__file__).parent.parent
NETWORK = "eps/linear/unconditional/seed0"
CELL = "eps/linear/none/ancestral/seed0"
GUIDED = "score/linear/cfg-w1/ancestral/seed0"


def small(**sections: dict) -> Grid:
    """A tiny perceptron; four batches of samples, three groups of images for the bound."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    axes = {"schedule": ["linear"], "sampler": ["ancestral"]}
    read["grid"] = [
        {"objective": ["eps"], "guidance": ["none"]} | axes,
        {"objective": ["score"], "guidance": ["cfg-w1"]} | axes,
    ]
    sizes = {
        "training": {"steps": 4},
        "sampling": {"images": 40, "batch": 12},
        "likelihood": {"images": 21, "batch": 2},
    }
    return config.check(config.merge(config.merge(read, sizes), sections))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the data and two networks."""
    root = tmp_path_factory.mktemp("trained")
    execute("data", *small().job("data"), Layout(root))
    for name in small().networks:
        execute("train", *small().job("train", name), Layout(root))
    return root


@pytest.fixture
def layouts(trained: Path, tmp_path: Path) -> tuple[Layout, Layout]:
    """Two copies of it: one for the interrupted job, one for its twin."""
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / name)
    return Layout(tmp_path / "one"), Layout(tmp_path / "two")


# Each stage: its module, the name in it of what it calls once per batch, and the jobs to test.
STAGES = {"sample": (sampling, "chain", [CELL, GUIDED]), "likelihood": (likelihood, "vlb", [NETWORK])}
JOBS = [(stage, name) for stage, (*_, names) in STAGES.items() for name in names]
BATCHES = {"sample": 4, "likelihood": 3}


def counted(patch: pytest.MonkeyPatch, stage: str, stop: int | None = None) -> list[int]:
    """Note every batch of a stage; Ctrl-C comes before batch number `stop`."""
    module, name, _ = STAGES[stage]
    batch, seen = getattr(module, name), []

    def watched(*arguments: object, **named: object) -> object:
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(len(seen))
        return batch(*arguments, **named)

    patch.setattr(module, name, watched)
    return seen


def run(stage: str, name: str, layout: Layout, grid: Grid | None = None, seconds: float = 0) -> None:
    execute(stage, *(grid or small()).job(stage, name), layout, checkpoint_seconds=seconds)


def interrupt(stage: str, name: str, layout: Layout, stop: int, seconds: float = 0, grid: Grid | None = None) -> Path:
    """Run until Ctrl-C in batch `stop`; the checkpoint."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stage, stop)
        run(stage, name, layout, grid, seconds)
    assert not layout.record(stage, name).exists()
    return layout.checkpoint(stage, name)


def result(stage: str, name: str, layout: Layout) -> tuple[dict, list[bytes]]:
    """The record's own numbers, and its outputs' bytes."""
    record = records.read_record(layout.record(stage, name))
    assert record["status"] == "ok"
    return record["result"], [path.read_bytes() for path in layout.outputs(stage, name)]
