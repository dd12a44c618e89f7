"""What several files of tests share."""

from pathlib import Path

import pytest
from project import copy_project, snakemake


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny grid; whoever changes something in it puts it back."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits most goes first: the other worker of `make test` computes beside it."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")
