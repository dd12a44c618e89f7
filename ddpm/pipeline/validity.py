"""Whether a result is the one that a job asks for, and if not, why: the one rule for planning and for jobs. No torch.

A result is valid if its record is whole, of this job, this code and these package versions, if it was made from the
inputs that lie there now, and if its outputs are as it left them. Times of files decide nothing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline.records import canonical, changes, damaged, read_record, sha256


@dataclass(frozen=True)
class Reason:
    """Why a job would run: its kind, and what exactly."""

    kind: str  # missing, record, parameter, code, environment, input, output or follows
    text: str

    @property
    def state(self) -> str:
        """What the result is for this reason: missing, or stale."""
        return "missing" if self.kind == "missing" else "stale"

    def __str__(self) -> str:
        return f"follows from {self.text}" if self.kind == "follows" else self.text


def reasons(
    place: Path,
    record: dict,
    job: dict,
    code: str,
    versions: Mapping[str, str],
    inputs: Mapping[str, str | None],
    files: Collection[str],
    whole: bool,
) -> Iterator[Reason]:
    """Why the record at `place` is not of this job and code; nothing where it is.

    versions: those of the packages that count;  inputs: the hashes of what the job reads, None where unknown;
    files: the names of the outputs that it must know;  whole: whether every output is hashed (`records.damaged`).
    """
    for change in changes(record["job"], job):
        yield Reason("parameter", _change(*change))
    if record["code"] != code:
        yield Reason("code", f"code: {record['code']} → {code}")
    for package in sorted(k for k, v in versions.items() if record["versions"].get(k) != v):
        yield Reason("environment", f"{package}: {record['versions'].get(package, 'none')} → {versions[package]}")
    for name, hashed in inputs.items():
        if hashed is not None and record["inputs"].get(name) != hashed:
            yield Reason("input", f"made from other {name} than lies there now")
    for output, why in damaged(place, record, whole).items():
        yield Reason("output", f"{output}: {why}")
    for output in sorted(set(files) - record["outputs"].keys()):
        yield Reason("record", f"{output}: its record knows nothing of it")


def valid(
    place: Path,
    job: dict,
    code: str,
    inputs: Mapping[str, Path] | None = None,
    versions: Mapping[str, str] | None = None,
    stage: str = "",
    files: Collection[str] = (),
) -> bool:
    """Whether a valid result of this job lies at `place`, everything hashed; inputs are the files as they are now."""
    try:
        record = read_record(place, stage)
        hashed = {name: sha256(file) for name, file in (inputs or {}).items()}
    except (UserError, OSError):
        return False
    other = reasons(place, record, job, code, versions or {}, hashed, files, whole=True)
    return stage in ("", record["stage"]) and next(other, None) is None


def _change(key: str, was: object, now: object) -> str:
    """`training.steps: 24 → 48`."""
    return f"{key}: {_short(was)} → {_short(now)}"


def _short(value: object) -> str:
    text = "none" if value is None else canonical(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
