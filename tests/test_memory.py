"""Less memory than was asked for, and memory that is kept."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from interrupted import CELL, JOBS, NETWORK, STAGES, layouts, result, run, small, trained  # noqa: F401 - fixtures

from ddpm.compute import fitting
from ddpm.denoiser import Denoiser
from ddpm.pipeline import config, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.stages import likelihood
from ddpm.stages import sample as sampling
from ddpm.stages import train as training
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


@pytest.mark.parametrize(("stage", "name"), JOBS)
def test_less_memory_than_a_batch_needs(
    layouts: tuple[Layout, Layout],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    stage: str,
    name: str,
) -> None:
    """Batches are halved until they fit, in a line each: the result is the twin's, up to the rounding of other batches,
    and evaluations are counted once."""
    one, two = layouts
    run(stage, name, one)
    module, called, _ = STAGES[stage]
    batch = getattr(module, called)

    def starved(*arguments: object, **named: object) -> object:
        if stage == "sample":
            found = iter(batch(*arguments, **named))
            noise = next(found)
            if len(noise) > 5:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return iter([noise, *found])
        if arguments[-1] > 1:
            raise MemoryError
        return batch(*arguments, **named)

    monkeypatch.setattr(module, called, starved)
    capsys.readouterr()
    run(stage, name, two)
    (expected, _), (found, _) = (result(stage, name, layout) for layout in layouts)
    section, fits = ("sampling", 3) if stage == "sample" else (stage, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "need more memory" in line]
    assert said[-1].endswith(f": {fits} at once") and all(line.startswith(f"{section}.batch: ") for line in said)
    if stage == "sample":
        assert found.pop("compute") == expected.pop("compute") | {"images_at_once": fits}
        assert {k: found[k] for k in ("images", "steps", "nfe")} == {k: expected[k] for k in ("images", "steps", "nfe")}
        images = [records.read_tensors(layout.output(stage, name))[0]["images"].double() for layout in layouts]
        assert (images[0] - images[1]).abs().mean() < 0.05 * images[0].std()
    else:
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("stage", "name", "size"), [("sample", CELL, 6), ("train", NETWORK, 32)])
def test_a_resumed_job_knows_how_much_memory_there_is(
    layouts: tuple[Layout, Layout], monkeypatch: pytest.MonkeyPatch, stage: str, name: str, size: int
) -> None:
    """What was found to be too large is not tried again, so that the same images come together as without a stop."""
    module, attribute = {"sample": (sampling, "chain"), "train": (training, "backward")}[stage]
    real, tried, stops = getattr(module, attribute), list[int](), [3]

    def starved(*arguments: object) -> object:
        at_once = arguments[-1] if stage == "train" else len(arguments[3])
        tried.append(at_once)
        if at_once > size:
            raise MemoryError
        if len(tried) == stops[0]:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, attribute, starved)
    grid, found = small(training={"batch": 64}), []
    for layout, stop in zip(layouts, (4, -1), strict=True):
        layout.record(stage, name).unlink(missing_ok=True)
        tried.clear()
        stops[0] = stop
        with suppress(KeyboardInterrupt):
            run(stage, name, layout, grid)
        if stop > 0:
            run(stage, name, layout, grid)
        found.append((result(stage, name, layout), [*tried]))
    (one, with_stop), (two, without) = found
    assert one == two and one[0]["compute"]["images_at_once"] == size
    assert sum(at > size for at in with_stop) == sum(at > size for at in without) == 1


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
