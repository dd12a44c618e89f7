"""Results and their records: atomic files, hashes, and the JSON record beside every result. No torch."""

import functools
import hashlib
import json
import os
import platform
import re
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ddpm.errors import UserError
from ddpm.pipeline import folders

# The version of the record's format, see workflow/schemas/record.schema.yaml.
FORMAT = 2
# What every record holds, and how deep its content may be nested.
FORM = {
    **dict.fromkeys(("stage", "code", "device", "hardware", "host", "status", "digest"), str),
    **dict.fromkeys(("job", "inputs", "versions", "outputs", "bytes", "result", "costs"), dict),
    "commit": str | None,
    "dirty": bool | None,
}
# Of every result, by stage: what tables and status read from it.
RESULTS = {
    "train": ("steps", "images_seen", "parameters", "space", "classes"),
    "guide": ("classes", "shape"),
    "autoencoder": ("steps", "shape", "scale", "parameters"),
    "sample": ("images", "steps", "nfe"),
    "external": ("images", "of", "stratified", "spread"),
    "fidelity": ("images", "extractor", "fid"),
    "table": ("cells", "of", "missing"),
}
COSTS = {"started": str, "seconds": int | float, "phases": dict, "peak_memory_mb": int | float}
DEPTH = 20
PRESERVED = "run again, the existing file is preserved"
# The packages that numbers depend on, and the names by which code imports those that have another one.
PACKAGES = (
    "torch",
    "torchvision",
    "torch-fidelity",
    "torchdiffeq",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "diffusers",
)
IMPORTS = {"torch-fidelity": "torch_fidelity", "scikit-learn": "sklearn", "pillow": "PIL"}
# When this process began to load its modules, torch above all: every entry point imports this one before them.
LOADED = time.monotonic()


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
    """The file's SHA-256, hexadecimal; of a folder, that of its images (`folders.digest`)."""
    if Path(path).is_dir():
        return folders.digest(Path(path))
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def canonical(value: object) -> str:
    """The one text of a job, or of any JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def write_json(path: str | Path, value: object) -> None:
    """Indented JSON, atomically; NaN is refused."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict, about: dict | None = None) -> None:
    """Tensors by name as a safetensors file, atomically; `about` is its metadata, as JSON."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # One key only: safetensors writes several in an order of its own, other bytes at every call.
    metadata = {"about": json.dumps(about, sort_keys=True)} if about else None
    with atomic(path) as temporary:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)
        except SafetensorError as e:
            if number := re.search(r"\(os error (\d+)\)", str(e)):  # a full disk is one, as where Python writes
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
            raise


def read_tensors(path: Path) -> tuple[dict, dict]:
    """Tensors by name and what the file says of itself; UserError where it is missing or truncated."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            names = f.keys()
            tensors, metadata = {name: f.get_tensor(name) for name in names}, f.metadata() or {}
        return tensors, json.loads(metadata.get("about", "{}"))
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path}: is not a valid file of tensors ({e}); delete it and run again") from None


class Result(NamedTuple):
    """Where the result of one job lies: its record, and the first of its files, which others read."""

    record: Path
    file: Path


class OtherFormat(UserError):
    """A record of another version of ddpm, which may be whole."""


def job_of(record: dict) -> tuple[str, str]:
    """Stage and name of the job that a record is of."""
    return record["stage"], record["job"].get("name", "")


def digest(record: dict) -> str:
    """SHA-256 of a record's content, its own `digest` left out."""
    content = {k: v for k, v in record.items() if k != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def read_record(path: str | Path, stage: str = "") -> dict:
    """A record; UserError where it is missing, truncated, edited, of another format, or lacks what every record has.

    With `stage`: also where it lacks numbers that the results of this stage are read for.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing; run its job first (`snakemake -n` shows it)") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid, it is no JSON ({e}); {PRESERVED}") from None
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    if found != FORMAT:
        which = "a newer" if isinstance(found, int) and found > FORMAT else "another"
        raise OtherFormat(f"{path}: of {which} version of ddpm: format {found}, this one reads {FORMAT}; {PRESERVED}")
    for lacking in _lacking(record, stage):
        raise UserError(f"{path}: not a record of ddpm, its {lacking}; {PRESERVED}")
    if record.get("digest") != digest(record):
        raise UserError(f"{path}: edited, its content is not that of its digest; {PRESERVED}")
    return record


def _lacking(record: dict, stage: str) -> Iterator[str]:
    """What is not as every record has it, whoever wrote it and its digest."""
    yield from _misfits("", record, FORM)
    yield from _misfits("costs.", record["costs"], COSTS)
    yield from _misfits("job.", {"name": ""} | record["job"], {"name": str})
    if record["status"] == "ok" or stage != "fidelity":  # nothing is measured of what has diverged
        yield from _misfits("result.", record["result"], dict.fromkeys(RESULTS.get(stage, ()), object))
    sized = [name for name, size in record["bytes"].items() if isinstance(size, int)]
    yield from (f"bytes[{name!r}] is missing" for name in record["outputs"] if name not in sized)
    values, level = [record], 0
    while values and level <= DEPTH:
        values, level = [inner for value in values for inner in _within(value)], level + 1
    if values:
        yield f"content is nested more than {DEPTH} deep"


def _misfits(where: str, values: dict, form: dict) -> Iterator[str]:
    """What is missing or of another type than it must be."""
    for name, kind in form.items():
        if name not in values:
            yield f"{where}{name} is missing"
        elif not isinstance(values[name], kind):
            yield f"{where}{name} is of type {type(values[name]).__name__}"


def _within(value: object) -> Iterable:
    """The values in a mapping or list; none in anything else."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def changes(found: object, wanted: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    """Every value of a job that differs, by its dotted key: (key, found, wanted)."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            yield from changes(found.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    elif found != wanted:
        yield key, found, wanted


def damaged(path: Path, record: dict, whole: bool = True, names: Collection[str] | None = None) -> dict[str, str]:
    """The outputs (of `names`, or all) that are not as the record at `path` left them, and what is found instead.

    Without `whole`, an output that has its size and is not newer than its record, as outputs are written before it,
    is trusted; else its hash decides, and the record is touched so that it need not decide again.
    """
    found, looked_at = {}, False
    written = 0 if whole else path.stat().st_mtime_ns
    for name in record["outputs"] if names is None else names:
        file = path.parent / name
        try:
            now = file.stat()
            newer = whole or now.st_mtime_ns > written
            why, looked_at = _damage(file, now, record, name, newer), looked_at or newer
        except (FileNotFoundError, NotADirectoryError):
            why = "it is missing"
        except OSError as e:
            why = f"it cannot be read ({e.strerror})"
        if why:
            found[name] = why
    if looked_at and not whole and not found:
        with suppress(OSError):
            os.utime(path)
    return found


def _damage(file: Path, now: os.stat_result, record: dict, name: str, hashed: bool) -> str:
    """What a file is instead of the output that its record describes; empty where it is that one."""
    size, expected = record["bytes"].get(name), record["outputs"].get(name, "nothing")
    if not stat.S_ISREG(now.st_mode):
        return "it is no file"
    if now.st_size != size:
        return f"it has {now.st_size} bytes, its record says {size}"
    if hashed and (hash := sha256(file)) != expected:
        return f"its SHA-256 is {hash}, its record says {expected}"
    return ""


@functools.cache
def commit() -> dict:
    """The git commit of the code and whether the tree was dirty; None where git does not track it.

    An installed package may lie in an environment below somebody's own repository, whose commit says nothing of it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = bool(
            subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": dirty}


@functools.cache
def versions() -> dict[str, str]:
    """ddpm, Python and the packages that results depend on, as their release is called: without a build's suffix."""
    # The running code's own version, whatever is installed; looked up, so that a fingerprint does not depend on it.
    found = {"ddpm": sys.modules["ddpm"].__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    with suppress(OSError):  # on Linux; getrusage's begins there with that of whoever started this process
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")):
            return round(int(found[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def hardware(device: str) -> str:
    """The name of the processor or GPU that a job runs on."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Recorder:
    """Times a job and writes its record last, beside its result: a result without a record is none.

    Durations are those of the monotonic clock, because the time of day may be set back meanwhile.
    """

    def __init__(self, stage: str, job: dict, code: str, inputs: dict[str, Path], device: str = "cpu"):
        self.started, self.start, self.spent = time.time(), time.monotonic(), 0.0
        self.phases = {"loading": self.start - LOADED, "reading": 0.0}
        self.current, self.since = "reading", self.start
        self.record = {
            "format": FORMAT,
            "stage": stage,
            "job": job,
            "code": code,
            "inputs": {name: sha256(path) for name, path in inputs.items()},
            "device": device,
            "hardware": hardware(device),
            "host": platform.node(),
            "versions": versions(),
        } | commit()

    def phase(self, name: str) -> None:
        """What follows is another phase of the job: its seconds are recorded under this name."""
        now = time.monotonic()
        self.phases[self.current] = self.phases.get(self.current, 0.0) + now - self.since
        self.current, self.since = name, now

    def seconds(self) -> float:
        """Seconds so far, with those of earlier attempts that a checkpoint carried over (`spent`)."""
        return round(self.spent + time.monotonic() - self.start, 2)

    def finish(self, path: Path, outputs: list[Path], status: str = "ok", **result: object) -> None:
        """Write the record with the hashes of the outputs, the costs and the stage's own numbers."""
        self.phase("")
        record = self.record | {
            "status": status,
            "outputs": {os.path.relpath(file, path.parent): sha256(file) for file in outputs},
            "bytes": {os.path.relpath(file, path.parent): file.stat().st_size for file in outputs},
            "result": result,
            "costs": {
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
                "seconds": self.seconds(),
                "phases": {name: round(seconds, 2) for name, seconds in self.phases.items()},
                "peak_memory_mb": peak_memory_mb(),
            },
        }
        write_json(path, record | {"digest": digest(record)})
