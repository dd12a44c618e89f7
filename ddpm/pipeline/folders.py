"""A folder of images of the user's own: which files count, whether they have changed, what is wrong with it. No torch.

Every file below the folder whose name ends as an image's does, and does not begin with a dot, is an image of the data;
all other files are left alone.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ddpm.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".avif", ".heic", ".jp2")
ONE = "holds one image; it takes two, one for each split"


def located(path: str) -> Path:
    """The folder that a configuration names."""
    return Path(path).expanduser()


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); its images are a part of the data")


def _walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder from this one down, and the images in it, both in the order of their names; links are followed, but
    to a folder that they lie in."""
    for place, inner, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        above = Path(place).resolve()
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and Path(place, name).resolve() not in (above, *above.parents)
        )
        images = (name for name in sorted(names) if not name.startswith(".") and name.lower().endswith(SUFFIXES))
        yield Path(place), [Path(place, name) for name in images]


def images(folder: Path) -> list[Path]:
    """The images, in the order of their paths."""
    return sorted(path for _, found in _walk(folder) for path in found)


def classes(folder: Path) -> list[str]:
    """The sub-folders, by name: where the data are labelled, each is a class, number 0, 1, …"""
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path.name for path in inner)


def held_out(count: int, share: float) -> int:
    """How many of `count` images go to the test split: `share` of them, but one at least, and not all."""
    return min(count - 1, max(1, round(share * count)))


def mistakes(path: str, labels: bool) -> list[str]:
    """Why this cannot be a folder of images, labelled by its sub-folders or not; one line each."""
    folder = located(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        return [f"data.path: {path!r} {what}; it must be a folder of images"]
    found = images(folder)
    if not found:
        return [f"data.path: {path!r} holds no image: no file that ends in {', '.join(SUFFIXES)}"]
    if labels:
        return list(_of_classes(path, folder, found))
    return [] if len(found) > 1 else [f"data.path: {path!r} {ONE}"]


def _of_classes(path: str, folder: Path, found: list[Path]) -> Iterator[str]:
    """What is wrong with the sub-folders of images that are to be classes."""
    sizes = Counter(image.relative_to(folder).parts[0] for image in found if image.parent != folder)
    if outside := [image.name for image in found if image.parent == folder]:
        yield (
            f"data.path: {path!r} holds {len(outside)} images outside of its sub-folders, {outside[0]} first; with "
            "`labels: true` each lies in the sub-folder of its class, without it all are of none"
        )
    for name in classes(folder):
        if sizes[name] < 2:
            what = ONE if sizes[name] else "holds no image"
            yield f"data.path: the class {(folder / name).as_posix()!r} {what}"


def sizes(path: str, labels: bool, share: float) -> tuple[int, int]:
    """How many images the training and the test split have, of a folder without mistakes."""
    folder = located(path)
    of = (image.relative_to(folder).parts[0] if labels else "" for image in images(folder))
    counts = Counter(of).values()
    test = sum(held_out(count, share) for count in counts)
    return sum(counts) - test, test


def digest(folder: Path) -> str:
    """SHA-256 over the images' paths in the folder and their own SHA-256: of names and contents alone."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it must be the one of the images that data.path names")
    whole = hashlib.sha256()
    for image in images(folder):
        with image.open("rb") as f:
            whole.update(f"{image.relative_to(folder).as_posix()}\0{_hash(f)}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _hash(file: object) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def stamp(folder: Path) -> tuple[list[object], int]:
    """What changes whenever the hash of a folder of images, or of a file, may: its real place, how many folders and
    images it has, their bytes, and when the latest of them was changed; and that time alone, in ns.

    That is the time of the last change of content, name, place or rights (ctime), which nobody sets: a file that was
    copied with an older time, or moved, is new all the same.
    """
    count, total, latest = 0, 0, 0
    for place, found in _walk(folder) if folder.is_dir() else [(folder.parent, [folder])]:
        for path in (place, *found):
            state = path.stat()
            count, latest = count + 1, max(latest, state.st_ctime_ns, state.st_mtime_ns)
            total += state.st_size if path != place else 0
    return [str(folder.resolve()), count, total, latest], latest
