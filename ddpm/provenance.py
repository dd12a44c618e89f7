"""Results and their records: atomic files, hashes, and the JSON record beside every result. No torch."""

import functools
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ddpm.errors import UserError

# The version of the record's format, see workflow/schemas/record.schema.yaml.
FORMAT = 1
PACKAGES = ("torch", "torchvision", "torch-fidelity", "numpy", "scipy", "scikit-learn", "safetensors")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is synced and renamed to it, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as e:
        e.filename = e.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: str | Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: str | Path, value: object) -> None:
    """Indented JSON, atomically; NaN is refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict, about: dict[str, str] | None = None) -> None:
    """Tensors by name as a safetensors file, atomically; `about` is its metadata."""
    from safetensors.torch import save

    # One key only: safetensors writes several in an order of its own, other bytes at every call.
    metadata = {"about": json.dumps(about, sort_keys=True)} if about else None
    content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path) -> tuple[dict, dict[str, str]]:
    """Tensors by name and what the file says of itself; UserError where it is missing or torn."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            names = f.keys()
            tensors, metadata = {name: f.get_tensor(name) for name in names}, f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: is no whole file of tensors ({e}); delete it and run again") from None
    return tensors, json.loads(metadata.get("about", "{}"))


def read_record(path: str | Path) -> dict:
    """A record; UserError where it is missing, torn, or of another format."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run its job first (`snakemake -n` shows it)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: is no JSON ({e}); delete it and run again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{path}: record of format {found}; this version reads format {FORMAT}: delete it and run again"
        )
    return record


def matches(path: Path, job: dict, code: str, inputs: dict[str, Path] | None = None) -> bool:
    """Whether a record is there, whole, and of exactly this job and code, its outputs as it left them.

    With `inputs`: and of exactly these files as they are now.
    """
    try:
        record = read_record(path)
        return (
            record["job"] == job
            and record["code"] == code
            and all(sha256(path.parent / name) == digest for name, digest in record["outputs"].items())
            and (inputs is None or record["inputs"] == {name: sha256(file) for name, file in inputs.items()})
        )
    except (UserError, KeyError, OSError):
        return False


@functools.cache
def commit() -> dict:
    """The git commit of the code and whether the tree was dirty; None where there is no git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = bool(
            subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": dirty}


def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class Recorder:
    """Times a job and writes its record last, beside its result: a result without a record is none."""

    def __init__(self, stage: str, job: dict, code: str, inputs: dict[str, Path], device: str = "cpu"):
        self.start, self.spent = time.time(), 0.0
        self.record = {
            "format": FORMAT,
            "stage": stage,
            "job": job,
            "code": code,
            "inputs": {name: sha256(path) for name, path in inputs.items()},
            "device": device,
            "host": platform.node(),
            "versions": versions(),
        } | commit()

    def seconds(self) -> float:
        """Seconds so far, with those of earlier attempts that a checkpoint carried over (`spent`)."""
        return round(self.spent + time.time() - self.start, 2)

    def finish(self, path: Path, outputs: list[Path], status: str = "ok", **result: object) -> None:
        """Write the record with the hashes of the outputs, the costs and the stage's own numbers."""
        write_json(
            path,
            self.record
            | {
                "status": status,
                "outputs": {file.name: sha256(file) for file in outputs},
                "result": result,
                "costs": {
                    "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.start)),
                    "seconds": self.seconds(),
                    "peak_memory_mb": peak_memory_mb(),
                },
            },
        )
