"""A small finished grid, whose tables several files of tests look at."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from ddpm.pipeline import config, records, verdict
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stages import AGGREGATES
from ddpm.tables.rows import collect

ROOT = Path(__file__).parent.parent


SEEDS = (0, 1)


CELL = "eps/linear/none/ddim"


NETWORK = "eps/linear/unconditional"


def configured() -> dict:
    """Two seeds of three objectives, one pair n/a, one guided: 8 runs on 6 networks, in seconds."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    read["grid"] = [
        {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ancestral", "ddim"]},
        {"objective": ["learned"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim", "ancestral"]},
        {"objective": ["score"], "schedule": ["cosine"], "guidance": ["cfg-w1"], "sampler": ["ddim"]},
    ]
    small = {
        "seeds": list(SEEDS),
        "training": {"steps": 6, "batch": 16, "warmup": 2},
        "sampling": {"images": 24, "batch": 16},
        "classifier": {"width": 4, "features": 8, "epochs": 1},
        "likelihood": {"images": 4, "times": 3},
    }
    return config.merge(read, small)


GRID = config.check(configured())


def build(root: Path) -> Layout:
    """Run every stage."""
    layout = Layout(root)
    for stage, name in GRID.jobs:
        execute(stage, *GRID.job(stage, name), layout)
    return layout


@pytest.fixture(autouse=True, scope="module")
def untrained() -> Iterator[None]:
    """Networks of six steps are as far from the data as noise, which their rows are not to say here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "NOISE", float("inf"))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A complete results folder; read only."""
    return build(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def layout(finished: Layout, tmp_path: Path) -> Layout:
    """A copy of it that a test may spoil."""
    shutil.copytree(finished.root, tmp_path / "results")
    return Layout(tmp_path / "results")


@pytest.fixture(scope="module")
def table(finished: Layout, untrained: None) -> pd.DataFrame:
    results = Results(GRID, finished)
    assert set(results.todo) == {(name, "") for name in AGGREGATES}
    return collect(results)


def number(layout: Layout, stage: str, name: str, key: str) -> float:
    """One number of one record."""
    return records.read_record(layout.record(stage, name))["result"][key]


def row(table: pd.DataFrame, *axes: str) -> pd.Series:
    """The row of one cell."""
    match = table[(table[["objective", "schedule", "guidance", "sampler"]] == list(axes)).all(axis=1)]
    assert len(match) == 1
    return match.iloc[0]


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a record in place, as if it had been written so."""
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    record["digest"] = records.digest(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def write(layout: Layout) -> None:
    execute("table", *GRID.job("table"), layout)
