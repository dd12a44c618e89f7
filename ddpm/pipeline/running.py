"""What surrounds every stage, whoever starts it: the lock, threads, device, and what the result replaces. No torch.

A job looks for its own result first: a valid one, in its place or among those that were replaced, is left or put
back, and nothing is computed. Then it looks at what it reads: a file that is not the one that its own record describes
is corrupt, and set aside, so that the next run makes it again.
"""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline import fingerprints, history, records
from ddpm.pipeline.checkpoint import SECONDS, previous
from ddpm.pipeline.devices import explained, leased
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.locks import held
from ddpm.pipeline.records import canonical
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.validity import valid

# glibc's names: what may lie free at the end of its memory, in bytes, and how many blocks are mapped one by one.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# What tables and page read besides records, by stage: what every test image costs, curves, and all pictures.
IMAGES = {"likelihood": "images", "ode_likelihood": "images"}
READ = {"table": IMAGES, "page": IMAGES | {"train": "loss", "figures": ""}}


def run_stage(
    stage: str,
    job: dict,
    code: str,
    results: str,
    device: str,
    jobs_per_gpu: int = 1,
    checkpoint_seconds: float = SECONDS,
    again: bool = False,
) -> None:
    """Run one job, alone: a second live copy of it waits. A valid result is left as it is, unless `again`."""
    fix_threads(job)
    keep_freed_memory()
    device = device if STAGES[stage].gpu else "cpu"
    layout, name = Layout(Path(results)), job.get("name", "")
    files = fingerprints.snapshot(STAGES[stage].roots(job))
    if (now := fingerprints.fingerprint(STAGES[stage].roots(job))) != code:
        raise UserError(f"{stage} {name}: its code was edited after it was planned ({code} → {now}): run again")
    # One of several that train together: who launched them holds the lock and the lease.
    if STAGES[stage].processes(job) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        _compute(stage, job, code, layout, device, checkpoint_seconds, files)
        return
    look = not again and stage not in AGGREGATES
    if look and _there(layout, stage, name, job, code):
        return
    with alone(layout, stage, name), _said(layout, stage, name, job, code):
        # Another copy may have ended since.
        if look and (_there(layout, stage, name, job, code) or _put_back(layout, stage, name, job, code)):
            return
        _sweep(layout, stage, name)
        history.clear(layout, layout.code(code), *_written(layout, stage, name, job))
        _sound(layout, stage, name, job)
        processes = STAGES[stage].processes(job)
        with leased(device, processes, jobs_per_gpu) as kind, _replacing(layout, stage, name):
            if processes == 1:
                _compute(stage, job, code, layout, kind, checkpoint_seconds, files)
            else:
                _launch(processes, stage, job, code, results, kind, checkpoint_seconds)
        if not layout.code(code).exists():
            records.write_json(layout.code(code), fingerprints.parts(STAGES[stage].roots(job)))


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees for what it allocates next. glibc would give that of every layer
    back, and mapping it anew takes a seventh of training and a quarter of sampling (docs/speed.md). Other C libraries
    stay as they are."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


def fix_threads(job: dict) -> None:
    """Set how many threads a job computes with, before anything numerical is imported."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(job.get("threads", 1))


def _compute(
    stage: str, job: dict, code: str, layout: Layout, device: str, checkpoint_seconds: float, files: dict
) -> None:
    """The stage itself, with the code that `files` were."""
    import_module(STAGES[stage].starts(job)[0])
    if fingerprints.snapshot(STAGES[stage].roots(job)) != files:
        raise UserError(f"{stage} {job.get('name', '')}: the code was edited while it was loaded: run again")
    with explained(stage, job):
        execute(stage, job, code, layout, device, checkpoint_seconds)


def _launch(
    processes: int, stage: str, job: dict, code: str, results: str, device: str, checkpoint_seconds: float
) -> None:
    """The stage itself, in several processes that train together."""
    options = {"--job": canonical(job), "--code": code, "--results": results, "--device": device}
    options |= {"--checkpoint-seconds": str(checkpoint_seconds)}
    launch = import_module("ddpm.pipeline.parallel").launch
    launch(processes, ["job", stage, *(text for option in options.items() for text in option)])


@contextmanager
def alone(layout: Layout, stage: str, name: str) -> Iterator[None]:
    """Hold a job's lock; what is no lock in its place is set aside first."""
    folder = layout.work(stage, name)
    history.clear(layout, layout.state(stage, name), *folder.glob("lock-*"))
    with held(folder):
        yield


def _written(layout: Layout, stage: str, name: str, job: dict) -> list[Path]:
    """The files that a job will write."""
    if stage == "figures":
        grid = Grid(job["config"])
        return [layout.record(stage), *layout.pictures(grid.pictures, grid.runs)]
    checkpoint = layout.checkpoint(stage, name)
    return [layout.record(stage, name), *layout.outputs(stage, name), checkpoint, previous(checkpoint)]


def _read(layout: Layout, stage: str, name: str, job: dict) -> Iterator[tuple[Job, dict, list[str]]]:
    """The jobs whose files one job reads, the record of each, and the names of those of its outputs that are read."""
    if stage in AGGREGATES:
        results = Results(Grid(job["config"]), layout)
        for parent in results.reads(stage):
            if stage == "figures":  # everything, and nothing may be missing
                record = records.read_record(layout.record(*parent))
                yield parent, record, list(record["outputs"])
            elif parent[0] in READ[stage] and (there := results.valid(*parent)):  # of what is there
                file = READ[stage][parent[0]]
                yield parent, there, [layout.output(*parent, file).name] if file else list(there["outputs"])
        return
    for parent in STAGES[stage].parents(name, job).values():
        record = records.read_record(layout.record(*parent))
        yield parent, record, [layout.output(*parent).name]


def _sound(layout: Layout, stage: str, name: str, job: dict) -> None:
    """UserError where a file that the job reads is not the one that the record beside it describes.

    It is set aside, which makes its own job's result invalid: the next run makes it again, to the same bytes, so that
    everything that was made from the good file stays valid.
    """
    said = []
    for parent, record, names in _read(layout, stage, name, job):
        place = layout.record(*parent)
        if not records.damaged(place, record, names=names):
            continue
        with alone(layout, *parent):  # somebody else may have made it again since
            for output, why in records.damaged(place, records.read_record(place), names=names).items():
                file = Path(os.path.normpath(place.parent / output))
                where = f"; set aside in {history.aside(layout, file)}" if os.path.lexists(file) else ""
                said.append(f"{file}: corrupt: {why}{where}")
    if said:
        raise UserError(f"{'; '.join(said)}: run again, the next `snakemake` makes it again")


def _sweep(layout: Layout, stage: str, name: str) -> None:
    """Remove the temporary files of copies that were killed while they wrote; the lock's holder is the only writer."""
    if stage not in AGGREGATES:
        for path in (layout.checkpoint(stage, name), layout.record(stage, name), *layout.outputs(stage, name)):
            for left in path.parent.glob(f".{path.name}.*"):
                history.clear(layout, left)
                left.unlink(missing_ok=True)


def _matches(record: Path, layout: Layout, stage: str, name: str, job: dict, code: str) -> bool:
    """Whether the record of a valid result of this very job lies there."""
    # What the user has taken away since it was read, a folder of images, is not asked for.
    own = STAGES[stage].sources(job)
    inputs = {of: path for of, path in layout.inputs(stage, name, job).items() if of not in own or path.exists()}
    files = {path.name for path in layout.outputs(stage, name)}
    return valid(record, job, code, inputs, STAGES[stage].environment(job), stage, files)


def _there(layout: Layout, stage: str, name: str, job: dict, code: str) -> bool:
    """Whether the job's valid result is in its place."""
    place = layout.record(stage, name)
    found = _matches(place, layout, stage, name, job, code)
    if found:
        print(f"{place}: already there", file=sys.stderr)
    return found


def _put_back(layout: Layout, stage: str, name: str, job: dict, code: str) -> bool:
    """Whether the job's valid result was among the replaced ones, and now is in its place."""
    for record in history.candidates(layout, stage, name):
        if _matches(record, layout, stage, name, job, code):
            history.archive(layout, stage, name)
            history.archive_tables(layout)
            history.restore(record, layout.record(stage, name))
            print(f"{layout.record(stage, name)}: put back from {record.parent}", file=sys.stderr)
            return True
    return False


@contextmanager
def _replacing(layout: Layout, stage: str, name: str) -> Iterator[None]:
    """Keep what the job replaces, and set aside the tables that it makes old."""
    if stage in AGGREGATES:
        if stage == "table":
            with suppress(FileNotFoundError):  # another job sets it aside
                history.archive(layout, stage)
        elif (place := layout.record(stage)).exists():  # pictures are not kept
            for path, why in history.flaws(layout, place, place).items():
                print(f"{path}: {why}; made again", file=sys.stderr)
        yield
        return
    folder = history.archive(layout, stage, name)
    history.archive_tables(layout)
    try:
        yield
    except BaseException:
        history.discard(folder, layout.record(stage, name))
        raise


@contextmanager
def _said(layout: Layout, stage: str, name: str, job: dict, code: str) -> Iterator[None]:
    """A failure leaves its message where `ddpm status` finds it; the next success removes it."""
    path = layout.state(stage, name)
    try:
        yield
    except Exception as e:
        text = str(e) or type(e).__name__
        with suppress(OSError):  # a full disk has said so already
            records.write_json(path, {"failed": text, "job": job, "code": code, "time": time.time()})
        raise
    path.unlink(missing_ok=True)
