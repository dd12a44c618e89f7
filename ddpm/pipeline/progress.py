"""How far a grid is and when that ends, by the seconds that its jobs take: beside a run, or during one. No torch.

Records tell the seconds of jobs that have run, and of others of their stage by their work (`status.Costs`); the last
progress bar in a job's log tells how far it is and how fast.
"""

import logging
import os
import re
import sys
import threading
import time
from calendar import timegm
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tqdm import tqdm

from ddpm.errors import UserError
from ddpm.pipeline.records import read_record
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.status import Costs, duration, running

# Seconds of a job without networks, and of an evaluation of a network on one image, where no record or log tells.
OTHER, EVALUATION = 5.0, 2e-4
# Evaluations in a unit of work: training goes through a network forwards, and backwards at twice the cost.
EVALUATIONS = dict.fromkeys(("train", "autoencoder", "guide"), 3.0)
# Seconds between two looks, of which a look may be a fiftieth, and between two lines.
LOOK, LINE = 2.0, 30.0
# tqdm's text: `done/all [time<time left`.
BAR = re.compile(r"(\d+)/(\d+) \[[\d:]+<([\d:]+)")


class Look(NamedTuple):
    """done, left: seconds of work;  finished, jobs, running: how many jobs;  wait: seconds until all are finished, None
    while no job has told its pace."""

    done: float
    left: float
    finished: int
    jobs: int
    running: int
    wait: float | None

    @property
    def percent(self) -> int:
        return int(100 * self.done / (self.done + self.left)) if self.left else 100

    def __str__(self) -> str:
        counts = f"{self.finished} of {self.jobs} jobs" + (f", {self.running} running" if self.running else "")
        if self.wait is None:
            return f"{counts}; how long it takes is known once a network has trained for some seconds"
        clock = time.strftime("%H:%M" if self.wait < 43200 else "%a %H:%M", time.localtime(time.time() + self.wait))
        return counts + (f"; about {duration(self.wait)} left, until {clock}" if self.left else "")


class Progress:
    """The jobs of a grid, those that are finished and those that are not, with the seconds that each takes.

    results: as they lie there, or lay when a run was planned.
    planned: the jobs that the run makes, of those that are not valid;  places: how many jobs run at once, as many as
    run now if not given.
    """

    def __init__(self, results: Results, planned: Collection[Job] | None = None, places: int = 0):
        self.results, self.places, self.costs = results, places, Costs(results)
        self.finished = {job: self._spent(job) for job in results.grid.every if job not in results.todo}
        wanted = [job for job in results.todo if planned is None or job in planned]
        self.pending = {job: _stamp(results.layout.record(*job)) for job in wanted}

    def _spent(self, job: Job) -> float:
        return float(self.results.known(*job)["costs"]["seconds"])

    def look(self) -> Look:
        """How far all is now."""
        self._settle()
        live = [job for job in running(self.results) if job in self.pending]
        positions = {job: found for job in live if (found := self._position(job))}
        paces = {job: left / (1 - share) for job, (share, left) in positions.items() if share < 1}
        rates = list(self._rates(paces))
        whole = {job: paces.get(job) or self._seconds(job, median(rates or [EVALUATION])) for job in self.pending}
        left = whole | {
            job: positions[job][1] if job in positions else max(0.0, whole[job] - self._since(job)) for job in live
        }
        wait = max(sum(left.values()) / (self.places or len(live) or 1), self._chain(left)) if rates else None
        done = sum(self.finished.values()) + sum(whole.values()) - sum(left.values())
        jobs = len(self.finished) + len(self.pending)
        return Look(done, sum(left.values()), len(self.finished), jobs, len(live), wait)

    def _settle(self) -> None:
        """Count the jobs whose records have been written since as finished."""
        for job, before in list(self.pending.items()):
            if _stamp(path := self.results.layout.record(*job)) in (before, None):
                continue
            with suppress(UserError, OSError):
                record = read_record(path)
                self.finished[job] = float(record["costs"]["seconds"])
                self.costs.learn(job, record)
                del self.pending[job]

    def _position(self, job: Job) -> tuple[float, float] | None:
        """The share that a live job has done, and the seconds that it has left; None where no bar of its log tells."""
        if not (bars := BAR.findall(attempt(self._log(job), job[0], 4096)[1])):
            return None
        done, of, left = bars[-1]
        seconds = 0
        for part in left.split(":"):
            seconds = 60 * seconds + int(part)
        return int(done) / max(1, int(of)), float(seconds)

    def _since(self, job: Job) -> float:
        """Seconds since a job without bars began; 0 where its log does not tell, as of one job of a batch."""
        began = attempt(self._log(job), job[0])[0] if job[0] != "fidelity" else ""
        return max(0.0, time.time() - timegm(time.strptime(began, "%Y-%m-%dT%H:%M:%SZ"))) if began else 0.0

    def _log(self, job: Job) -> Path:
        stage, name = job
        return self.results.layout.log(stage, self.results.grid.batch_of[name] if stage == "fidelity" else name)

    def _work(self, job: Job) -> float:
        """Evaluations of a network on one image; 1 of a job without any."""
        return STAGES[job[0]].work(self.results.grid.job(*job)[0]) * EVALUATIONS.get(job[0], 1.0)

    def _rates(self, paces: dict[Job, float]) -> Iterator[float]:
        """Seconds per evaluation, as every stage's records tell, and every job under way."""
        for stage, rates in self.costs.rates.items():
            if self._work((stage, next(iter(rates)))) > 1:
                yield median(rates.values()) / EVALUATIONS.get(stage, 1.0)
        yield from (seconds / self._work(job) for job, seconds in paces.items() if self._work(job) > 1)

    def _seconds(self, job: Job, rate: float) -> float:
        """What a whole job takes."""
        if (known := self.costs(*job)) is not None:
            return known
        return self._work(job) * rate if self._work(job) > 1 else OTHER

    def _chain(self, left: dict[Job, float]) -> float:
        """The seconds of those jobs that wait for one another and take longest."""
        ends: dict[Job, float] = {}
        for job in self.pending:  # each after what it needs
            stage = job[0]
            before = self.results.reads(stage) if stage in AGGREGATES else self.results.grid.parents(*job).values()
            ends[job] = left[job] + max((ends[parent] for parent in before if parent in ends), default=0.0)
        return max(ends.values(), default=0.0)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_ino, now.st_mtime_ns


def attempt(log: Path, stage: str, most: int = 2**20) -> tuple[str, str]:
    """When the last attempt of a job began, and what it wrote to its log, of the log's last bytes; empty what they do
    not tell."""
    try:
        with log.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - most))
            text = f.read().decode(errors="replace")
    except OSError:
        return "", ""
    *_, began, said = ["", *re.split(rf"^(\d{{4}}-\d\d-\d\dT[\d:]+Z) {stage} .*\n", text, flags=re.MULTILINE)]
    return began, said


class Teller(logging.Handler):
    """Says during a run of Snakemake how far it is: by a line now and then or, `alone`, by a bar.

    Alone, it keeps Snakemake's own messages from being shown but for those of what is wrong, and shows all that a job
    that has failed wrote to its log.
    """

    def __init__(self, progress: Progress, logger: logging.Logger, alone: bool):
        super().__init__(logging.ERROR)
        self.progress, self.logger, self.alone, self.over = progress, logger, alone, threading.Event()
        self.lines = not (alone and sys.stderr.isatty())
        shown = "{percentage:3.0f}%|{bar}| {desc}"
        self.bar = tqdm(total=100, bar_format=shown, disable=self.lines, dynamic_ncols=True)
        if alone:
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                    handler.setLevel(logging.WARNING)
                    handler.addFilter(self._clear)
            logger.addHandler(self)
        self.thread = threading.Thread(target=self._tell, daemon=True)
        self.thread.start()

    def _clear(self, record: logging.LogRecord) -> bool:
        self.bar.clear()  # until it is drawn again, beneath
        return "CalledProcessError" not in str(record.msg)  # a failed job's whole command, beside what `emit` tells

    def emit(self, record: logging.LogRecord) -> None:
        """A job's failure, which Snakemake's own --quiet hides."""
        rule = getattr(record, "rule_name", "")
        for log in map(Path, record.__dict__["log"] if rule else ()):
            said = re.sub(r"[^\n]*\r", "", attempt(log, rule)[1]).strip()  # without bars
            tqdm.write(f"{rule} failed; its log is {log}:\n{said}", file=sys.stderr)

    def _tell(self) -> None:
        told, pause = time.monotonic(), 0.0
        while not self.over.wait(pause):
            start = time.monotonic()
            self._draw(now := self.progress.look())
            if self.lines and start - told >= LINE:
                self._say(now)
                told = start
            pause = max(LOOK, 50 * (time.monotonic() - start))

    def _draw(self, now: Look) -> None:
        self.bar.n = now.percent
        self.bar.set_description_str(str(now))

    def _say(self, now: Look) -> None:
        line = f"{now.percent}% of the work is done, {now}"
        if self.alone:
            print(line, file=sys.stderr, flush=True)
        else:
            self.logger.info(line)

    def stop(self) -> None:
        """The run is over: the last word."""
        self.over.set()
        self.thread.join()
        self._draw(now := self.progress.look())
        self.bar.close()
        if self.alone and self.lines:
            self._say(now)
