"""The tiny grid's digits and classifier, with which several files of tests measure."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from ddpm.datasets import dataset as data
from ddpm.metrics.evaluator import Evaluator
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

ROOT = Path(__file__).parent.parent


CELL = "eps/linear/none/ddim/seed0"


FEATURES = 16


def grid(**overlay: object) -> Grid:
    """The tiny grid with 16 features."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    own = {"classifier": {"width": 4, "features": FEATURES, "epochs": 3}, "sampling": {"images": 60}}
    return config.check(config.merge(config.merge(read, own), overlay))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A results folder that holds the digits and the classifier; read only."""
    layout = Layout(tmp_path_factory.mktemp("prepared"))
    execute("data", *grid().job("data"), layout)
    execute("classifier", *grid().job("classifier"), layout)
    return layout


@pytest.fixture
def layout(prepared: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(prepared.root, tmp_path / "results")
    return Layout(tmp_path / "results")


@pytest.fixture(scope="module")
def digits(prepared: Layout) -> data.Data:
    return data.read(prepared.output("data"))


def evaluator(layout: Layout, extractor: str = "classifier", weights: str = "") -> Evaluator:
    """What the stage measures with."""
    return Evaluator(
        data.read(layout.output("data")), {"extractor": extractor, "weights": weights}, layout.output("classifier")
    )


@pytest.fixture(scope="module")
def measure(prepared: Layout) -> Evaluator:
    return evaluator(prepared)


def closed_form(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖µ_a − µ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), the root by scipy."""
    root = scipy.linalg.sqrtm(a["sigma"] @ b["sigma"]).real
    return float(((a["mu"] - b["mu"]) ** 2).sum() + np.trace(a["sigma"] + b["sigma"] - 2 * root))
