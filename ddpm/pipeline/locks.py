"""One live copy of a job at a time, on one machine or on several that share a folder. No torch.

Slurm may start a job again while its first copy still runs (a lost slurmd), and so may a restarted Snakemake. `flock`
is not to be relied on over NFS, so the lock is a file that appears by link(2), which is atomic there too, and whose
holder touches it every few seconds. Its name counts up: `lock-1`, `lock-2`, …; the highest is the valid one. A dead
holder's lock is succeeded by the next number, so that two who find the same dead one cannot both succeed it.
"""

import errno
import json
import os
import platform
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm.errors import UserError

BEAT = 10.0  # seconds between two signs of life
STALE = 90.0  # seconds without one after which a holder on another machine is dead; NFS may lag by 60


def machine() -> str:
    """Where process numbers mean the same: one boot of one machine, one container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def born(pid: int) -> str | None:
    """When a process of this machine started, which tells it from a later one of its number; None if it has ended."""
    if not Path("/proc/self/stat").exists():  # macOS
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return ""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _newest(folder: Path) -> int:
    numbers = [int(m[1]) for p in folder.iterdir() if (m := re.fullmatch(r"lock-(\d+)", p.name))]
    return max(numbers, default=0)


def _linked(old: Path, new: Path) -> bool:
    """Whether `new` is now a second name of `old`, and was nobody's before."""
    try:
        new.hardlink_to(old)
    except PermissionError as e:
        if e.errno == errno.EPERM:
            raise UserError(
                f"{new.parent}: this file system has no hard links, by which a job is kept to one live copy; let "
                "`results` be a folder of another one"
            ) from None
        raise
    except FileExistsError:
        return old.stat().st_nlink > 1  # NFS lost the answer and asked again: it was this process's own link
    return True


class _Watch:
    """Whether the holder of a lock is dead: by its process on this machine, elsewhere by no sign of life for long.

    Elsewhere only changes count, timed by this machine's clock: clocks of two machines may differ.
    """

    def __init__(self, stale: float):
        self.stale, self.since = stale, 0.0
        self.seen: tuple[str, bytes, int] | None = None  # its file's name, content and time
        self.holder: dict = {}

    def dead(self, path: Path) -> bool:
        try:
            with path.open("rb") as f:  # opening makes NFS ask the server
                text, touched = f.read(), os.fstat(f.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False  # released just now
        try:
            self.holder = dict(json.loads(text))
        except (ValueError, TypeError):
            self.holder = {}
        if self.holder.get("machine") == machine() and self.holder.keys() >= {"pid", "born"}:
            return born(self.holder["pid"]) != self.holder["born"]
        if (path.name, text, touched) != self.seen:
            self.seen, self.since = (path.name, text, touched), time.monotonic()
        return time.monotonic() - self.since > self.stale

    def __str__(self) -> str:
        job = f", Slurm job {self.holder['slurm']}" if self.holder.get("slurm") else ""
        return f"process {self.holder.get('pid', '?')} on {self.holder.get('host', 'another host')}{job}"


def _acquire(folder: Path, beat: float, stale: float) -> Path:
    """This process's lock, as soon as it has it; whom it waits for is said."""
    content = json.dumps(
        {
            "pid": os.getpid(),
            "born": born(os.getpid()),
            "machine": machine(),
            "host": platform.node(),
            "slurm": os.environ.get("SLURM_JOB_ID", ""),
        }
    )
    watch, said, own, vanished = _Watch(stale), False, folder / f".lock.{uuid.uuid4().hex}", 0
    try:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not own.exists():
                    own.write_text(content, encoding="utf-8")
                last = _newest(folder)
                before, mine = folder / f"lock-{last}", folder / f"lock-{last + 1}"
                if not last or watch.dead(before):
                    if _takes_over(own, mine, before if last else None, watch):
                        return mine
                    continue
                if not said and before.exists():
                    print(f"{before}: held by {watch}; waiting for it", file=sys.stderr, flush=True)
                    said = True
                time.sleep(min(1.0, beat))
            except OSError as e:
                # A holder that releases removes folder and files at any time: look again, but not for ever.
                vanished += 1
                if e.errno not in (errno.ENOENT, errno.ESTALE, errno.EEXIST) or folder.is_file() or vanished > 200:
                    raise
                time.sleep(0.01)
    finally:
        with suppress(NotADirectoryError):
            own.unlink(missing_ok=True)


def _takes_over(own: Path, mine: Path, before: Path | None, watch: _Watch) -> bool:
    """Whether this process now holds the lock `mine`, as the one that succeeds the dead holder of `before`."""
    if not _linked(own, mine):
        return False
    number, succeeded = int(mine.name.removeprefix("lock-")), False
    try:
        # Only a successor removes its predecessor: one that has gone, or is alive now, was succeeded by somebody else.
        if _newest(mine.parent) == number and (before is None or watch.dead(before)):
            if before is not None:
                print(f"{before}: {watch} is dead; taking its place", file=sys.stderr, flush=True)
            for other in range(1, number):
                mine.with_name(f"lock-{other}").unlink(missing_ok=True)
            succeeded = True
    finally:
        if not succeeded:
            mine.unlink(missing_ok=True)
    return succeeded


def _lost(lock: Path) -> None:
    """This process was taken for dead (it was stopped for long): another copy has its place."""
    print(f"{lock}: another copy has taken over; this one ends", file=sys.stderr, flush=True)
    os._exit(75)


def _keep(lock: Path, beat: float, done: threading.Event) -> None:
    """Touch the lock until `done`."""
    while not done.wait(beat):
        try:
            os.utime(lock)
            lost = _newest(lock.parent) != int(lock.name.removeprefix("lock-"))
        except FileNotFoundError:
            lost = True
        except OSError:
            continue  # a file system in trouble: others see no sign of life
        if lost and not done.is_set():
            _lost(lock)


@contextmanager
def held(folder: Path, beat: float = BEAT, stale: float = STALE) -> Iterator[None]:
    """Hold the folder's lock, waiting while a live process has it."""
    lock = _acquire(folder, beat, stale)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lock, beat, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        # What killed holders left half written; those who wait write theirs again.
        with suppress(OSError):
            for left in folder.glob(".*"):
                left.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: a checkpoint, or another job's folder beside it
            os.removedirs(folder)


def holder(folder: Path) -> str:
    """Who holds the folder's lock now; empty where nobody does, or whoever did is dead as far as this machine sees.

    A holder on another machine counts as alive while its last sign of life is younger than `STALE` by its file's time.
    """
    try:
        path = folder / f"lock-{_newest(folder)}"
        watch, age = _Watch(STALE), time.time() - path.stat().st_mtime
        dead = watch.dead(path) or (watch.holder.get("machine") != machine() and age > STALE)
    except OSError:
        return ""
    return "" if dead else str(watch)
