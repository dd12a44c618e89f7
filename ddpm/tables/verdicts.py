"""Which claims of the source documents hold here: paired tests over seeds with 5 % of false verdicts. No torch.

Of every seed one effect is known: the mean, over the pairs of rows, of log(compare/against) for distances and of
compare − against for all else; or the slope of the column (or its logarithm) along a parameter, per rank of its values.
The t-interval of its mean over S seeds, ē ± t_{S−1} s/√S, says whether the claim holds. The claims of one table are a
family (Holm 1979): of the k-th smallest p-value of m, the interval has level 1 − α/(m − k + 1), and from the first
that covers the claim's boundary on, all are undecided.

Claims that stay undecided may be given further seeds (`ddpm.tables.further`). They are looked at again whenever their
seeds have doubled, and who looks often finds something in the end. So the k-th look spends α_k = 0.05/2^k, which all
looks together bring to 5 % (Armitage, McPherson & Rowe 1969 for the danger; the sum of shares is Bonferroni's bound).
A look takes the first S, 2S, 4S, … seeds alone, S being those that the configuration gives all cells, and a claim that
one has decided is not looked at again: the verdicts are the same in whatever order seeds have come. The family of a
look is every claim that was open before it, those without the seeds for it included, so that it does not matter how
claims were chosen for further seeds. With a chance of at least 95 % a table has not one false verdict, whatever the
claims share and however many looks there were; of a single claim false verdicts are rarer still. Who raises `seeds` by
hand after a look starts anew (`ddpm.pipeline.looks`).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ddpm.pipeline import looks
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.looks import LEAST
from ddpm.pipeline.measures import toplines
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import STAGES
from ddpm.tables.claims import OVER, Claim, groups, read
from ddpm.tables.columns import OURS
from ddpm.tables.selectors import Row, files_of

ALPHA = 0.05
ABSENT = "not in this grid"
Values = dict[Row, dict[int, float]]  # row → seed → number


@dataclass
class Verdict:
    """What became of one claim. effect, low, high: ratios of distances, differences of all else; NaN where unknown.

    level: the interval's, after Holm's correction; pairs: the groups of rows behind every seed's effect; looks: those
    at it, with `seeds` at the last.
    """

    claim: Claim
    verdict: str = ABSENT
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    level: float = math.nan
    seeds: int = 0
    pairs: int = 0
    looks: int = 0
    reason: str = ""

    @property
    def boundary(self) -> float:
        """Where the claim ends to hold: no effect, or an effect that is worse than none by its margin."""
        margin, ratio = self.claim.margin, self.claim.ratio
        if margin is None:
            return 1.0 if ratio else 0.0
        if self.claim.direction == "less":
            return margin
        return 1 / margin if ratio else -margin


def decide(results: Results) -> list[Verdict]:
    """The verdict on every claim, in the order of the files."""
    grid = results.grid
    tests = [(claim, groups(claim, grid)) for claim in read(files_of(grid.config))]
    columns = {claim.column for claim, of in tests if of}
    return judged(tests, {column: measured(results, column) for column in columns}, at(grid, 1))


def at(grid: Grid, look: int) -> int:
    """How many seeds the rows of a claim have at its k-th look, counted from 1."""
    return looks.first(grid.config) * 2 ** (look - 1)


def measured(results: Results, column: str) -> Values:
    """Every row's number of every training seed that is finished, the mean over its sampling seeds; NaN where one
    diverged or was not measured; rows that cannot have any, of a likelihood, are left out."""
    base, grid = column.removesuffix(OVER), results.grid
    stage, key = OURS.measures[base]
    records = {kind: results.valid("fidelity", baseline) for kind, baseline in toplines().items()}
    top = {kind: record["result"].get(base) for kind, record in records.items() if record}
    found: Values = {}
    sets: dict[tuple[Row, int], list[float]] = {}
    for cell in grid.runs.values():
        if (name := STAGES[stage].serving(grid, cell)) is None:
            continue
        found.setdefault(cell.row, {})
        if record := results.valid(stage, name):
            kind = "stratified" if grid.is_given_classes(cell) else "by chance"
            unit = 1.0 if column == base else top.get(kind) or math.nan
            sets.setdefault((cell.row, cell.seed), []).append(_number(record, key) / unit)
    for (row, seed), numbers in sets.items():
        if len(numbers) == grid.sampling_seeds:
            found[row][seed] = sum(numbers) / len(numbers)
    return found


def _number(record: dict, key: str) -> float:
    """A record's number; NaN where it diverged or has none."""
    value = record["result"].get(key) if record["status"] == "ok" else None
    return math.nan if value is None else value


def judged(tests: list[tuple[Claim, list[list[Row]]]], values: dict[str, Values], first: int = LEAST) -> list[Verdict]:
    """The verdicts that these numbers, column → row → seed → number, allow on claims, each with its groups of rows.

    first: the seeds of the first look.
    """
    found, still = [], []
    for claim, of in tests:
        verdict = Verdict(claim)
        found.append(verdict)
        if of:
            each = seeds_effects(claim, of, values[claim.column])
            verdict.verdict, verdict.pairs = "undecided", len(of)
            _describe(verdict, each)
            verdict.reason = f"{first} seeds are needed of every row" if len(each) else "no pair of rows has numbers"
            still.append((verdict, of))
    most = max((len(seeds) for numbers in values.values() for seeds in numbers.values()), default=0)
    look = 1
    while (count := first * 2 ** (look - 1)) <= most:
        tested, short = _tested(still, values, count)
        for verdict, each in tested:
            _describe(verdict, each)
            verdict.looks = look
        holm(tested, short + len(tested), ALPHA / 2**look)
        still = [(verdict, of) for verdict, of in still if verdict.verdict == "undecided"]
        look += 1
    return found


def _tested(
    still: list[tuple[Verdict, list[list[Row]]]], values: dict[str, Values], count: int
) -> tuple[list[tuple[Verdict, np.ndarray]], int]:
    """The open claims that so many seeds can decide, with their effects, and how many claims lack seeds for that."""
    tested, short = [], 0
    for verdict, of in still:
        numbers = values[verdict.claim.column]
        seeds = finished(of, numbers)[:count]
        each = seeds_effects(verdict.claim, of, numbers, seeds)
        if len(seeds) < count:
            short += 1
        elif len(each) >= LEAST and np.ptp(each) > 1e-12 * np.abs(each).max():
            tested.append((verdict, each))
        elif len(each) >= LEAST:
            verdict.reason = "all seeds have the same effect: no spread to judge it by"
    return tested, short


def finished(of: list[list[Row]], values: Values) -> list[int]:
    """The seeds that all rows of these groups have, but for rows that cannot have numbers, in order."""
    each = [set(values[row]) for group in of for row in group if row in values]
    return sorted(set.intersection(*each)) if each else []


def _describe(verdict: Verdict, each: np.ndarray) -> None:
    """State the effect of these seeds."""
    verdict.seeds = len(each)
    if len(each):
        verdict.effect = float(np.exp(each.mean()) if verdict.claim.ratio else each.mean())


def seeds_effects(
    claim: Claim, of: list[list[Row]], values: Values, among: Collection[int] | None = None
) -> np.ndarray:
    """The effect of each seed, (S,), of all or those `among`: the mean over those groups that have a number for every
    seed that any has."""
    numbers = {row: values.get(row, {}) for group in of for row in group}
    known = {seed for each in numbers.values() for seed, number in each.items() if math.isfinite(number)}
    seeds = sorted(known if among is None else known.intersection(among))
    tables = (np.array([[numbers[row].get(seed, math.nan) for seed in seeds] for row in group]) for group in of)
    effects = [effect for effect in (_effect(claim, table) for table in tables) if np.isfinite(effect).all()]
    return np.mean(effects, axis=0) if effects else np.empty(0)


def _effect(claim: Claim, table: np.ndarray) -> np.ndarray:
    """The effect of each seed, (S,), in the numbers of a group of rows, (R, S)."""
    if claim.ratio:
        table = np.log(np.where(table > 0, table, math.nan))
    if not claim.along:
        return table[0] - table[1]
    rank = np.arange(len(table)) - (len(table) - 1) / 2
    return rank @ table / (rank @ rank)


def holm(tested: list[tuple[Verdict, np.ndarray]], family: int, alpha: float) -> None:
    """Fill in intervals and verdicts of the claims that can be tested, the surest first.

    family: how many claims are open, these among them;  alpha: the chance of any false verdict among them.
    """
    for verdict, each in tested:
        at = math.log(verdict.boundary) if verdict.claim.ratio else verdict.boundary
        t = (each.mean() - at) / (each.std(ddof=1) / math.sqrt(len(each)))
        verdict.p = float(2 * stats.t.sf(abs(t), len(each) - 1))
    rejected = 0
    for verdict, each in sorted(tested, key=lambda one: one[0].p):
        verdict.level = 1 - alpha / (family - rejected)
        reach = stats.t.ppf((1 + verdict.level) / 2, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))
        ends = np.array([each.mean() - reach, each.mean() + reach])
        verdict.low, verdict.high = map(float, np.exp(ends) if verdict.claim.ratio else ends)
        if verdict.low <= verdict.boundary <= verdict.high:
            verdict.reason = "the interval covers " + ("no effect" if not verdict.claim.margin else "the margin")
            continue
        less = verdict.high < verdict.boundary
        verdict.verdict = "holds" if less == (verdict.claim.direction == "less") else "fails"
        verdict.reason = ""
        rejected += 1
