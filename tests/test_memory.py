"""Less memory than was asked for, and memory that is kept."""

import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from ddpm.compute import fitting
from ddpm.denoiser import Denoiser
from ddpm.pipeline import config
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.stages import likelihood
from ddpm.stages.train import backward

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


def test_sizes_are_halved_until_they_fit(capsys: pytest.CaptureFixture) -> None:
    tried: list[int] = []

    def attempt(size: int) -> str:
        tried.append(size)
        if size > 6:
            torch.empty(10**17)  # what torch says where memory is short
        return f"with {size}"

    assert fitting(48, attempt, "sampling.batch") == ("with 6", 6)
    assert tried == [48, 24, 12, 6]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sampling.batch: 48 images need more memory than there is: 24 at once"
    assert len(said) == 3
    with pytest.raises(RuntimeError, match="allocate"):
        fitting(48, attempt, "training.batch", 48)
    with pytest.raises(RuntimeError, match="allocate"):
        fitting(48, attempt, "training.batch", 7)


def test_a_bound_with_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Fewer images come at once, with their noise, whose memory is the larger part: the same bound of each."""
    network, found, real, fewest = "eps/linear/unconditional/seed0", [], likelihood.vlb, []
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    grid = config.check(config.merge(read, {"likelihood": {"batch": 3}}))  # 32 · 3 // 6 = 16 images at once

    def short(denoiser: Denoiser, images: torch.Tensor, *rest: object, progress: object) -> dict[str, torch.Tensor]:
        fewest.append(len(images))
        if len(images) > 5:
            raise RuntimeError("CUDA out of memory")
        return real(denoiser, images, *rest, progress)

    for vlb in (real, short):
        layout = Layout(tmp_path / vlb.__name__)
        monkeypatch.setattr(likelihood, "vlb", vlb)
        for stage, name in (("data", ""), ("train", network), ("likelihood", network)):
            execute(stage, *grid.job(stage, name), layout)
        found.append(layout.output("likelihood", network, "images").read_text())
    assert fewest == [16, 5, 5, 5, 5]
    values = [[float(value) for value in table.replace("\n", ",").split(",")[5:-1]] for table in found]
    assert len(values[0]) == 20 * 5 and values[0] == pytest.approx(values[1], rel=1e-5)
    assert "likelihood.batch: 3 images need more memory than there is: 1 at once" in capsys.readouterr().err


def test_other_errors_are_no_lack_of_memory() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("another mistake")

    with pytest.raises(RuntimeError, match="another mistake"):
        fitting(4, attempt, "sampling.batch")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_gradient_in_pieces(size: int) -> None:
    """Σ w_i L_i/B and its gradient, and the losses in order, in float64 to the rounding of sums."""
    torch.manual_seed(2)
    theta, x, weight = (
        torch.randn(5, dtype=torch.float64, requires_grad=True),
        torch.randn(7, 5, dtype=torch.float64),
        torch.rand(7, dtype=torch.float64),
    )
    sign = torch.randn(7, dtype=torch.float64)

    def loss(part: torch.Tensor, signs: Callable) -> torch.Tensor:
        return (part @ theta).square() * signs()

    optimiser = torch.optim.SGD([theta])
    found = backward(optimiser, loss, (x,), lambda: sign, weight, size)
    (expected,) = torch.autograd.grad(((x @ theta).square() * sign * weight).mean(), theta)
    torch.testing.assert_close(found, ((x @ theta).square() * sign).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=0)


def test_an_attempt_that_failed_leaves_no_gradient() -> None:
    """Memory that ends in the second piece of a batch: the gradient is that of the attempt that succeeds alone."""
    torch.manual_seed(3)
    theta, x, weight = (torch.randn(n, dtype=torch.float64) for n in ((5,), (8, 5), (8,)))
    theta.requires_grad_()
    sizes: list[int] = []

    def loss(part: torch.Tensor, signs: Callable) -> torch.Tensor:
        sizes.append(len(part))
        if sizes == [4, 4]:
            raise MemoryError
        return (part @ theta).square()

    attempt = partial(backward, torch.optim.SGD([theta]), loss, (x,), lambda: x, weight)
    found, size = fitting(4, attempt, "training.batch")
    assert size == 2 and sizes == [4, 4, 2, 2, 2, 2]
    (expected,) = torch.autograd.grad(((x @ theta).square() * weight).mean(), theta)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, (x @ theta).square().detach(), rtol=1e-12, atol=0)


# ---- memory that is freed -----------------------------------------------------------------------------------


FAULTS = """
import os, resource, sys
import torch
from ddpm.pipeline import config
from ddpm.pipeline.running import run_stage

def pages() -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        layers = [torch.ones(10_000_000) for _ in range(2)]  # 40 MB each: above all limits that glibc sets itself
        del layers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if folder := sys.argv[1]:
    run_stage("data", *config.check(config.read("config.yaml")).job("data"), folder, "cpu")
pages()
print(pages() * os.sysconf("SC_PAGESIZE") / 40e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_that_a_job_frees_is_not_mapped_anew(tmp_path: Path) -> None:
    def mapped(folder: Path | str) -> float:
        """How many of 10 layers are mapped anew in a process that has run a job in this folder, if any."""
        run = subprocess.run(
            [sys.executable, "-c", FAULTS, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return float(run.stdout)

    assert mapped(tmp_path) < 1
    assert mapped("") > 9, "glibc keeps it by itself: keep_freed_memory is no longer needed"
