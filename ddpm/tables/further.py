"""Further seeds for undecided claims: which cells take them, what that costs, the overlay that asks for them. No torch.

A claim is looked at again once every row of it has twice as many seeds as at its last look; `ddpm.tables.verdicts`
spends the 5 % of false verdicts over all looks. What a seed costs is known from the records of the same cells' others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import yaml

from ddpm.errors import UserError
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.records import atomic
from ddpm.pipeline.registry import AXES
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import AGGREGATES
from ddpm.pipeline.status import duration
from ddpm.tables.claims import Row, groups
from ddpm.tables.verdicts import Verdict, at


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
    jobs: set[tuple[Job, int]] = field(default_factory=set)  # each as that of another seed, and the seed
    seconds: float = 0.0


def plan(results: Results, verdicts: list[Verdict], budget: float, most: int) -> Plan:
    """Further seeds up to the next look of each undecided claim, those nearest to a verdict first.

    budget: seconds of computing, those that further seeds took before included;  most: the largest number of seeds.
    """
    if unfinished := [job for job in results.todo if job[0] not in AGGREGATES]:
        what = f"{len(unfinished)} jobs of this configuration are not finished"
        raise UserError(f"{results.layout.root}: {what}; run snakemake first, or `ddpm status` to see which")
    grid, found = results.grid, Plan(spent(results))
    there: dict[Row, dict[int, list[Cell]]] = {}
    for cell in grid.runs.values():
        there.setdefault(cell.row, {}).setdefault(cell.seed, []).append(cell)
    undecided = [verdict for verdict in verdicts if verdict.verdict == "undecided"]
    for verdict in sorted(undecided, key=lambda v: 0.0 if math.isnan(v.p) else v.p):
        name, total = verdict.claim.name, at(grid, verdict.looks + 1)
        rows = dict.fromkeys(row for group in groups(verdict.claim, grid) for row in group)
        wanted = numbered(grid.config["seeds"], total)
        lacking = {row: seeds for row in rows if (seeds := [seed for seed in wanted if seed not in there[row]])}
        jobs = {job for row, seeds in lacking.items() for job in _jobs(results, there[row], seeds)} - found.jobs
        seconds = sum(results.known(*job)["costs"]["seconds"] for job, _ in jobs)
        rest = budget - found.spent - found.seconds
        if not lacking:
            found.left[name] = verdict.reason
        elif total > most:
            found.left[name] = f"its next look takes {total} seeds, and {most} are the most"
        elif seconds > rest:
            found.left[name] = f"its next look takes {duration(seconds)}, and {duration(max(0.0, rest))} are left"
        else:
            found.given[name] = f"{total} seeds of {len(rows)} rows, {duration(seconds)} more"
            found.seconds, found.jobs = found.seconds + seconds, found.jobs | jobs
            for row, seeds in lacking.items():
                found.seeds[row] = sorted({*found.seeds.get(row, ()), *seeds})
    return found


def numbered(seeds: list[int], count: int) -> list[int]:
    """The seeds of a configuration and the next above them, `count` in all."""
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + count)][:count]


def _jobs(results: Results, cells: dict[int, list[Cell]], seeds: list[int]) -> Iterator[tuple[Job, int]]:
    """The jobs that a row's further seeds ask for, as those of the row's first seed, whose costs they are likely to
    have, and the seed."""
    jobs = (job for cell in next(iter(cells.values())) for job in results.grid.row(cell))
    return ((job, seed) for job in jobs if job[1] for seed in seeds)


def spent(results: Results) -> float:
    """The seconds that seeds took which the configuration does not give all cells."""
    cells = [cell for cell in results.grid.runs.values() if cell.seed not in results.grid.config["seeds"]]
    jobs = {job for cell in cells for job in results.grid.row(cell) if job[1]}
    return sum(results.known(*job)["costs"]["seconds"] for job in jobs)


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
        counts: dict[str, int] = {}
        for (stage, _), _ in found.jobs:
            counts[stage] = counts.get(stage, 0) + 1
        said = ", ".join(f"{counts[stage]} {stage}" for stage in grid.names if stage in counts)
        yield f"would run: {said}: {duration(found.seconds)}, one job after another, by what others of their kind took"
