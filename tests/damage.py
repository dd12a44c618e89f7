"""The ways in which one file or folder of a results tree is damaged: each takes a path, and a generator that draws."""

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def timed(change: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """The same with the file's times kept."""

    @functools.wraps(change)
    def keeping(path: Path, rng: random.Random) -> None:
        now = path.stat()
        change(path, rng)
        os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))

    return keeping


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(1, path.stat().st_size))


@timed
def flip(path: Path, rng: random.Random) -> None:
    """One bit, size and time kept."""
    held = bytearray(path.read_bytes())
    held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
    path.write_bytes(held)


@timed
def garbage(path: Path, rng: random.Random) -> None:
    """Bytes that are no text, size and time kept."""
    held = bytearray(path.read_bytes())
    at = rng.randrange(len(held))
    held[at : at + 64] = b"\xff" * len(held[at : at + 64])
    path.write_bytes(held)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def swap(path: Path, rng: random.Random) -> None:
    """With a file of the same kind, each under the time that was there."""
    root = next(parent for parent in path.parents if parent.name == "tiny")
    alike = [p for p in root.rglob(path.name if path.suffix != ".json" else "*.json") if p.is_file()]
    others = sorted(p for p in alike if p.read_bytes() != path.read_bytes()) or sorted(root.rglob("*.md"))
    other = rng.choice(others)
    times = path.stat(), other.stat()
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    for place, now in zip((path, other), times, strict=True):
        os.utime(place, ns=(now.st_atime_ns, now.st_mtime_ns))


def folder(path: Path, rng: random.Random) -> None:
    """A folder, with something in it, where the file was."""
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


def dangle(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def file(path: Path, rng: random.Random) -> Path:
    """A file where one of the folders above it was; all that was in it is gone."""
    root = next(parent for parent in path.parents if parent.name == "tiny")
    above = [parent for parent in path.parents if root in parent.parents]
    place = rng.choice(above or [path])
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("a file")
    return place


KINDS = {f.__name__: f for f in (delete, truncate, flip, flip, swap, empty, garbage, folder, dangle, file)}
GONE = ("delete", "file", "dangle", "folder")
WEIGHTS = {"flip": 3, "file": 0.5}  # flips are what nothing but a hash sees


def hits(root: Path) -> list[Path]:
    """What is corrupted: every file but the logs, in which nothing is known to stand."""
    return sorted(p for p in root.rglob("*") if p.is_file() and "logs" not in p.relative_to(root).parts)


def unread(hit: Path) -> bool:
    """What is left of a job that was interrupted, but for the checkpoint that it goes on from."""
    return "work" in hit.parts and hit.name != "checkpoint.safetensors"


def paired(hit: Path) -> bool:
    """What the test images cost under a network, which the table alone reads."""
    return hit.parts[0] == "networks" and hit.name in ("likelihood.csv", "ode-likelihood.csv")


def known(path: Path) -> object:
    """What a JSON file says, whatever its bytes; None of other files."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes()) if path.suffix == ".json" else None
    return None


def names(root: Path, path: str, said: str, gone: bool) -> bool:
    """Whether a line names the file by its path, or in the plan by its name and its job's.

    What is gone is named by the job that makes it again; else that a job writes it says nothing.
    """
    file = root / path
    job = "/".join(file.parent.relative_to(root).parts[1:])
    for line in said.splitlines():
        listed = line.startswith("rule ") or line.startswith("    output: ")
        if (path in line and (gone or not listed)) or (f" {file.name}: " in line and job in line):
            return True
    return False
