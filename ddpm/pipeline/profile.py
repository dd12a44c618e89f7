"""Where the time of a finished tree went, by its records' own seconds, whatever the configuration says now. No torch.

A process loads its packages, then computes a job, or the fidelities of one network one after the other. What it takes
before that (starting Python, Snakemake's own planning) no record knows: it is the rest of wall time × cores.
"""

from __future__ import annotations

from calendar import timegm
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import strptime

from ddpm.errors import UserError
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import job_of, read_record
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.status import duration

# What lies below a results folder and holds no record of a result in its place.
ELSEWHERE = ("replaced", "work", "code", "logs")
# Records give the second in which they started: jobs of one batch that loaded at the same time are of one process.
SAME = 2.0
# A longer time in which nothing ran is a pause between two runs.
PAUSE = 60.0


@dataclass
class Spent:
    """One job, in seconds: `start` (since 1970) and `end` of its last attempt, without loading; `seconds` of all
    attempts; `loading` packages, 0 where an earlier job of its process had done so."""

    stage: str
    name: str
    batch: str
    start: float
    end: float
    seconds: float
    loading: float
    phases: dict[str, float]
    threads: int

    @property
    def core_seconds(self) -> float:
        return self.seconds * self.threads

    @property
    def title(self) -> str:
        return f"{self.stage} {self.name}".strip()


def spent(job: dict, stage: str, batch: str, costs: dict) -> Spent:
    """What a record says."""
    phases = dict(costs["phases"])
    loading = float(phases.pop("loading", 0.0))
    start = timegm(strptime(costs["started"], "%Y-%m-%dT%H:%M:%SZ"))
    threads = job.get("threads", 1) * STAGES[stage].processes(job)
    end = start + sum(phases.values())
    return Spent(stage, job.get("name", ""), batch, start, end, float(costs["seconds"]), loading, phases, threads)


class Profile:
    """The jobs whose records lie in a results folder."""

    def __init__(self, root: Path):
        self.layout = Layout(root)
        self.records = dict(self._records())
        if not self.records:
            raise UserError(f"{root}: no result is there; name a results folder in which jobs have run")
        self.jobs = {
            job: spent(record["job"], job[0], self._batch(job), record["costs"]) for job, record in self.records.items()
        }
        self._share_loading()

    def _records(self) -> Iterable[tuple[Job, dict]]:
        folders = (p for p in self.layout.root.glob("*") if p.name not in ELSEWHERE)
        paths = [f for p in folders for f in (p.rglob("*.json") if p.is_dir() else [p] if p.suffix == ".json" else [])]
        for path in sorted(paths):
            with suppress(UserError, OSError):  # other JSON, or no valid record: `ddpm status` says why
                record = read_record(path)
                job = job_of(record)
                if job[0] in STAGES and self.layout.record(*job) == path:
                    yield job, record

    def _batch(self, job: Job) -> str:
        """What Snakemake ran it with: the fidelities of one network are one job of Snakemake's."""
        stage, name = job
        if stage != "fidelity":
            return name
        sample = self.records.get(("sample", name))
        return sample["job"]["network"] if sample else "baselines"

    def _share_loading(self) -> None:
        """Only the first job of a process has loaded its packages: a later one's `loading` contains those before it."""
        before: dict[tuple[str, str], float] = {}
        for job in sorted(self.jobs.values(), key=lambda job: (job.start, job.loading)):
            process, key = job.start - job.loading, (job.stage, job.batch)
            if abs(process - before.get(key, float("-inf"))) <= SAME:
                job.loading = 0.0
            else:
                before[key] = process

    def parents(self, job: Job) -> list[Job]:
        """The jobs that it read, of those whose records are there."""
        stage, name = job
        if stage in AGGREGATES:
            return [other for other in self.jobs if other[0] in AGGREGATES[stage].reads]
        return [p for p in STAGES[stage].parents(name, self.records[job]["job"]).values() if p in self.jobs]

    @cached_property
    def runs(self) -> list[tuple[float, float]]:
        """Start and end of every stretch of time in which jobs ran, pauses left out."""
        found: list[tuple[float, float]] = []
        for start, end in sorted((job.start - job.loading, job.end) for job in self.jobs.values()):
            if found and start - found[-1][1] <= PAUSE:
                found[-1] = found[-1][0], max(end, found[-1][1])
            else:
                found.append((start, end))
        return found

    @property
    def wall(self) -> float:
        return sum(end - start for start, end in self.runs)

    @property
    def cores(self) -> int:
        """The most threads that computed at once."""
        # Starts are known to the second: of a job, what is within SAME of either edge may be another's time.
        edges = [(job.start + SAME / 2, job.threads) for job in self.jobs.values() if job.end - job.start > SAME]
        edges += [(job.end - SAME / 2, -job.threads) for job in self.jobs.values() if job.end - job.start > SAME]
        running, most = 0, max(job.threads for job in self.jobs.values())
        for _, change in sorted(edges):
            running += change
            most = max(most, running)
        return most

    def stages(self) -> dict[str, list[Spent]]:
        """The jobs of every stage that has any, those of most core-seconds first."""
        found: dict[str, list[Spent]] = defaultdict(list)
        for job in self.jobs.values():
            found[job.stage].append(job)
        return dict(sorted(found.items(), key=lambda item: -sum(job.core_seconds for job in item[1])))

    def critical_path(self) -> tuple[float, list[tuple[str, str]]]:
        """The chain of processes that wait for one another and takes longest: its seconds, and their stages and names.
        With any number of cores, it cannot be done in less."""
        together: dict[tuple[str, str], list[Job]] = defaultdict(list)
        for job, of in self.jobs.items():
            together[job[0], of.batch].append(job)
        longest: dict[tuple[str, str], tuple[float, list[tuple[str, str]]]] = {}
        for stage in STAGES:  # each after the stages that it reads
            for node in [node for node in together if node[0] == stage]:
                before = {(p[0], self.jobs[p].batch) for job in together[node] for p in self.parents(job)}
                seconds, path = max((longest[n] for n in before if n in longest), default=(0.0, []))
                own = sum(self.jobs[job].seconds + self.jobs[job].loading for job in together[node])
                longest[node] = seconds + own, [*path, node]
        return max(longest.values())


def phases(jobs: Iterable[Spent]) -> dict[str, float]:
    """Phase → the core-seconds that these jobs spent in it."""
    found: dict[str, float] = defaultdict(float)
    for job in jobs:
        for phase, seconds in job.phases.items():
            found[phase] += seconds * job.threads
    return found


def lines(found: Profile, most: int = 5) -> Iterable[str]:
    """`ddpm profile`."""
    jobs, wall, cores = list(found.jobs.values()), found.wall, found.cores
    pauses = len(found.runs) - 1
    yield (
        f"{found.layout.root}: {len(jobs)} jobs in {duration(wall)} of wall time on {cores} core{'s' * (cores > 1)}"
        + (f", {pauses} pause{'s' * (pauses > 1)} left out" if pauses else "")
    )
    computed = sum(job.core_seconds for job in jobs)
    loading = sum(job.loading for job in jobs)
    total = max(wall * cores, computed + loading)

    def row(title: str, count: object, seconds: float, rest: str = "") -> str:
        return f"  {title:<16} {count:>5} {seconds:>10.1f} s {seconds / total:>6.1%}{'   ' + rest if rest else ''}"

    for stage, of in found.stages().items():
        told = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases(of).items() if seconds >= 0.05)
        yield row(stage, len(of), sum(job.core_seconds for job in of), told)
    yield row("loading packages", sum(job.loading > 0 for job in jobs), loading)
    yield row("the rest", "", total - computed - loading, "starting Python, Snakemake, and cores that waited")
    yield "slowest jobs:"
    for job in sorted(jobs, key=lambda job: -job.seconds)[:most]:
        yield f"  {job.seconds:>10.1f} s   {job.title}"
    seconds, path = found.critical_path()
    yield f"critical path: {duration(seconds)} ({seconds / wall:.0%} of wall time), which no number of cores shortens:"
    yield "  " + " → ".join(f"{stage} {name}".strip() for stage, name in path)
