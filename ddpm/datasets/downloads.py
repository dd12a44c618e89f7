"""Files of published datasets: found, downloaded by torchvision where they may be, and checked against their hashes."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ddpm.errors import UserError


def root() -> Path:
    """Where downloaded data lie: `$DDPM_DATA` where that is set, else `data/`."""
    return Path(os.environ.get("DDPM_DATA") or "data")


def hashed(path: Path, like: str) -> tuple[str, str]:
    """The name of the hash function that `like` is of, by its length, and the file's hash."""
    algorithm = {32: "md5", 64: "sha256"}[len(like)]
    with path.open("rb") as f:
        return {"md5": "MD5", "sha256": "SHA-256"}[algorithm], hashlib.file_digest(f, algorithm).hexdigest()


def fetched(name: str, place: str, files: Mapping[str, str], download: Callable[[Path], object]) -> Path:
    """The folder `place` below `root()` with these files, name → SHA-256 or MD5, each checked.

    name: what the data are called;  download: fetches them to a root, where DDPM_DATA names none. UserError where a
    file is missing, cannot be downloaded, or is another one.
    """
    folder = root() / place
    if missing := next((file for file in files if not (folder / file).is_file()), None):
        if os.environ.get("DDPM_DATA"):
            says = f"DDPM_DATA={root()} must hold {place} as torchvision lays it out"
            raise UserError(f"{folder / missing}: missing; {says}")
        try:
            download(root())
        except (RuntimeError, OSError, ImportError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(
                f"{folder}: {name} is not there and could not be downloaded ({reason}).\n"
                f"Connect to the network, or set DDPM_DATA to a folder that holds {place}."
            ) from None
    for file, expected in files.items():
        algorithm, found = hashed(folder / file, expected)
        if found != expected:
            size = (folder / file).stat().st_size
            raise UserError(
                f"{folder / file}: not {name}'s file: {algorithm} {found[:12]}… ({size} bytes), not {expected[:12]}….\n"
                f"It is truncated or another file: delete {folder} and run again."
            )
    return folder
