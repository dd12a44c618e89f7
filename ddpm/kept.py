"""What a new result replaces is kept: linked into `results/replaced/`, and taken from there if it is asked for again.

No torch. Links cost no space while both names are there, and results are only ever replaced by renaming, so that a
kept file cannot change. `results/replaced/` may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ddpm.layout import Layout


def _link(old: Path, new: Path) -> None:
    """The file under a second name, where the file system can; else a copy."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except FileExistsError:
        return
    except OSError:
        shutil.copy2(old, new)


def keep(layout: Layout, stage: str, name: str = "") -> Path | None:
    """Link what lies at a job's place into `results/replaced/`: its folder there; None where nothing lay there.

    Whatever is found is kept, also what has no record or one that cannot be read.
    """
    record = layout.record(stage, name)
    files = [path for path in (*layout.outputs(stage, name), record) if path.is_file()]
    if not files:
        return None
    content = record.read_bytes() if record in files else repr([(p.name, p.stat().st_mtime_ns) for p in files]).encode()
    folder = layout.replaced(record) / f"{record.stem}-{hashlib.sha256(content).hexdigest()[:8]}"
    for path in files:
        _link(path, folder / path.name)
    return folder


def unused(folder: Path | None, record: Path) -> None:
    """Nothing was replaced after all: remove the second names, if everything kept is still in its place."""
    names = list(folder.iterdir()) if folder else []
    with suppress(OSError):
        if names and all(path.samefile(record.parent / path.name) for path in names):
            for path in names:
                path.unlink()
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
    with suppress(OSError):
        os.removedirs(record.parent)


def retire(layout: Layout) -> None:
    """Set the tables aside: they are of results that are about to change. Another job may do so at the same time."""
    with suppress(FileNotFoundError):
        keep(layout, "table")
    for path in (layout.record("table"), *layout.outputs("table")):
        path.unlink(missing_ok=True)


def size(layout: Layout) -> tuple[int, int]:
    """How many results were kept, and their bytes; a file that is also in use takes none."""
    folders, total = set(), 0
    for path in (layout.root / "replaced").rglob("*.*"):
        stat = path.stat()
        if path.is_file():
            folders.add(path.parent)
            total += stat.st_size if stat.st_nlink == 1 else 0
    return len(folders), total
