"""What several files of tests share."""

from collections.abc import Iterator
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


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64: every constant of a network too."""
    import torch  # not above: many tests need none

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits most goes first: the other worker of `make test` computes beside it."""
    items.sort(key=lambda item: item.path.name != "test_slurm.py")
