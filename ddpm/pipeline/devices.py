"""Which device a job computes on: the CPU, or GPUs that it leases from those this process may use.

Snakemake starts as many jobs as there are GPUs and pins none of them. A lease is a `flock` on a file of this
machine's /tmp, so the kernel ends it with the process, however that dies. No torch until a GPU is taken.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product, takewhile
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline.stages import STAGES

# One folder for all users and jobs of a machine, whatever their TMPDIR.
LEASES = Path("/tmp/ddpm-gpus")


def _query(*fields: str) -> list[list[str]]:
    """nvidia-smi's answer, one row per GPU; empty where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[v.strip() for v in line.split(",")] for line in found.stdout.splitlines()]
    return [r for r in rows if len(r) == len(fields)] if found.returncode == 0 else []


def gpus() -> list[str]:
    """The GPUs that this process may use, by UUID: all of them, or those of CUDA_VISIBLE_DEVICES.

    Its numbers are nvidia-smi's; as in CUDA, an entry that names no GPU hides all that follow it.
    """
    known = dict(_query("index", "uuid"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not known:
        return list(known.values())
    found = (_uuid(entry.strip(), known) for entry in visible.split(","))
    return list(dict.fromkeys(takewhile(bool, found)))


def _uuid(entry: str, known: dict[str, str]) -> str:
    """The GPU that an entry of CUDA_VISIBLE_DEVICES names; empty where it names none."""
    if entry.startswith("MIG-"):
        return entry
    if entry.startswith("GPU-"):
        return next((uuid for uuid in known.values() if uuid.startswith(entry)), "")
    return known.get(entry, "")


def _try(path: Path) -> int | None:
    """An open file that holds the lock `path`, or None where another process has it."""
    handle = None
    try:
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.fchmod(handle, 0o666)  # other users lease the same GPUs
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            os.utime(handle)  # young, for what cleans old files away
            return handle
    except (BlockingIOError, FileNotFoundError, PermissionError):
        pass  # held by another process, cleaned away meanwhile, or being made by another user
    if handle is not None:
        os.close(handle)
    return None


@contextmanager
def _lease(found: list[str], count: int, share: int) -> Iterator[list[str]]:
    """`count` of these GPUs, each with at most `share` jobs, as soon as that many are free at once."""
    said = False
    while True:
        if not LEASES.exists():
            LEASES.mkdir(exist_ok=True)
            with suppress(PermissionError):  # another user has just made it
                LEASES.chmod(0o1777)
        with ExitStack() as stack:
            taken: dict[str, int] = {}
            # Every GPU's first place before any one's second.
            for place, gpu in product(range(share), found):
                if len(taken) < count and gpu not in taken:
                    handle = _try(LEASES / f"{gpu.replace('/', '_')}.{place}")
                    if handle is not None:
                        taken[gpu] = handle
                        stack.callback(os.close, handle)
            if len(taken) == count:
                yield list(taken)
                return
        if not said:
            free = f"{len(taken)} of {len(found)} GPUs free"
            print(f"{free}, {count} wanted: waiting for other jobs to end", file=sys.stderr, flush=True)
            said = True
        time.sleep(1)


_OPENED: set[str] = set()  # the GPU that this process has computed on, if it has


def _opened(found: list[str]) -> list[str]:
    """Those of these GPUs that this process can compute on: once torch has opened one, no other."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return found
    return [gpu for gpu in found if gpu in _OPENED] or found


def _check_torch(found: list[str]) -> None:
    """UserError where there are GPUs that torch cannot use."""
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
    if works:
        return
    driver = next(iter(_query("driver_version")), ["?"])[0]
    reason = " ".join(str(caught[0].message).split())[:160] if caught else "torch gives no reason"
    raise UserError(
        f"{len(found)} GPUs and driver {driver}, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use "
        f"them: {reason}\nInstall a newer driver or a torch built for this one, or set `device: cpu`."
    )


@contextmanager
def leased(device: str, count: int = 1, share: int = 1) -> Iterator[str]:
    """Compute on `cpu` or `cuda`, as `device` (auto, cpu, cuda) says; CUDA_VISIBLE_DEVICES holds what was leased.

    auto: a GPU where there is one. Under Slurm, which gave the job its GPUs, there is nothing left to choose.
    """
    if device == "cpu":
        yield "cpu"
        return
    found = gpus()
    if not found:
        import torch

        if torch.cuda.is_available():  # a GPU that nvidia-smi does not know, such as AMD's
            yield "cuda"
        elif device == "cuda":
            raise UserError(
                "device: cuda, but torch sees no GPU here (driver, CUDA_VISIBLE_DEVICES?); cpu or auto would run"
            )
        else:
            yield "cpu"
        return
    if len(found) < count:
        raise UserError(f"training.processes: {count}, but this job sees {len(found)} GPUs; fewer processes would run")
    if "SLURM_JOB_ID" in os.environ and len(found) == count:
        _check_torch(found)
        yield "cuda"
        return
    with _lease(_opened(found) if count == 1 else found, count, share) as taken:
        before = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
        os.environ.update(CUDA_VISIBLE_DEVICES=",".join(taken), CUDA_DEVICE_ORDER="PCI_BUS_ID")
        try:
            _check_torch(taken)
            if not sys.modules["torch"].cuda.is_initialized():
                _OPENED.clear()
            _OPENED.update(taken if count == 1 else ())
            yield "cuda"
        finally:  # what follows in this process may lease others
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def explained(stage: str, job: dict) -> Iterator[None]:
    """A GPU that is full or busy as a UserError that says what would run."""
    try:
        yield
    except RuntimeError as e:
        if "CUDA error: out of memory" in str(e):  # not even what torch itself needs
            raise UserError(
                f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '')}: full, other processes hold its memory "
                "(`nvidia-smi` shows which); choose another one with CUDA_VISIBLE_DEVICES"
            ) from None
        if type(e).__name__ == "OutOfMemoryError":
            raise UserError(_too_large(stage, job, str(e))) from None
        if "busy or unavailable" in str(e):
            raise UserError(
                f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '')}: busy, another process has it for itself "
                "(`nvidia-smi` shows which); choose another one with CUDA_VISIBLE_DEVICES"
            ) from None
        raise


def _too_large(stage: str, job: dict, said: str) -> str:
    """What the GPU has, what others hold of it, and a batch that would fit if memory grows with the batch."""
    import torch

    free, total = torch.cuda.mem_get_info()
    ours, wanted = torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated()
    if request := re.search(r"Tried to allocate ([\d.]+) ([KMG])iB", said):
        wanted += int(float(request[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[request[2]])
    gib, others = 2**30, total - free - ours
    text = f"GPU memory: {stage} wants more than {wanted / gib:.1f} GiB; the GPU has {total / gib:.1f} GiB"
    text += f", of which others hold {others / gib:.1f} GiB" if others > 0.05 * total else ""
    section = STAGES[stage].section
    if (batch := job.get(section, {}).get("batch", 1)) > 1:
        fits = 1
        while 2 * fits * wanted <= batch * (free + ours) and 4 * fits <= batch:
            fits *= 2
        text += f"\n{section}.batch: {batch} is too large here; {fits} should fit"
    return text
