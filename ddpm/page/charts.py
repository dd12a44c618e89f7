"""Small drawings as SVG that stand in the page itself and take its colours."""

import math

import pandas as pd


def interval(effect: float, low: float, high: float, boundary: float, ratio: bool) -> str:
    """An effect with its interval against the value where the claim ends to hold; empty where there is no effect.

    Ratios are on a logarithmic axis. The axis reaches as far to either side as the farthest end, to a round number, of
    ratios by 30 at most; both ends and the boundary are labelled.
    """
    if math.isnan(effect):
        return ""
    change = math.log if ratio else float
    away = [abs(change(value) - change(boundary)) for value in (effect, low, high) if not math.isnan(value)]
    reach = _reach(max(away), ratio)

    def x(value: float) -> str:
        return f"{100 + 80 * max(-1.0, min(1.0, (change(value) - change(boundary)) / reach)):.1f}"

    ends = [boundary * math.exp(side * reach) if ratio else boundary + side * reach for side in (-1, 0, 1)]
    said = [f"× {end:.3g}" if ratio else f"{end:+.3g}" if end else "0" for end in ends]
    texts = "".join(f'<text x="{20 + 80 * i}" y="36" text-anchor="middle">{text}</text>' for i, text in enumerate(said))
    bar = "" if math.isnan(low) else f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="12" y2="12"/>'
    return (
        '<svg class="interval" viewBox="0 0 200 40" preserveAspectRatio="xMinYMid" role="img" '
        f'aria-label="effect and interval, {ends[0]:.3g} to {ends[2]:.3g}">'
        '<path class="axis" d="M20 8v8M20 12H180M180 8v8"/><line class="zero" x1="100" x2="100" y1="2" y2="24"/>'
        f'{texts}{bar}<circle class="dot" cx="{x(effect)}" cy="12" r="4"/></svg>'
    )


def _reach(away: float, ratio: bool) -> float:
    """The least round reach of an axis that holds what is so far from its middle."""
    if ratio:
        return math.log(next((f for f in (1.1, 1.2, 1.5, 2, 3, 5, 10) if math.log(f) >= away), 30))
    power = 10.0 ** math.floor(math.log10(away)) if away else 1.0
    return next(k * power for k in (1, 2, 5, 10) if k * power >= away)


def loss(frame: pd.DataFrame) -> str:
    """A network's loss against the images that it has seen, on a logarithmic axis where it is positive."""
    smooth = frame["loss"].rolling(5, min_periods=1).mean()
    positive = bool((smooth > 0).all())
    shown = smooth.map(math.log) if positive else smooth
    images, finite = frame["images"], shown.map(math.isfinite)
    if finite.sum() < 2:
        return ""
    shown, images = shown[finite], images[finite]
    keep = range(0, len(shown), max(1, len(shown) // 240))
    low, high, last = shown.min(), shown.max(), int(images.max())

    def y(value: float) -> float:
        return 6 + 88 * (high - value) / ((high - low) or 1)

    points = " ".join(f"{44 + 272 * images.iloc[i] / last:.1f},{y(shown.iloc[i]):.1f}" for i in keep)
    marks = _marks(low, high, positive)
    lines = "".join(
        f'<line class="axis" x1="44" x2="316" y1="{y(at):.1f}" y2="{y(at):.1f}"/>'
        f'<text x="40" y="{y(at) + 4:.1f}" text-anchor="end">{text}</text>'
        for at, text in marks
    )
    ends = f"{smooth[finite].iloc[0]:.3g} → {smooth[finite].iloc[-1]:.3g}"
    return (
        f'<svg class="loss" viewBox="0 0 320 116" role="img" aria-label="loss {ends}">{lines}'
        f'<text x="44" y="110">0</text><text x="316" y="110" text-anchor="end">{last:,} images</text>'
        f'<polyline points="{points}"/></svg>'
        f"<figcaption>loss {ends} over the training images</figcaption>"
    )


def _marks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    """Up to four round values of the loss's axis with their texts, or both ends where there are fewer than two."""
    if logarithmic and len(round_ones := ticks(math.exp(low), math.exp(high))) > 1:
        return [(math.log(value), f"{value:g}") for value in round_ones[:: math.ceil(len(round_ones) / 4)]]
    return [(value, f"{math.exp(value) if logarithmic else value:.3g}") for value in dict.fromkeys((low, high))]


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for p in powers for k in (1, 2, 5) if low <= (value := k * 10.0**p) <= high]
