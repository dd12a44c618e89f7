"""The verdicts on the documents' claims as claims.md and claims.csv."""

import math

import pandas as pd

from ddpm.pipeline.looks import LEAST
from ddpm.tables.markdown import markdown
from ddpm.tables.verdicts import ABSENT, ALPHA, Verdict

ORDER = ("holds", "fails", "undecided")


def number(value: float, ratio: bool) -> str:
    """`× 0.31` of distances, `+0.012` of all else; empty where unknown."""
    if math.isnan(value):
        return ""
    return f"× {value:.3g}" if ratio else f"{value:+.3g}"


def effect(verdict: Verdict) -> str:
    """The effect and its interval, as far as they are known."""
    ratio, text = verdict.claim.ratio, number(verdict.effect, verdict.claim.ratio)
    if not math.isnan(verdict.low):
        text += f" ({number(verdict.low, ratio)} to {number(verdict.high, ratio)})"
    return text + (" per step" if verdict.claim.along and text else "")


def frame(verdicts: list[Verdict]) -> pd.DataFrame:
    """One row per claim, as claims.csv has them."""
    return pd.DataFrame(
        {
            "claim": v.claim.name,
            "verdict": v.verdict,
            "says": v.claim.says,
            "sources": "; ".join(v.claim.sources),
            "column": v.claim.column,
            "direction": v.claim.direction,
            "measured_as": "ratio" if v.claim.ratio else "difference",
            "effect": v.effect,
            "low": v.low,
            "high": v.high,
            "level": v.level,
            "boundary": v.boundary,
            "p": v.p,
            "seeds": v.seeds,
            "pairs": v.pairs,
            "looks": v.looks,
            "published": v.claim.published,
            "reason": v.reason,
        }
        for v in verdicts
    )


def summary(verdicts: list[Verdict]) -> str:
    """`2 hold, 0 fail, 5 undecided; 14 are not about rows of this grid`."""
    count = {kind: sum(v.verdict == kind for v in verdicts) for kind in (*ORDER, ABSENT)}
    rest = f"; {count[ABSENT]} are about rows that this grid does not have" if count[ABSENT] else ""
    return f"{count['holds']} hold, {count['fails']} fail, {count['undecided']} undecided{rest}"


def text(verdicts: list[Verdict]) -> str:
    """claims.md: what holds here first; one line for everything that this grid cannot say."""
    rows = [
        {
            "verdict": f"**{v.verdict}**" + (f": {v.reason}" if v.reason else ""),
            "claim": v.claim.says + (f" ({v.claim.note})" if v.claim.note else ""),
            "source": "; ".join(v.claim.sources),
            "column": v.claim.column,
            "effect (interval)": effect(v),
            "published": v.claim.published,
            "seeds": v.seeds,
            "pairs": v.pairs,
            "looks": v.looks,
        }
        for v in sorted((v for v in verdicts if v.verdict != ABSENT), key=lambda v: ORDER.index(v.verdict))
    ]
    absent = [v.claim.name for v in verdicts if v.verdict == ABSENT]
    return (
        f"# What the documents claim, and what this grid says\n\n{summary(verdicts)}.\n\n{EXPLANATION}\n"
        + (markdown(pd.DataFrame(rows)) if rows else "")
        + (f"\nNot in this grid: {', '.join(f'`{name}`' for name in absent)}.\n" if absent else "")
    )


EXPLANATION = (
    "An effect is compare ÷ against (×) of distances and compare − against (+, −) of all else; per step of the "
    "parameter's values where a claim follows one. It is taken of every training seed, whose sampling seeds are "
    "averaged first, and averaged over pairs of rows that differ in nothing else; the interval is Student's t over "
    f"training seeds, {LEAST} of which are the least. "
    f"The intervals' levels are such that at most {ALPHA:.0%} of tables of chance alone would have any "
    "false verdict (Holm 1979), however often `ddpm claims --decide` gives undecided claims further seeds: the first "
    "look spends half of that, every look after it, at twice the seeds, half of what is left. Undecided is what covers "
    "no effect. Claims stand in `workflow/claims/`, all numbers in `claims.csv`.\n"
)
