"""What lies in a results folder, what would run now and why, and what that costs: `ddpm status`. No torch."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TypeVar

from ddpm.pipeline import history, locks, looks
from ddpm.pipeline.grid import Cell
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.validity import Reason
from ddpm.pipeline.verdict import degenerate

Key = TypeVar("Key")
# A cell's state, in the order in which they are told.
STATES = ("finished", "diverged", "degenerate", "running", "failed", "stale", "missing", "n/a")


def running(results: Results) -> dict[Job, str]:
    """The jobs that live processes hold the lock of, and who they are."""
    found = {}
    for stage in dict.fromkeys(job[0] for job in results.grid.every):
        root = results.layout.work(stage)
        for path, _, files in os.walk(root):  # which passes over a folder that a finishing job removes
            folder = Path(path)
            if any(file.startswith("lock-") for file in files) and (holder := locks.holder(folder)):
                name = folder.relative_to(root).as_posix()
                found[stage, "" if name == "." else name] = holder
    return found


def states(results: Results) -> dict[str, tuple[str, str]]:
    """Every cell's state and why it is so."""
    live, noise = running(results), results.noise
    return {cell.name: _state(results, cell, live, noise) for cell in results.grid.cells}


def _state(results: Results, cell: Cell, live: dict[Job, str], noise: dict | None) -> tuple[str, str]:
    """One cell's state and why it is so."""
    if cell.reason:
        return "n/a", cell.reason
    jobs = [job for job in results.grid.row(cell) if job[1]]
    for job in jobs:
        if job in live:
            return "running", f"{job[0]}: {live[job]}"
    if lacking := results.lacking(jobs):
        return lacking
    for job in jobs:
        if results.known(*job)["status"] == "diverged":
            return "diverged", job[0]
    sample, fidelity = (results.known(stage, cell.name)["result"] for stage in ("sample", "fidelity"))
    why = degenerate(sample, fidelity, noise)
    return ("degenerate", why) if why else ("finished", "")


class Costs:
    """Seconds of jobs, estimated from the records of the same stage: a job's own former one, else their median."""

    def __init__(self, results: Results):
        self.results = results
        self.rates: dict[str, dict[str, float]] = {}  # stage → job's name → seconds per unit of its work
        for job in results.grid.every:
            if record := results.record(*job):
                self.learn(job, record)

    def learn(self, job: Job, record: dict) -> None:
        """Take the seconds that a record states for those of its job."""
        stage, name = job
        with suppress(LookupError, TypeError, AttributeError):  # a job of another form
            rate = record["costs"]["seconds"] / max(1.0, STAGES[stage].work(record["job"]))
            self.rates.setdefault(stage, {})[name] = rate

    def __call__(self, stage: str, name: str) -> float | None:
        """Seconds, None where no record tells."""
        rates = self.rates.get(stage)
        if not rates:
            return None
        rate = rates.get(name) or median(rates.values())
        return rate * STAGES[stage].work(self.results.grid.job(stage, name)[0])

    def total(self, jobs: list[Job]) -> tuple[float, int]:
        """The seconds of these jobs, and how many of them nothing is known of."""
        known = [self(*job) for job in jobs]
        return sum(s for s in known if s is not None), known.count(None)


def replaced(results: Results) -> list[Job]:
    """The jobs whose present result would be replaced."""
    return [job for job in results.unfinished if results.layout.record(*job).exists()]


def _spent(results: Results, job: Job) -> float | None:
    """The seconds that a job has taken; None where no record tells."""
    record = results.record(*job)
    return record["costs"]["seconds"] if record else None


def overview(results: Results) -> dict:
    """Everything that `ddpm status --json` tells."""
    cells, costs, layout = states(results), Costs(results), results.layout
    seconds, unknown = costs.total(results.unfinished)
    old, counts = replaced(results), Counter(state for state, _ in cells.values())
    count, size = history.size(layout)
    return {
        "results": str(layout.root),
        "cells": {name: {"state": state, "reason": reason} for name, (state, reason) in cells.items()},
        "counts": {state: counts[state] for state in STATES if counts[state]},
        "todo": [
            {
                "stage": stage,
                "name": name,
                "reasons": [{"kind": r.kind, "text": r.text} for r in reasons],
                "seconds": None if stage in AGGREGATES else costs(stage, name),
            }
            for (stage, name), reasons in results.todo.items()
        ],
        "seconds": round(seconds, 1),
        "unknown": unknown,
        "valid": len(results.grid.jobs) - len(results.unfinished),
        "replaced": [{"stage": s, "name": n, "seconds": _spent(results, (s, n))} for s, n in old],
        "kept": {"folder": str(layout.root / "replaced"), "results": count, "bytes": size},
    }


def _grouped(items: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    """Key → what stands with it."""
    found: dict[Key, list[str]] = {}
    for key, value in items:
        found.setdefault(key, []).append(value)
    return found


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _some(texts: list[str], most: int = 3, sign: str = ", ") -> str:
    """The first of them, and how many there are."""
    return sign.join(texts[:most]) + (f"{sign}… ({len(texts)})" if len(texts) > most else "")


def _why(stage: str, reasons: list[Reason]) -> str:
    """A job's reasons in a line: its own, or what it follows from, by stage."""
    if own := [str(r) for r in reasons if r.kind != "follows"]:
        return _some(own, sign="; ")
    texts = [r.text for r in reasons]
    return f"follows from {', '.join(texts if stage in AGGREGATES else dict.fromkeys(t.split(' ')[0] for t in texts))}"


def todo_lines(results: Results, most: int = 20) -> Iterator[str]:
    """What would run now and why: one line per stage and reason; what it costs, and what it replaces."""
    groups = _grouped(((stage, _why(stage, reasons)), name) for (stage, name), reasons in results.todo.items())
    device = results.grid.config["device"]
    seconds, unknown = Costs(results).total(results.unfinished)
    cost = f"about {duration(seconds)} of work" + (f" and {unknown} jobs of unknown cost" if unknown else "")
    yield f"would run now: {len(results.todo)} jobs, {cost} (device: {device})"
    shown = list(groups.items())
    if len(shown) > most:  # what follows goes without saying before what it follows from does
        shown.sort(key=lambda group: group[0][1].startswith("follows from"))
    for (stage, text), names in shown[:most]:
        yield f"  {stage:<10} {len(names):>4}  {text}{': ' + _some(names) if any(names) else ''}"
    if len(groups) > most:
        yield f"  … and {len(groups) - most} more; --json lists all"
    if old := replaced(results):
        lost = sum(_spent(results, job) or 0 for job in old)
        folder = results.layout.root / "replaced"
        yield f"  replaced, and kept in {folder}: {len(old)} results, {duration(lost)} of work"


def plan_lines(results: Results) -> list[str]:
    """What a run of Snakemake is told beforehand: what is stale, or nothing where all is missing or valid."""
    stale = any(r.kind not in ("missing", "follows") for reasons in results.todo.values() for r in reasons)
    told = [*todo_lines(results, most=8), "`ddpm status` tells more"] if stale else []
    return [*told, *mark_lines(results), *looks.lines(results)]


def mark_lines(results: Results) -> list[str]:
    """The marks of batches that Snakemake would write again; those that were never written go without saying."""
    return [f"{path}: {why}; it is written again" for path, why in results.unmarked.items() if path.parent.is_dir()]


def lines(results: Results) -> Iterator[str]:
    """`ddpm status`."""
    grid, cells = results.grid, states(results)
    counts = Counter(state for state, _ in cells.values())
    done = counts["finished"] + counts["diverged"] + counts["degenerate"]
    others = ", ".join(f"{counts[s]} {s}" for s in STATES[1:] if counts[s])
    yield f"{results.layout.root}: {done} of {len(grid.runs)} cells{f' ({others})' if others else ''}"
    for state in STATES[1:-1]:
        yield from _state_lines(state, [(reason, name) for name, (of, reason) in cells.items() if of == state])
    if results.todo:
        yield from todo_lines(results)
    else:
        yield "nothing to run: every result is valid"
    yield from mark_lines(results)
    yield from looks.lines(results)
    count, size = history.size(results.layout)
    if count:
        folder = results.layout.root / "replaced"
        yield f"{count} replaced results in {folder} ({size / 2**20:.0f} MiB that nothing else uses): delete at will"


def _state_lines(state: str, cells: list[tuple[str, str]], most: int = 8) -> Iterator[str]:
    """The cells of one state, (reason, name) each: one line per reason."""
    groups = list(_grouped(cells).items())
    for reason, names in groups[:most]:
        yield f"  {state:<10} {len(names):>4}  {_some(names)}: {reason}"
    if rest := sum(len(names) for _, names in groups[most:]):
        yield f"  {state:<10}       … and {rest} more; --json lists all"


def cell_lines(results: Results, cell: Cell) -> Iterator[str]:
    """`ddpm status CELL`: its jobs with record, log, cost and origin, its numbers, and its samples."""
    layout = results.layout
    state, reason = states(results)[cell.name]
    yield f"{cell.name}: {state}{': ' + reason if reason else ''}"
    if cell.reason:
        return
    for stage, name in results.grid.row(cell):
        record, reasons = results.record(stage, name), list(map(str, results.todo.get((stage, name), ())))
        said = _some(reasons, sign="; ") or results.known(stage, name)["status"]
        yield f"{f'{stage} {name}'.strip()}: {said}"
        batch = results.grid.batch_of[name] if stage == "fidelity" else name
        yield f"  record   {layout.record(stage, name)}    log  {layout.log(stage, batch)}"
        if STAGES[stage].called:
            yield f"  command  ddpm {stage} {name}"
        yield from _record_lines(record) if record else ()
    samples = layout.output("sample", cell.name)
    yield f"samples: {samples}, {samples.with_suffix('.png')}"


def _record_lines(record: dict) -> Iterator[str]:
    """What a record says of a result: cost and origin, and the numbers."""
    costs = record["costs"]
    tree = {True: "edited", False: "clean", None: "no git"}[record["dirty"]]
    yield (
        f"  made     {costs['started']} in {costs['seconds']} s, {costs['peak_memory_mb']:.0f} MiB, on "
        f"{record['device']} ({record['hardware']}, {record['host']}), "
        f"commit {(record['commit'] or 'unknown')[:12]} ({tree}), code {record['code']}"
    )
    numbers = {k: v for k, v in record["result"].items() if isinstance(v, int | float | str)}
    yield "  result   " + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
