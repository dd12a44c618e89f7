"""A job's unfinished work as one file below `results/work/`, so that an interrupted job goes on where it was.

All random numbers are functions of what they are for (ddpm/rng.py), so that tensors and a position are all there
is to keep. Clusters may kill without a signal, hence checkpoints by the clock.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline.records import Recorder, canonical, changes, read_tensors, sha256, write_tensors

# Seconds between two checkpoints of a job: what an interruption costs at most, or a batch that takes longer.
SECONDS = 60.0


class OfAnotherJob(UserError):
    """A checkpoint that is whole, and of another job, code, inputs, device or packages: whose, `identity` says."""

    def __init__(self, reasons: str, identity: dict):
        super().__init__(reasons)
        self.identity = identity


def previous(path: Path) -> Path:
    """The checkpoint before the one at `path`."""
    return path.with_suffix(f".previous{path.suffix}")


class Checkpoint:
    """The checkpoint of the job that `recorder` times.

    It belongs to this job, code, inputs, kind of device, and these versions of packages (`Stage.environment`). One that
    belongs to anything else is moved to a folder of its own, `other-…`, with a message that says why, and taken back
    when that job runs again. A file that is truncated or corrupt is discarded with a message, and so is one without the
    files that its state lists as `beside` it; the one before it, `previous`, stands in for it.
    """

    def __init__(self, path: Path, recorder: Recorder, versions: dict[str, str], seconds: float = SECONDS):
        self.path, self.recorder, self.seconds = path, recorder, seconds
        self.previous, self.whole = previous(path), False
        record = recorder.record
        self.identity = {k: record[k] for k in ("job", "code", "inputs", "device")}
        self.identity["versions"] = versions
        self.saved = time.monotonic()

    def load(self) -> tuple[dict, dict] | None:
        """The tensors and the state that were saved last; None where there is nothing to go on from."""
        there = any(path.exists() for path in (self.path, self.previous, self._aside(self.identity)))
        if (found := self._load()) is None and self._take_back():
            found = self._load()
        if found is None and there:
            print(f"{self.path.parent}: nothing to go on from, the job starts from the beginning", file=sys.stderr)
        return found

    def _load(self) -> tuple[dict, dict] | None:
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                tensors, state = self._read(path)
            except OfAnotherJob as e:
                print(f"{path}: checkpoint of another job, {self._keep(e.identity)}: {e}", file=sys.stderr)
                return None
            except UserError as e:
                print(f"{path}: checkpoint discarded: {e}", file=sys.stderr)
                continue
            self.whole = path == self.path
            self.recorder.spent = state.pop("seconds")
            print(f"{path}: going on from this checkpoint, {state.get('at', 0)} done", file=sys.stderr)
            return tensors, state
        return None

    def _keep(self, identity: dict) -> str:
        """Move the checkpoint of another job to its own folder; what became of it, in words."""
        folder = self._aside(identity)
        try:
            folder.mkdir(exist_ok=True)
            for file in self._files():
                file.replace(folder / file.name)
        except OSError as e:  # a full disk: the job goes on, and its first checkpoint takes the place of this one
            return f"not kept ({e.strerror or e})"
        return f"kept in {folder}"

    def _files(self) -> list[Path]:
        """Every checkpoint of the job's folder, and what is beside them."""
        return [*self.path.parent.glob(f"*{self.path.suffix}")]

    def _aside(self, identity: dict) -> Path:
        """Where the checkpoint of another job is kept."""
        return self.path.parent / f"other-{hashlib.sha256(canonical(identity).encode()).hexdigest()[:8]}"

    def _take_back(self) -> bool:
        """Whether this job's checkpoint was kept while another job had its place; it is in its place again."""
        folder = self._aside(self.identity)
        if not folder.is_dir():
            return False
        for file in sorted(folder.iterdir(), key=lambda file: file.name != self.path.name):  # the checkpoint first
            file.replace(self.path.parent / file.name)
        folder.rmdir()
        return True

    def _read(self, path: Path) -> tuple[dict, dict]:
        """Tensors and state of one file; UserError where it is truncated or another job's."""
        tensors, about = read_tensors(path)
        if not isinstance(about, dict) or about.keys() != {"identity", "state", "digest"}:
            raise UserError("it does not say what it belongs to")
        if about["digest"] != digest(tensors, about):
            raise UserError("corrupt: its content is not that of its digest")
        identity = json.loads(about["identity"])
        if reasons := list(_differences(identity, self.identity)):
            raise OfAnotherJob("; ".join(reasons), identity)
        state = json.loads(about["state"])
        for name, found in state.get("beside", {}).items():
            if not (beside := path.with_name(name)).exists():
                raise UserError(f"{name}, which belongs to it, is missing")
            if sha256(beside) != found:
                raise UserError(f"{name}, which belongs to it, is corrupt: its content is not that of its hash")
        return tensors, state

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self.saved > self.seconds

    def save(self, tensors: dict, state: dict) -> None:
        """Keep these tensors and this JSON state; a full disk is said, and survived.

        `at` of the state is the position, `beside` the files of this folder without which it is nothing: name →
        SHA-256.
        """
        about = {
            "identity": canonical(self.identity),
            "state": json.dumps(state | {"seconds": self.recorder.seconds()}),
        }
        try:
            if self.whole:
                with suppress(OSError):  # a file system without links: then there is none before it
                    self.previous.unlink(missing_ok=True)
                    self.previous.hardlink_to(self.path)
            write_tensors(self.path, tensors, about | {"digest": digest(tensors, about)})
            self.whole = True
        except OSError as e:
            print(f"{self.path}: checkpoint not written, the job goes on: {e.strerror or e}", file=sys.stderr)
        self.saved = time.monotonic()

    def remove(self) -> None:
        """The result is there: nothing is left to go on from, and no file beside it."""
        for path in self._files():
            path.unlink(missing_ok=True)
        shutil.rmtree(self._aside(self.identity), ignore_errors=True)


def digest(tensors: dict, about: dict[str, str]) -> str:
    """SHA-256 of everything in a checkpoint: its tensors, and what it says of itself."""
    import torch

    found = hashlib.sha256(canonical([about["identity"], about["state"]]).encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _differences(found: dict, wanted: dict) -> Iterator[str]:
    """Why a checkpoint does not belong to this job, one text per reason."""
    if found["code"] != wanted["code"]:
        yield "it was made by other code"
    if found["device"] != wanted["device"]:
        yield f"it was made on {found['device']}, this is {wanted['device']}"
    for package, was, now in changes(found.get("versions", {}), wanted["versions"]):
        yield f"it was made with {package} {was}, this is {now}"
    for name in sorted(k for k in wanted["inputs"] if found["inputs"].get(k) != wanted["inputs"][k]):
        yield f"it was made from other {name}"
    yield from (f"it belongs to {key} = {was}, now {now}" for key, was, now in changes(found["job"], wanted["job"]))
