"""What lies in a results folder, what would run now and why, and what that costs: `ddpm status`. No torch."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from statistics import median

from ddpm.pipeline import history, locks
from ddpm.pipeline.grid import Cell
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.verdict import degenerate

# A cell's state, in the order in which they are told.
STATES = ("finished", "diverged", "degenerate", "running", "failed", "stale", "missing", "n/a")


def running(results: Results) -> dict[Job, str]:
    """The jobs that live processes hold the lock of, and who they are."""
    found = {}
    for stage in (*dict.fromkeys(job[0] for job in results.grid.jobs), *AGGREGATES):
        root = results.layout.work(stage)
        for folder in {path.parent for path in root.rglob("lock-*")}:
            if holder := locks.holder(folder):
                name = folder.relative_to(root).as_posix()
                found[stage, "" if name == "." else name] = holder
    return found


def states(results: Results) -> dict[str, tuple[str, str]]:
    """Every cell's state and why it is so."""
    live, found = running(results), {}
    noise = (results.valid("fidelity", "noise") or {}).get("result")
    for cell in results.grid.cells:
        if cell.reason:
            found[cell.name] = "n/a", cell.reason
            continue
        jobs = [job for job in results.grid.row(cell) if job[1]]
        todo = [job for job in jobs if job in results.todo]
        if held := [job for job in jobs if job in live]:
            found[cell.name] = "running", f"{held[0][0]}: {live[held[0]]}"
        elif failed := [(job, text) for job in todo if (text := results.failure(*job))]:
            (stage, _), text = failed[0]
            found[cell.name] = "failed", f"{stage}: {text.splitlines()[0]}"
        elif todo:
            reasons = [(stage, r) for stage, name in todo for r in results.todo[stage, name] if r.kind != "follows"]
            stale = [(stage, r) for stage, r in reasons if r.kind != "missing"]
            stage, reason = (stale or reasons or [(todo[0][0], results.todo[todo[0]][0])])[0]
            found[cell.name] = "missing" if reason.kind == "missing" else "stale", f"{stage}: {reason}"
        elif bad := [stage for stage, name in jobs if results.known(stage, name)["status"] == "diverged"]:
            found[cell.name] = "diverged", bad[0]
        elif why := degenerate(
            results.known("sample", cell.name)["result"], results.known("fidelity", cell.name)["result"], noise
        ):
            found[cell.name] = "degenerate", why
        else:
            found[cell.name] = "finished", ""
    return found


class Costs:
    """Seconds of jobs, estimated from the records of the same stage: a job's own former one, else their median."""

    def __init__(self, results: Results):
        self.results = results
        self.rates: dict[str, dict[str, float]] = {}  # stage → job's name → seconds per unit of its work
        for job in (*results.grid.jobs, *((stage, "") for stage in AGGREGATES)):
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
        """The seconds of these jobs, and how many of them nothing is known of; aggregates do not count."""
        known = [self(*job) for job in jobs if job[0] not in AGGREGATES]
        return sum(s for s in known if s is not None), known.count(None)


def replaced(results: Results) -> list[Job]:
    """The jobs whose present result would be replaced."""
    return [job for job in results.todo if job[0] not in AGGREGATES and results.layout.record(*job).exists()]


def overview(results: Results) -> dict:
    """Everything that `ddpm status --json` tells."""
    cells, costs, layout = states(results), Costs(results), results.layout
    seconds, unknown = costs.total(list(results.todo))
    old = replaced(results)
    count, size = history.size(layout)
    return {
        "results": str(layout.root),
        "cells": {name: {"state": state, "reason": reason} for name, (state, reason) in cells.items()},
        "counts": {state: n for state in STATES if (n := sum(s == state for s, _ in cells.values()))},
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
        "valid": len(results.grid.jobs) - sum(stage not in AGGREGATES for stage, _ in results.todo),
        "replaced": [
            {"stage": s, "name": n, "seconds": (results.record(s, n) or {}).get("costs", {}).get("seconds")}
            for s, n in old
        ],
        "kept": {"folder": str(layout.root / "replaced"), "results": count, "bytes": size},
    }


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _some(texts: list[str], most: int = 3, sign: str = ", ") -> str:
    """The first of them, and how many there are."""
    return sign.join(texts[:most]) + (f"{sign}… ({len(texts)})" if len(texts) > most else "")


def todo_lines(results: Results, most: int = 20) -> Iterator[str]:
    """What would run now and why: one line per stage and reason; what it costs, and what it replaces."""
    groups: dict[tuple[str, str], list[str]] = {}
    for (stage, name), reasons in results.todo.items():
        own = [r for r in reasons if r.kind != "follows"]
        texts = [r.text for r in reasons if r.kind == "follows"]
        follows = texts if stage in AGGREGATES else dict.fromkeys(text.split(" ")[0] for text in texts)
        text = _some(list(map(str, own)), sign="; ") or f"follows from {', '.join(follows)}"
        groups.setdefault((stage, text), []).append(name)
    device = results.grid.config["device"]
    seconds, unknown = Costs(results).total(list(results.todo))
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
        lost = sum(((results.record(*job) or {}).get("costs", {}).get("seconds", 0)) for job in old)
        folder = results.layout.root / "replaced"
        yield f"  replaced, and kept in {folder}: {len(old)} results, {duration(lost)} of work"


def plan_lines(results: Results) -> list[str]:
    """What a run of Snakemake is told beforehand: what is stale, or nothing where all is missing or valid."""
    stale = any(r.kind not in ("missing", "follows") for reasons in results.todo.values() for r in reasons)
    told = [*todo_lines(results, most=8), "`ddpm status` tells more"] if stale else []
    return [*told, *mark_lines(results)]


def mark_lines(results: Results) -> list[str]:
    """The marks of batches that Snakemake would write again; those that were never written go without saying."""
    return [f"{path}: {why}; it is written again" for path, why in results.unmarked.items() if path.parent.is_dir()]


def lines(results: Results) -> Iterator[str]:
    """`ddpm status`."""
    grid, cells = results.grid, states(results)
    counts = Counter(state for state, _ in cells.values())
    done = counts["finished"] + counts["diverged"] + counts["degenerate"]
    rest = ", ".join(f"{counts[s]} {s}" for s in STATES[1:] if counts[s])
    yield f"{results.layout.root}: {done} of {len(grid.runs)} cells{' (' + rest + ')' if rest else ''}"
    for state in STATES[1:-1]:
        groups: dict[str, list[str]] = {}
        for name, (found, reason) in cells.items():
            if found == state:
                groups.setdefault(reason, []).append(name)
        for reason, names in list(groups.items())[:8]:
            yield f"  {state:<10} {len(names):>4}  {_some(names)}: {reason}"
        if len(groups) > 8:
            yield f"  {state:<10}       … and {sum(map(len, list(groups.values())[8:]))} more; --json lists all"
    if results.todo:
        yield from todo_lines(results)
    else:
        yield "nothing to run: every result is valid"
    yield from mark_lines(results)
    count, size = history.size(results.layout)
    if count:
        folder = results.layout.root / "replaced"
        yield f"{count} replaced results in {folder} ({size / 2**20:.0f} MiB that nothing else uses): delete at will"


def cell_lines(results: Results, cell: Cell) -> Iterator[str]:
    """`ddpm status CELL`: its jobs with record, log, cost and origin, its numbers, and its samples."""
    layout = results.layout
    state, reason = states(results)[cell.name]
    yield f"{cell.name}: {state}{': ' + reason if reason else ''}"
    if cell.reason:
        return
    for stage, name in results.grid.row(cell):
        record, reasons = results.record(stage, name), results.todo.get((stage, name))
        yield (
            f"{stage} {name}".strip()
            + ": "
            + (_some(list(map(str, reasons)), sign="; ") if reasons else results.known(stage, name)["status"])
        )
        batch = results.grid.batch_of[name] if stage == "fidelity" else name
        yield f"  record   {layout.record(stage, name)}    log  {layout.log(stage, batch)}"
        if STAGES[stage].called:
            yield f"  command  ddpm {stage} {name}"
        if record:
            costs = record["costs"]
            tree = {True: "edited", False: "clean", None: "no git"}[record["dirty"]]
            yield (
                f"  made     {costs['started']} in {costs['seconds']} s, {costs['peak_memory_mb']:.0f} MiB, on "
                f"{record['device']} ({record['hardware']}, {record['host']}), "
                f"commit {(record['commit'] or 'unknown')[:12]} ({tree}), code {record['code']}"
            )
            numbers = {k: v for k, v in record["result"].items() if isinstance(v, int | float | str)}
            yield "  result   " + ", ".join(
                f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()
            )
    samples = layout.output("sample", cell.name)
    yield f"samples: {samples}, {samples.with_suffix('.png')}"
