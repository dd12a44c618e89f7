"""Every byte of a results folder against what the records say of it: `ddpm status --hash`. No torch.

Planning trusts an output that has its size and is not newer than its record; this hashes. What is corrupt is set aside,
so that the next run misses it, and makes it again.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ddpm.pipeline import fingerprints, history, locks, records
from ddpm.pipeline.results import Results
from ddpm.pipeline.running import alone
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import STAGES

AGAIN = "the next run makes it again"


@dataclass(frozen=True)
class Flaw:
    """A file that is not as it was written: what is found and what was expected, and what becomes of it."""

    path: Path
    text: str
    cure: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}; {self.cure}"


def flaws(results: Results) -> Iterator[Flaw]:
    """Hash all results of a grid, their tables and figures, and what was kept; set aside what is corrupt."""
    jobs = results.grid.every
    total = sum(_bytes(results, *job) for job in jobs)
    # After a second, and on a terminal alone.
    with tqdm(total=total, desc="hash", unit="B", unit_scale=True, disable=None, delay=1, file=sys.stderr) as progress:
        for job in jobs:
            yield from _result(results, *job)
            progress.update(_bytes(results, *job))
    yield from _marks(results)
    yield from _codes(results)
    yield from _kept(results)


def _bytes(results: Results, stage: str, name: str) -> int:
    return sum((results.record(stage, name) or {}).get("bytes", {}).values())


def _result(results: Results, stage: str, name: str) -> Iterator[Flaw]:
    """The record of one job and its outputs."""
    layout, place = results.layout, results.layout.record(stage, name)
    if holder := locks.holder(layout.work(stage, name)):
        print(f"{place}: not looked at, its job runs: {holder}", file=sys.stderr)
        return
    record = results.record(stage, name)
    if record is None:
        (problem,) = results.reasons(stage, name)
        # Where there is a whole table, there was everything.
        if problem.kind != "missing" or _complete(results):
            yield Flaw(place, problem.text.removeprefix(f"{place.name}: "), AGAIN)
        return
    if not records.damaged(place, record):
        return
    with alone(layout, stage, name):
        for output, why in records.damaged(place, record).items():
            file = Path(os.path.normpath(place.parent / output))
            where = f"set aside in {history.aside(layout, file)}, " if os.path.lexists(file) else ""
            yield Flaw(file, why, where + AGAIN)


def _complete(results: Results) -> bool:
    """Whether a table of all cells of this very grid was made."""
    table = results.record("table")
    if table is None:
        return False
    return not table["result"].get("missing") and table["job"] == results.grid.job("table")[0]


def _marks(results: Results) -> Iterator[Flaw]:
    """What tells Snakemake that a batch was measured; one that is missing means nothing, jobs run without it."""
    for path, why in results.unmarked.items():
        if os.path.lexists(path):
            yield Flaw(path, why, AGAIN)


def _codes(results: Results) -> Iterator[Flaw]:
    """What the fingerprints stand for by which changes are named; what is wrong is written again at once."""
    grid, layout = results.grid, results.layout
    found: dict[str, Job] = {}
    for job in grid.every:
        record = results.record(*job)
        if record and record["code"] == grid.job(*job)[1]:
            found.setdefault(record["code"], job)
    for code, (stage, name) in found.items():
        path, wanted = layout.code(code), fingerprints.parts(STAGES[stage].roots(grid.job(stage, name)[0]))
        try:
            why = "" if json.loads(path.read_bytes()) == wanted else "it is not what its fingerprint stands for"
        except (FileNotFoundError, NotADirectoryError):
            why = "it is missing"
        except (OSError, ValueError, RecursionError) as e:
            why = f"it is no JSON ({e})"
        if why:
            history.clear(layout, path)
            records.write_json(path, wanted)
            yield Flaw(path, why, "written again")


def _kept(results: Results) -> Iterator[Flaw]:
    """The results that were replaced: one that is not whole is never put back, and is set aside."""
    layout, home = results.layout, results.layout.root / "replaced"
    for folder in sorted(home.rglob("*-*")):
        record = folder / f"{folder.name.rpartition('-')[0]}.json"
        if folder.relative_to(home).parts[0].startswith("corrupt-") or not _holds(folder, record):
            continue
        place = layout.root / folder.parent.relative_to(home) / record.name
        if bad := history.flaws(layout, record, place):
            where = history.aside(layout, folder)
            for path, why in bad.items():
                yield Flaw(path, why, f"set aside in {where}; what would have been put back is computed instead")


def _holds(folder: Path, record: Path) -> bool:
    """Whether a result was kept in a folder, by its name, and by what is in it: not folders alone, and no record."""
    if not re.fullmatch(".*-[0-9a-f]{8}", folder.name) or not folder.is_dir():
        return False
    inside = list(folder.iterdir())
    return not inside or record in inside or not all(path.is_dir() for path in inside)
