"""The jobs of the tiny grid, and a finished tree of it that tests may spoil."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.pipeline.layout import Layout

EPS, LEARNED, SCORE = (
    "eps/linear/unconditional/seed0",
    "learned/linear/unconditional/seed0",
    "score/cosine/conditional/seed0",
)


NETWORKS = (EPS, LEARNED, SCORE)


EPS_ANCESTRAL, EPS_DDIM = "eps/linear/none/ancestral/seed0", "eps/linear/none/ddim/seed0"


LEARNED_ANCESTRAL, SCORE_DDIM = "learned/linear/none/ancestral/seed0", "score/cosine/cfg-w1/ddim/seed0"


CELLS = {EPS: (EPS_ANCESTRAL, EPS_DDIM), LEARNED: (LEARNED_ANCESTRAL,), SCORE: (SCORE_DDIM,)}


BATCHES = (*NETWORKS, "baselines")


Jobs = set[tuple[str, str]]


TABLE, FIGURES = {("table", ""), ("page", "")}, {("figures", ""), ("page", "")}


BOTH = TABLE | FIGURES


def of(stage: str, *names: str) -> Jobs:
    return {(stage, name) for name in names}


def drawn(*cells: str) -> Jobs:
    """These cells are sampled, their networks' batches measured, table and pictures made."""
    batches = [network for network, own in CELLS.items() if set(own) & set(cells)]
    return of("sample", *cells) | of("fidelity", *batches) | BOTH


def used(*networks: str) -> Jobs:
    """What follows from these networks' weights."""
    cells = [cell for network in networks for cell in CELLS[network]]
    return of("likelihood", *(n for n in networks if n != SCORE)) | drawn(*cells)


def trained(*networks: str) -> Jobs:
    return of("train", *networks) | used(*networks)


DRAWN = drawn(*sum(CELLS.values(), ()))


EVERYTHING = of("data", "") | of("classifier", "") | trained(*NETWORKS) | of("fidelity", *BATCHES)


MEASURED = of("fidelity", *BATCHES) | BOTH


BOUND = of("likelihood", EPS, LEARNED) | BOTH


def status(folder: Path, *arguments: str, overlay: str = "", **environment: str) -> str:
    """What `ddpm status` says."""
    files = ["--configfile", "tests/tiny.yaml", *(["--configfile", overlay] if overlay else [])]
    run = subprocess.run(
        [sys.executable, "-m", "ddpm", "status", *arguments, *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """A copy of the finished tree that a test may spoil."""
    shutil.copytree(tree, tmp_path / "copy")
    return tmp_path / "copy"


def results(folder: Path) -> Layout:
    return Layout(folder / "results/tiny")
