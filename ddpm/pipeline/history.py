"""What a new result replaces is kept: linked into `results/replaced/`, and taken from there if it is asked for again.

No torch. Links cost no space while both names are there, and results are only ever replaced by renaming, so that a
kept file cannot change. What is corrupt, or in the way of a result, is moved to `results/replaced/corrupt-…/`, so that
nothing is ever lost and nothing trusts it. `results/replaced/` may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import OtherFormat, damaged, job_of, read_record, sha256


def _link(old: Path, new: Path) -> None:
    """The file under a second name, where the file system can; else a copy."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except FileExistsError:
        if sha256(old) != sha256(new):  # it was corrupted
            new.unlink()
            _link(old, new)
    except OSError:
        shutil.copy2(old, new)


def archive(layout: Layout, stage: str, name: str = "") -> Path | None:
    """Link what lies at a job's place into `results/replaced/`: its folder there; None where nothing lay there.

    What is not whole is kept as that, where nothing is put back from, and what is wrong with it is said.
    """
    record = layout.record(stage, name)
    files = [path for path in (*layout.outputs(stage, name), record) if path.is_file()]
    if not files:
        return None
    if bad := flaws(layout, record, record):
        folder = _corrupt(layout) / record.parent.relative_to(layout.root)
    else:
        folder = layout.replaced(record) / f"{record.stem}-{hashlib.sha256(record.read_bytes()).hexdigest()[:8]}"
    copies = {path: folder / path.relative_to(record.parent) for path in files}
    clear(layout, *copies.values())
    for path, copy in copies.items():
        _link(path, copy)
    for path, why in bad.items():
        print(f"{path}: {why}; made again, the existing file is preserved in {folder}", file=sys.stderr)
    return folder


def flaws(layout: Layout, record: Path, place: Path) -> dict[Path, str]:
    """The files of a result that are not as they were written, and what is wrong with each: all of it is hashed.

    place: where a result with this record belongs.
    """
    try:
        held = read_record(record)
        if layout.record(*(of := job_of(held))) != place:
            return {record: f"it is of {' '.join(of).strip()}"}
        found = damaged(record, held)
        return {Path(os.path.normpath(record.parent / name)): why for name, why in found.items()}
    except OtherFormat:
        return {}
    except (UserError, OSError, ValueError) as e:
        return {record: str(e).removeprefix(f"{record}: ").split(";")[0]}


def _corrupt(layout: Layout) -> Path:
    """A new folder for what is no result; a file in the way of all of them is renamed."""
    unique, home = uuid.uuid4().hex[:8], layout.root / "replaced"
    if os.path.lexists(home) and not home.is_dir():
        home.rename(home.with_name(f"replaced.corrupt-{unique}"))
    return home / f"corrupt-{unique}"


def aside(layout: Layout, path: Path) -> Path:
    """Move what is no result to a new folder below `results/replaced/`, under the path that it had."""
    folder = _corrupt(layout)
    if os.path.lexists(path):
        target = folder / path.relative_to(layout.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    return folder


def clear(layout: Layout, *files: Path) -> None:
    """Make way for these files below the root: no folder or dangling link in their place, no file in a folder's."""
    for file in files:
        for path in reversed([file, *file.parents][: len(file.relative_to(layout.root).parts)]):
            with suppress(FileNotFoundError):  # nothing is there, or another job has made way
                mode = path.lstat().st_mode
                right = path.is_file() or stat.S_ISREG(mode) if path == file else path.is_dir()
                if not right:
                    folder = aside(layout, path)
                    wanted = "file" if path == file else "folder"
                    print(f"{path}: is no {wanted}, as it should be; set aside in {folder}", file=sys.stderr)


def discard(folder: Path | None, record: Path) -> None:
    """Nothing was replaced after all: remove the second names, if everything kept is still in its place."""
    if folder is None:
        return
    names = [path for path in folder.rglob("*") if not path.is_dir()]
    with suppress(OSError):
        if names and all(path.samefile(record.parent / path.relative_to(folder)) for path in names):
            for path in names:
                path.unlink()
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those in it and above it that hold nothing."""
    with suppress(OSError):
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            path.rmdir()
        os.removedirs(folder)


def candidates(layout: Layout, stage: str, name: str = "") -> Iterator[Path]:
    """The records that were kept from a job's place."""
    record = layout.record(stage, name)
    yield from layout.replaced(record).glob(f"{record.stem}-*/{record.name}")


def restore(record: Path, place: Path) -> None:
    """Put a kept result back, its record last; until then it stays kept."""
    place.parent.mkdir(parents=True, exist_ok=True)
    names = [*json.loads(record.read_bytes())["outputs"], record.name]
    for name in names:
        target = place.parent / name
        temporary = target.with_name(f".{target.name}.restored")
        temporary.unlink(missing_ok=True)
        _link(record.parent / name, temporary)
        temporary.replace(target)
        temporary.unlink(missing_ok=True)  # renaming one name of a file to another of its names does nothing
    for name in names:
        (record.parent / name).unlink()
    _remove_empty(record.parent)


def archive_tables(layout: Layout) -> None:
    """Set the tables aside: they are of results that are about to change. Another job may do so at the same time."""
    files = layout.record("table"), *layout.outputs("table")
    clear(layout, *files)
    with suppress(FileNotFoundError):
        archive(layout, "table")
    for path in files:
        path.unlink(missing_ok=True)


def size(layout: Layout) -> tuple[int, int]:
    """How many results were kept, and their bytes; a file that is also in use takes none."""
    folders, total = set(), 0
    for path in (layout.root / "replaced").rglob("*.*"):
        if path.is_file():
            found = path.stat()
            folders.add(path.parent)
            total += found.st_size if found.st_nlink == 1 else 0
    return len(folders), total
