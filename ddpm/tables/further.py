"""Further seeds for undecided claims: which cells take them, what that costs, the overlay that asks for them. No torch.

A claim is looked at again once every row of it has twice as many seeds as at its last look; `ddpm.tables.verdicts`
spends the 5 % of false verdicts over all looks. What a seed costs is known from the records of the same cells' others.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import yaml

from ddpm.errors import UserError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.records import atomic
from ddpm.pipeline.registry import AXES
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.status import duration
from ddpm.tables.claims import groups
from ddpm.tables.selectors import Row
from ddpm.tables.verdicts import Verdict, at


@dataclass(frozen=True)
class Look:
    """The next look at a claim: `total` seeds of each of so many rows, those that rows lack, the jobs that these take
    (each as that of another seed, and the seed), and the seconds of those jobs."""

    total: int
    rows: int
    lacking: dict[Row, list[int]]
    jobs: set[tuple[Job, int]]
    seconds: float

    def barred(self, most: int, rest: float) -> str:
        """Why it cannot be taken with so many seeds at most and so many seconds; empty where it can."""
        if self.total > most:
            return f"its next look takes {self.total} seeds, and {most} are the most"
        if self.seconds > rest:
            return f"its next look takes {duration(self.seconds)}, and {duration(max(0.0, rest))} are left"
        return ""


@dataclass
class Plan:
    """What is spent next.

    given: claims → rows and their further seeds, and the seconds that these add;  left: claims → why they have none.
    seeds: row → its further seeds;  spent, seconds: those of further seeds before this plan, and of it.
    """

    spent: float
    given: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    seeds: dict[Row, list[int]] = field(default_factory=dict)
    jobs: set[tuple[Job, int]] = field(default_factory=set)
    seconds: float = 0.0

    def give(self, claim: str, look: Look) -> None:
        """Take the seeds of a look at a claim."""
        self.given[claim] = f"{look.total} seeds of {look.rows} rows, {duration(look.seconds)} more"
        self.seconds, self.jobs = self.seconds + look.seconds, self.jobs | look.jobs
        for row, seeds in look.lacking.items():
            self.seeds[row] = sorted({*self.seeds.get(row, ()), *seeds})


def plan(results: Results, verdicts: list[Verdict], budget: float, most: int) -> Plan:
    """Further seeds up to the next look of each undecided claim, those nearest to a verdict first.

    budget: seconds of computing, those that further seeds took before included;  most: the largest number of seeds.
    """
    if unfinished := results.unfinished:
        what = f"{len(unfinished)} jobs of this configuration are not finished"
        raise UserError(f"{results.layout.root}: {what}; run snakemake first, or `ddpm status` to see which")
    found = Plan(spent(results))
    undecided = [verdict for verdict in verdicts if verdict.verdict == "undecided"]
    for verdict in sorted(undecided, key=lambda v: 0.0 if math.isnan(v.p) else v.p):
        look = _next(results, verdict, found.jobs)
        if not look.lacking:
            found.left[verdict.claim.name] = verdict.reason
        elif why := look.barred(most, budget - found.spent - found.seconds):
            found.left[verdict.claim.name] = why
        else:
            found.give(verdict.claim.name, look)
    return found


def _next(results: Results, verdict: Verdict, planned: set[tuple[Job, int]]) -> Look:
    """The next look at a claim, beside jobs that are planned already."""
    grid, total = results.grid, at(results.grid, verdict.looks + 1)
    rows = dict.fromkeys(row for group in groups(verdict.claim, grid) for row in group)
    lacking = {row: seeds for row in rows if (seeds := _lacking(grid, row, total))}
    jobs = {job for row, seeds in lacking.items() for job in _jobs(grid, row, seeds)} - planned
    return Look(total, len(rows), lacking, jobs, _seconds(results, (job for job, _ in jobs)))


def numbered(seeds: list[int], count: int) -> list[int]:
    """The seeds of a configuration and the next above them, `count` in all."""
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + count)][:count]


def _lacking(grid: Grid, row: Row, total: int) -> list[int]:
    """The seeds that a row lacks of the first `total`."""
    there = {cell.seed for cell in grid.rows[row]}
    return [seed for seed in numbered(grid.config["seeds"], total) if seed not in there]


def _jobs(grid: Grid, row: Row, seeds: list[int]) -> Iterator[tuple[Job, int]]:
    """The jobs that a row's further seeds ask for, as those of the row's first seed, whose costs they are likely to
    have, and the seed."""
    cells = grid.rows[row]
    jobs = (job for cell in cells if cell.seed == cells[0].seed for job in grid.row(cell))
    return ((job, seed) for job in jobs if job[1] for seed in seeds)


def _seconds(results: Results, jobs: Iterable[Job]) -> float:
    """What these jobs took together."""
    return sum(results.known(*job)["costs"]["seconds"] for job in jobs)


def spent(results: Results) -> float:
    """The seconds that seeds took which the configuration does not give all cells."""
    cells = [cell for cell in results.grid.runs.values() if cell.seed not in results.grid.config["seeds"]]
    return _seconds(results, {job for cell in cells for job in results.grid.row(cell) if job[1]})


def blocks(seeds: dict[Row, list[int]]) -> list[dict]:
    """Blocks of a grid that hold these rows with their further seeds."""
    found: dict[tuple, list[str]] = {}
    at = list(AXES).index("sampler")
    for row, further in seeds.items():
        found.setdefault((*row[:at], *row[at + 1 :], tuple(further)), []).append(row[at])
    others = [axis for axis in AXES if axis != "sampler"]
    return [
        {axis: [name] for axis, name in zip(others, names, strict=True)}
        | {"sampler": samplers, "further_seeds": list(further)}
        for (*names, further), samplers in found.items()
    ]


def overlay(root: Path, grid: list[dict], found: Plan) -> Path:
    """Write the overlay that asks for a plan's seeds beside the blocks of `grid`, and say where: a file that is there
    already stays as it is, the next number is taken."""
    text = "# Further seeds for undecided claims, by `ddpm claims --decide`:\n"
    text += "".join(f"#   {name}: {why}\n" for name, why in found.given.items())
    text += yaml.safe_dump({"grid": [*grid, *blocks(found.seeds)]}, sort_keys=False, default_flow_style=None, width=120)
    for number in count(1):
        path = root / f"further-{number}.yaml"
        if not path.exists():
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if path.read_text(encoding="utf-8") == text:
            return path
    raise AssertionError("count has no end")


def lines(found: Plan, grid: Grid, budget: float) -> Iterator[str]:
    """What would run and what that takes."""
    open_ = len(found.given) + len(found.left)
    yield (
        f"{open_} claims are undecided; further seeds have taken {duration(found.spent)} of {duration(budget)} of "
        "computing so far"
    )
    for name, text in found.given.items():
        yield f"  {name}: {text}"
    for name, text in found.left.items():
        yield f"  {name}: none, {text}"
    if found.given:
        counts = Counter(stage for (stage, _), _ in found.jobs)
        said = ", ".join(f"{counts[stage]} {stage}" for stage in grid.names if stage in counts)
        yield f"would run: {said}: {duration(found.seconds)}, one job after another, by what others of their kind took"
