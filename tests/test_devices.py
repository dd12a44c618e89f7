"""Leasing GPUs, on a machine of the tests' own making: nvidia-smi is a script on the PATH, torch says that it works."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from ddpm.errors import UserError
from ddpm.pipeline import devices

ROOT = Path(__file__).parent.parent
A, B, C = "GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three GPUs, no CUDA_VISIBLE_DEVICES, no Slurm, a temporary folder of its own."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        f'#!/bin/sh\ncase "$*" in\n*index,uuid*) printf "0, {A}\\n1, {B}\\n2, {C}\\n";;\n'
        '*driver_version*) printf "470.57\\n470.57\\n470.57\\n";;\nesac\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(devices, "LEASES", tmp_path / "ddpm-gpus")
    monkeypatch.setattr(devices, "_OPENED", set())
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever a lease sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return tmp_path


def holder(count: int = 1, share: int = 1) -> subprocess.Popen:
    """A process that leases and says what it got, until its stdin ends."""
    code = (
        "import os, sys, types\nfrom pathlib import Path\nfrom ddpm.pipeline import devices\n"
        f"devices.LEASES = Path({str(devices.LEASES)!r})\n"
        "cuda = types.SimpleNamespace(is_available=lambda: True, is_initialized=lambda: False)\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)\n"
        f"with devices.leased('auto', {count}, {share}):\n"
        "    print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n    sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def got(process: subprocess.Popen) -> list[str]:
    return process.stdout.readline().strip().split(",")


def end(*processes: subprocess.Popen) -> list[str]:
    return [p.communicate(timeout=20)[1] for p in processes]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A, B, C]),
        ("", []),
        ("-1", []),
        ("1", [B]),
        ("2,0", [C, A]),
        ("0,9,1", [A]),
        ("0,-1,1", [A]),
        (B, [B]),
        ("GPU-cccc,GPU-aaaa", [C, A]),
        ("MIG-x,1", ["MIG-x", B]),
        ("1,1", [B]),
    ],
)
def test_visible_devices(
    machine: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.gpus() == expected


def test_four_jobs_on_three_gpus(machine: Path) -> None:
    """Three get one each; the fourth waits, says so, and gets the one that is freed, by kill -9 too."""
    jobs = [holder() for _ in range(3)]
    assert sorted(g for j in jobs for g in got(j)) == [A, B, C]
    jobs.append(holder())
    assert jobs[3].stderr.readline() == "0 of 3 GPUs free, 1 wanted: waiting for other jobs to end\n"
    jobs[1].kill()
    with devices._lease([A, B, C], 1, 2) as second_place:  # another share: a place of its own
        assert len(second_place) == 1
    assert len(got(jobs[3])) == 1
    end(*jobs)


def test_never_two_on_one(machine: Path) -> None:
    """Four jobs of two GPUs each on three: one at a time can run, and no GPU is ever held twice."""
    jobs = [holder(count=2) for _ in range(4)]
    seen: Counter = Counter()
    waiting = list(jobs)
    while waiting:
        ready = [j for j in waiting if os.get_blocking(j.stdout.fileno()) and _readable(j)]
        assert len(ready) <= 1
        for job in ready:
            pair = got(job)
            assert len(set(pair)) == 2
            seen.update(pair)
            waiting.remove(job)
            end(job)
    assert sum(seen.values()) == 8


def _readable(process: subprocess.Popen) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0.05)[0])


def test_shared_gpus_are_filled_evenly(machine: Path) -> None:
    """Two jobs per GPU: the first three get one each, the next three the second places, the seventh waits."""
    first = [holder(share=2) for _ in range(3)]
    assert sorted(g for j in first for g in got(j)) == [A, B, C]
    second = [holder(share=2) for _ in range(3)]
    assert sorted(g for j in second for g in got(j)) == [A, B, C]
    seventh = holder(share=2)
    assert "0 of 3 GPUs free" in seventh.stderr.readline()
    end(*first, *second)
    got(seventh)
    end(seventh)


def test_a_lease_that_was_cleaned_away(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease file that is removed between its opening and its lock is no lease; one that is taken is young again."""
    path = machine / "lease"
    path.touch()
    os.utime(path, (0, 0))
    handle = devices._try(path)
    assert handle is not None and path.stat().st_mtime > time.time() - 60
    os.close(handle)
    flock = devices.fcntl.flock
    monkeypatch.setattr(devices.fcntl, "flock", lambda *of: (path.unlink(), flock(*of)))
    assert devices._try(path) is None


def test_a_job_sees_only_its_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that the user allows."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with devices.leased("auto") as kind:
        assert kind == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == C
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2" and "CUDA_DEVICE_ORDER" not in os.environ


def test_jobs_of_one_process_lease_anew(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU, then two, then one again: that which torch has opened, though another is free."""
    with devices._lease([A], 1, 1), devices.leased("auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == B
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with devices.leased("auto", 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == f"{A},{B}"
    with devices.leased("auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == B


def test_the_cpu_leases_nothing(machine: Path) -> None:
    """device: cpu takes no GPU from others."""
    with devices.leased("cpu") as kind:
        assert kind == "cpu" and not (machine / "ddpm-gpus").exists()


def test_under_slurm_the_lease_steps_aside(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own GPU, whoever else may hold its number; more than the job wants are still leased."""
    job = holder()
    (mine,) = got(job)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mine)
    begun = time.monotonic()
    with devices.leased("auto") as kind:
        assert kind == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == mine
    assert time.monotonic() - begun < 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with devices.leased("auto"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] in {A, B, C} - {mine}
    end(job)


def test_no_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is the CPU; cuda is refused with what would run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with devices.leased("auto") as kind:
        assert kind == "cpu"
    with pytest.raises(UserError, match=r"device: cuda, but torch sees no GPU here .* cpu or auto would run"):
        devices.leased("cuda").__enter__()


def test_fewer_gpus_than_processes(machine: Path) -> None:
    """The key, the value, and what is there."""
    with pytest.raises(UserError, match=r"training\.processes: 4, but this job sees 3 GPUs"):
        devices.leased("auto", 4).__enter__()


def test_a_driver_that_is_too_old(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch cannot use the GPUs that nvidia-smi lists: driver and reason are named."""
    import warnings

    def refuses() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 11040).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", refuses)
    with pytest.raises(UserError) as found, devices.leased("auto"):
        pass
    text = str(found.value)
    assert "driver 470.57" in text and torch.__version__ in text and "too old (found 11040)" in text
    assert "`device: cpu`" in text and text.count("\n") == 1


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "reserved", "peak", "batch", "wanted", "held", "fits"),
    [
        (1, 15, 14, 512, "16.0", "", 256),  # all ours: half the batch
        (0.5, 3.5, 3, 64, "5.0", ", of which others hold 12.0 GiB", 32),  # a quarter of the GPU is left
        (0, 2, 14, 512, "16.0", ", of which others hold 14.0 GiB", 64),
        (0, 0.1, 14, 8, "16.0", ", of which others hold 15.9 GiB", 1),
    ],
)
def test_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
    free: float, reserved: float, peak: float, batch: int, wanted: str, held: str, fits: int,
) -> None:  # fmt: skip
    """What was wanted, what the GPU has, who else holds some, and a power of two that would fit."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * GIB), 16 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(reserved * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(peak * GIB))
    with pytest.raises(UserError) as found, devices.explained("train", {"training": {"batch": batch}}):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")
    assert str(found.value).splitlines() == [
        f"GPU memory: train wants more than {wanted} GiB; the GPU has 16.0 GiB{held}",
        f"training.batch: {batch} is too large here; {fits} should fit",
    ]


def test_a_busy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has it in exclusive mode: which GPU, and what to do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", A)
    message = rf"GPU {A}: busy, .* choose another one with CUDA_VISIBLE_DEVICES"
    with pytest.raises(UserError, match=message), devices.explained("train", {}):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")


def test_a_full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for torch itself: which GPU, and what to do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", A)
    message = rf"GPU {A}: full, other processes .* choose another one with CUDA_VISIBLE_DEVICES"
    with pytest.raises(UserError, match=message), devices.explained("train", {}):
        raise torch.AcceleratorError("CUDA error: out of memory")


def test_other_errors_are_not_swallowed() -> None:
    """They are nobody's mistake."""
    with pytest.raises(RuntimeError, match="shape"), devices.explained("train", {}):
        raise RuntimeError("shape mismatch")
