"""Which results are valid, and why the others are not: records decide, whatever Snakemake remembers. No torch.

Whether one result is valid `ddpm.pipeline.validity` says; whatever follows from one that is not is not valid either.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path

from ddpm.errors import UserError
from ddpm.pipeline import fingerprints, folders, project, records
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.validity import Reason, reasons

# The stages that train what cells are sampled with.
TRAINED = ("autoencoder", "snapshots", "train", "guide")
PUBLISHED = project.find("workflow/published")
CLAIMS = project.find("workflow/claims")
PAGE = project.find("workflow/page")
REPORT = project.find("workflow/report")


class Results:
    """The results of a grid as they lie there now, each looked at once.

    environment: whether the versions of packages count; not where jobs run in an environment of their own.
    """

    def __init__(self, grid: Grid, layout: Layout | None = None, environment: bool = True):
        self.grid, self.layout, self.environment = grid, layout or Layout(Path(grid.results)), environment
        self._records: dict[Job, dict | None] = {}
        self._problems: dict[Job, Reason] = {}
        self._environments: dict[frozenset, dict[str, str]] = {}

    def record(self, stage: str, name: str = "") -> dict | None:
        """A job's record, valid or not; None where there is none that can be read."""
        job = stage, name
        if job not in self._records:
            path = self.layout.record(stage, name)
            try:
                found = records.read_record(path, stage)
                if (of := records.job_of(found)) != job:  # a file that was swapped with another
                    raise UserError(f"it is of {' '.join(of).strip()}")
                self._records[job] = found
            except (UserError, OSError) as e:
                self._records[job] = None
                self._problems[job] = self._problem(stage, name, str(e).removeprefix(f"{path}: ").split(";")[0])
        return self._records[job]

    def known(self, stage: str, name: str = "") -> dict:
        """The record of a job that has run; UserError where there is none that can be read."""
        record = self.record(stage, name)
        if record is None:
            raise UserError(f"{self.layout.record(stage, name)}: {self._problems[stage, name]}; run again")
        return record

    def _problem(self, stage: str, name: str, text: str) -> Reason:
        """Why there is no record that can be read: it is not right, or gone, or its job never ran."""
        path = self.layout.record(stage, name)
        if os.path.lexists(path):
            return Reason("record", f"{path.name}: {text}")
        beside = [file.name for file in self.layout.outputs(stage, name) if file.exists()]
        if stage == "fidelity" and name in self.grid.batch_of and name in self._mark(self.grid.batch_of[name])[0]:
            beside = ["the mark of its batch"]
        return Reason("record", f"{path.name}: missing beside {beside[0]}") if beside else Reason("missing", "missing")

    def reasons(self, stage: str, name: str = "") -> list[Reason]:
        """Why this result, looked at alone, is not the one that the configuration asks for; empty where it is."""
        record = self.record(stage, name)
        if record is None:
            return [self._problems[stage, name]]
        job, code = self.grid.job(stage, name)
        place = self.layout.record(stage, name)
        files = {os.path.relpath(path, place.parent) for path in self.layout.outputs(stage, name)}
        # The tables are small, and what is looked at in the end.
        whole, versions, inputs = stage == "table", self._wanted(stage, job), self.inputs(stage, name)
        found: list[Reason] = []
        for reason in reasons(place, record, job, code, versions, inputs, files, whole):
            edited = self._edited(record["code"], stage, job) if reason.kind == "code" else []
            found += [Reason("code", text) for text in edited] or [reason]
        if stage == "table" and record["result"]["missing"]:
            found.append(Reason("missing", f"it is a table of {record['result']['cells']} cells"))
        return found

    def _wanted(self, stage: str, job: dict) -> dict[str, str]:
        """The versions that count for a job."""
        if not self.environment:
            return {}
        roots = STAGES[stage].roots(job)
        if roots not in self._environments:
            self._environments[roots] = STAGES[stage].environment(job)
        return self._environments[roots]

    def _edited(self, was: str, stage: str, job: dict) -> list[str]:
        """The functions and classes in which a former fingerprint differs from today's; none where it is forgotten."""
        now = fingerprints.parts(STAGES[stage].roots(job))
        try:
            before = dict(json.loads(self.layout.code(was).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return []
        changed = [f"{name} changed" for name in now if name in before and now[name] != before[name]]
        if changed:  # what came or went did so because of these
            return changed
        return [f"{name} is {'new' if name in now else 'gone'}" for name in sorted(now.keys() ^ before.keys())]

    def inputs(self, stage: str, name: str = "") -> dict[str, str | None]:
        """What a record's inputs must be: the hashes that the records of its parents state; None where they cannot."""
        if stage in AGGREGATES:
            return self._inputs_of_aggregate(stage)
        parents, own = self.grid.parents(stage, name), STAGES[stage].sources(self.grid.job(stage, name)[0])
        outputs = {of: (self.record(*parent) or {"outputs": {}})["outputs"] for of, parent in parents.items()}
        found = {of: outputs[of].get(self.layout.output(*parent).name) for of, parent in parents.items()}
        return found | {of: self._hash(self.layout.work(stage, name) / f"{of}.json", path) for of, path in own.items()}

    def _inputs_of_aggregate(self, stage: str) -> dict[str, str | None]:
        """The same of a stage that reads all records of its kinds, by one hash."""
        # Most pictures show no costs, so that a result that was made again as it was changes nothing.
        keys = ("status", "outputs", "result") if stage == "figures" else ("digest",)
        # Samples made elsewhere have rows and dots too, where there are any.
        others = [("fidelity", name) for name in self.external] if stage in ("table", "figures") else []
        records = [self.record(*job) or {} for job in (*self.reads(stage), *others)]
        read = [[record.get(key) for key in keys] for record in records]
        if stage == "figures" and "seconds" in self.grid.pictures:
            jobs = [job for job in self.reads(stage) if job[0] in TRAINED]
            read.append([(self.record(*job) or {}).get("costs", {}).get("seconds") for job in jobs])
        texts = {"table": {"published": (PUBLISHED, CLAIMS)}, "page": {"template": (PAGE, REPORT)}}.get(stage, {})
        found: dict[str, str | None] = {"records": hashlib.sha256(canonical(read).encode()).hexdigest()}
        return found | {name: hashed(*folders) for name, folders in texts.items()}

    def _hash(self, memo: Path, path: Path) -> str | None:
        """The hash of a file or folder of the user's own, taken again only where something in it may have changed since
        it was noted in `memo`; None where it is not there."""
        if not path.exists():
            return None
        now, latest = folders.stamp(path)
        try:
            known = json.loads(memo.read_text(encoding="utf-8"))
            if known["stamp"] == now and isinstance(known["hash"], str):
                return known["hash"]
        except (OSError, ValueError, LookupError, TypeError):
            pass
        # What changes within the clock's next tick would have the same stamp.
        settled = time.time_ns() - latest > 2 * 10**9
        found = _content(path, canonical(now)) if settled else records.sha256(path)
        if settled:
            with suppress(OSError):  # results that may only be read
                records.write_json(memo, {"stamp": now, "hash": found})
        return found

    @cached_property
    def external(self) -> list[str]:
        """The fidelity jobs of samples that were made elsewhere, by name: those that have run."""
        places = (self.layout.root / "external").glob("*/fidelity.json")
        return sorted(f"external/{place.parent.name}" for place in places)

    def reads(self, aggregate: str) -> list[Job]:
        """The jobs whose records an aggregate reads."""
        return [job for job in self.grid.every if job[0] in AGGREGATES[aggregate].reads]

    @cached_property
    def todo(self) -> dict[Job, list[Reason]]:
        """Every job that would run now, each after what it needs, and why."""
        found: dict[Job, list[Reason]] = {}
        for job in self.grid.jobs:
            if why := self._why(job, found):
                found[job] = why
        for aggregate in AGGREGATES:
            if why := self._why_aggregate(aggregate, found):
                found[aggregate, ""] = why
        return found

    @property
    def unfinished(self) -> list[Job]:
        """The jobs that would run now, the aggregates left out."""
        return [job for job in self.todo if job[0] not in AGGREGATES]

    def _why(self, job: Job, todo: Collection[Job]) -> list[Reason]:
        """Why a job would run beside those that would run before it."""
        parents = (parent for parent in self.grid.parents(*job).values() if parent in todo)
        follows = [Reason("follows", " ".join(parent).strip()) for parent in parents]
        # What is made again is not worth a reason of its own beside that.
        return [r for r in self.reasons(*job) if not (follows and r.kind == "input")] + follows

    def _why_aggregate(self, aggregate: str, todo: Collection[Job]) -> list[Reason]:
        """The same of a stage that reads all records of its kinds."""
        count = Counter(job[0] for job in self.reads(aggregate) if job in todo)
        if not count:
            return self.reasons(aggregate)
        # What is damaged is named in any case.
        damaged = [r for r in self.reasons(aggregate) if r.kind in ("record", "output")]
        return [*damaged, Reason("follows", ", ".join(f"{n} {stage}" for stage, n in count.items()))]

    @cached_property
    def unmarked(self) -> dict[Path, str]:
        """The marks of batches of fidelity jobs that are not of the records that lie there, though these are valid."""
        found = {}
        for batch, names in self.grid.batches.items():
            if any(("fidelity", name) in self.todo for name in names):
                continue
            marked, why = self._mark(batch)
            if marked != {name: self.known("fidelity", name)["digest"] for name in names}:
                found[self.layout.measured(batch)] = why or "it is not of the records that lie there"
        return found

    @cache  # noqa: B019 - it lives as long as these results
    def _mark(self, batch: str) -> tuple[dict, str]:
        """Cell → digest, as a batch's mark has it, or what is wrong with the file."""
        try:
            return dict(json.loads(self.layout.measured(batch).read_bytes())), ""
        except (FileNotFoundError, NotADirectoryError):
            return {}, "it is missing"
        except (OSError, ValueError, TypeError, RecursionError) as e:
            return {}, f"it is no mark of a batch ({e})"

    def failure(self, stage: str, name: str = "") -> str:
        """What this very job said when it failed last; empty where it did not."""
        try:
            said = json.loads(self.layout.state(stage, name).read_text(encoding="utf-8"))
            return str(said["failed"]) if (said["job"], said["code"]) == self.grid.job(stage, name) else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def valid(self, stage: str, name: str = "") -> dict | None:
        """A job's record if its result is valid."""
        return None if (stage, name) in self.todo else self.record(stage, name)

    def lacking(self, jobs: Iterable[Job]) -> tuple[str, str] | None:
        """Whether these jobs, each after what it needs, are `failed`, `stale` or `missing`, and the stage and reason of
        the first that says so; None where all are valid."""
        todo = [job for job in jobs if job in self.todo]
        for job in todo:
            if said := self.failure(*job):
                return "failed", f"{job[0]}: {said.splitlines()[0]}"
        if not todo:
            return None
        # What is stale says more than what is missing, and that more than what follows from either.
        reasons = [(job[0], reason) for job in todo for reason in self.todo[job]]
        stage, reason = min(reasons, key=lambda one: {"missing": 1, "follows": 2}.get(one[1].kind, 0))
        return reason.state, f"{stage}: {reason}"

    def trained(self, cell: Cell) -> dict[str, float]:
        """What was trained for the samples of a cell whose result is valid: the `parameters`, `images_seen` and
        `seconds` of its networks, of what guides them and of the autoencoder together."""
        jobs = [job for job in self.grid.needed("sample", cell.name) if job[0] in TRAINED]
        # What keeps snapshots is counted where its weights are read.
        results = [self.known(*job)["result"] for job in jobs if job[0] != "snapshots"]
        found = {key: sum(result[key] for result in results) for key in ("parameters", "images_seen")}
        return found | {"seconds": sum(self.known(*job)["costs"]["seconds"] for job in jobs)}

    @property
    def noise(self) -> dict | None:
        """What uniform noise has in the metrics, by which samples are told from it; None where that is not known."""
        return (self.valid("fidelity", "noise") or {}).get("result")


@cache
def _content(path: Path, stamp: str) -> str:
    """The hash of a file or folder that has this stamp: once for all jobs that read it."""
    return records.sha256(path)


def hashed(*folders: Path) -> str:
    """The hash of all files of these folders."""
    content = b"".join(path.read_bytes() for folder in folders for path in sorted(folder.iterdir()) if path.is_file())
    return hashlib.sha256(content).hexdigest()
