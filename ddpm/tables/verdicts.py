"""Which claims of the source documents hold here: paired tests over seeds with 5 % of false verdicts. No torch.

Of every seed one effect is known: the mean, over the pairs of rows, of log(compare/against) for distances and of
compare − against for all else; or the slope of the column (or its logarithm) along a parameter, per rank of its values.
The t-interval of its mean over S seeds, ē ± t_{S−1} s/√S, says whether the claim holds. The claims of one table are a
family (Holm 1979): of the k-th smallest p-value of m, the interval has level 1 − 0.05/(m − k + 1), and from the first
that covers the claim's boundary on, all are undecided. So with a chance of at least 95 % a whole table has not one
false verdict, whatever the claims share; of a single claim false verdicts are rarer still.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ddpm.pipeline.measures import toplines
from ddpm.pipeline.registry import files_of
from ddpm.pipeline.results import Results
from ddpm.tables.claims import OVER, Claim, Row, groups, read
from ddpm.tables.columns import OURS

ALPHA = 0.05
LEAST = 3  # seeds: of two, the spread is hardly known
ABSENT = "not in this grid"
Values = dict[Row, dict[int, float]]  # row → seed → number


@dataclass
class Verdict:
    """What became of one claim. effect, low, high: ratios of distances, differences of all else; NaN where unknown.

    level: the interval's, after Holm's correction; pairs: the groups of rows behind every seed's effect.
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
    reason: str = ""

    @property
    def boundary(self) -> float:
        """Where the claim ends to hold: no effect, or its margin."""
        return self.claim.margin or (1.0 if self.claim.ratio else 0.0)


def decide(results: Results) -> list[Verdict]:
    """The verdict on every claim, in the order of the files."""
    tests = [(claim, groups(claim, results.grid)) for claim in read(files_of(results.grid.config))]
    columns = {claim.column for claim, of in tests if of}
    return judged(tests, {column: measured(results, column) for column in columns})


def measured(results: Results, column: str) -> Values:
    """Every row's number of every seed; those that are missing, diverged or not measured are left out."""
    base, grid = column.removesuffix(OVER), results.grid
    stage, key = OURS.measures[base]
    top = {}
    for kind, baseline in toplines().items() if column != base else ():
        top[kind] = (results.valid("fidelity", baseline) or {"result": {}})["result"].get(base)
    found: Values = {}
    for cell in grid.runs.values():
        name = cell.name if stage == "fidelity" else grid.network(cell).name
        if name not in grid.names[stage] or (stage != "fidelity" and grid.is_guided(cell)):
            continue
        record = results.valid(stage, name)
        value = record["result"].get(key) if record and record["status"] == "ok" else None
        if column != base:
            real = top.get("stratified" if grid.is_given_classes(cell) else "by chance")
            value = value / real if value is not None and real else None
        if value is not None and math.isfinite(value):
            found.setdefault(cell.row, {})[cell.seed] = value
    return found


def judged(tests: list[tuple[Claim, list[list[Row]]]], values: dict[str, Values]) -> list[Verdict]:
    """The verdicts that these numbers, column → row → seed → number, allow on claims, each with its groups of rows."""
    found, effects = [], {}
    for claim, of in tests:
        verdict = Verdict(claim)
        found.append(verdict)
        if of:
            each = seeds_effects(claim, of, values[claim.column])
            verdict.verdict, verdict.pairs, verdict.seeds = "undecided", len(of), len(each)
            if len(each):
                verdict.effect = float(np.exp(each.mean()) if claim.ratio else each.mean())
            else:
                verdict.reason = "no pair of rows has numbers"
            if 0 < len(each) < LEAST:
                verdict.reason = f"{LEAST} seeds are needed"
            elif len(each) and np.ptp(each) <= 1e-12 * np.abs(each).max():
                verdict.reason = "all seeds have the same effect: no spread to judge it by"
            elif len(each):
                effects[id(verdict)] = verdict, each
    holm(list(effects.values()))
    return found


def seeds_effects(claim: Claim, of: list[list[Row]], values: Values) -> np.ndarray:
    """The effect of each seed, (S,): the mean over those groups that have a number for every seed that any has."""
    seeds = sorted({seed for group in of for row in group for seed in values.get(row, {})})
    slopes = []
    for group in of:
        table = np.array([[values.get(row, {}).get(seed, math.nan) for seed in seeds] for row in group])
        if claim.ratio:
            table = np.log(np.where(table > 0, table, math.nan))
        if claim.along:
            rank = np.arange(len(group)) - (len(group) - 1) / 2
            effect = rank @ table / (rank @ rank)
        else:
            effect = table[0] - table[1]
        if np.isfinite(effect).all():
            slopes.append(effect)
    return np.mean(slopes, axis=0) if slopes else np.empty(0)


def holm(tested: list[tuple[Verdict, np.ndarray]]) -> None:
    """Fill in intervals and verdicts of the claims that can be tested, the surest first."""
    for verdict, each in tested:
        at = math.log(verdict.boundary) if verdict.claim.ratio else verdict.boundary
        t = (each.mean() - at) / (each.std(ddof=1) / math.sqrt(len(each)))
        verdict.p = float(2 * stats.t.sf(abs(t), len(each) - 1))
    rejected = 0
    for verdict, each in sorted(tested, key=lambda one: one[0].p):
        verdict.level = 1 - ALPHA / (len(tested) - rejected)
        reach = stats.t.ppf((1 + verdict.level) / 2, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each))
        ends = np.array([each.mean() - reach, each.mean() + reach])
        verdict.low, verdict.high = map(float, np.exp(ends) if verdict.claim.ratio else ends)
        if verdict.low <= verdict.boundary <= verdict.high:
            verdict.reason = "the interval covers " + ("no effect" if not verdict.claim.margin else "the margin")
            continue
        less = verdict.high < verdict.boundary
        verdict.verdict = "holds" if less == (verdict.claim.direction == "less") else "fails"
        rejected += 1
