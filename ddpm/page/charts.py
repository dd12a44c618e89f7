"""Small drawings as SVG that stand in the page itself and take its colours."""

import math
from html import escape

import pandas as pd


def interval(effect: float, low: float, high: float, boundary: float, ratio: bool) -> str:
    """An effect with its interval against the value where the claim ends to hold; empty where there is no effect.

    Ratios are on a logarithmic axis; the axis reaches to either side as far as the farthest end, by 30 at most.
    """
    if math.isnan(effect):
        return ""
    if ratio:
        effect, low, high, boundary = map(math.log, (effect, low, high, boundary))
    away = [abs(value - boundary) for value in (effect, low, high) if not math.isnan(value)]
    reach = min(math.log(30) if ratio else math.inf, 1.15 * max(away)) or 1.0

    def x(value: float) -> str:
        return f"{100 + 92 * max(-1.0, min(1.0, (value - boundary) / reach)):.1f}"

    bar = "" if math.isnan(low) else f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="12" y2="12"/>'
    return (
        '<svg class="interval" viewBox="0 0 200 24" preserveAspectRatio="xMinYMid" role="img" '
        'aria-label="effect and interval">'
        '<line class="axis" x1="4" x2="196" y1="12" y2="12"/><line class="zero" x1="100" x2="100" y1="2" y2="22"/>'
        f'{bar}<circle class="dot" cx="{x(effect)}" cy="12" r="4"/></svg>'
    )


def loss(frame: pd.DataFrame) -> str:
    """A network's loss against the images that it has seen, both axes linear in the logarithm where it is positive."""
    smooth = frame["loss"].rolling(5, min_periods=1).mean()
    shown = smooth.map(math.log) if (smooth > 0).all() else smooth
    images, finite = frame["images"], shown.map(math.isfinite)
    if finite.sum() < 2:
        return ""
    shown, images = shown[finite], images[finite]
    keep = range(0, len(shown), max(1, len(shown) // 240))
    low, high, last = shown.min(), shown.max(), images.max()
    x, y = 4 + 312 * images / last, 6 + 88 * (high - shown) / ((high - low) or 1)
    points = " ".join(f"{x.iloc[i]:.1f},{y.iloc[i]:.1f}" for i in keep)
    ends = f"{smooth[finite].iloc[0]:.3g} → {smooth[finite].iloc[-1]:.3g}"
    return (
        f'<svg class="loss" viewBox="0 0 320 100" role="img" aria-label="loss {ends}">'
        f'<polyline points="{points}"/></svg>'
        f"<figcaption>loss {ends} over {int(last)} training images</figcaption>"
    )


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for p in powers for k in (1, 2, 5) if low <= (value := k * 10.0**p) <= high]


def scatter(points: list[tuple[float, float, str]], across: str, up: str) -> str:
    """Labelled points (x, y, name), both positive, on logarithmic axes; empty where there is none."""
    points = [point for point in points if point[0] > 0 and point[1] > 0]
    if not points:
        return ""
    ends = [(min(values) / 1.3, max(values) * 1.3) for values in ([p[0] for p in points], [p[1] for p in points])]

    def place(value: float, axis: int) -> float:
        low, high = ends[axis]
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return 56 + 560 * share if axis == 0 else 256 - 236 * share

    lines = [
        f'<line class="axis" x1="{place(t, 0):.1f}" x2="{place(t, 0):.1f}" y1="20" y2="256"/>'
        f'<text x="{place(t, 0):.1f}" y="272" text-anchor="middle">{t:g}</text>'
        for t in ticks(*ends[0])
    ]
    lines += [
        f'<line class="axis" x1="56" x2="616" y1="{place(t, 1):.1f}" y2="{place(t, 1):.1f}"/>'
        f'<text x="48" y="{place(t, 1) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks(*ends[1])
    ]
    dots = [
        f'<circle class="dot" cx="{place(x, 0):.1f}" cy="{place(y, 1):.1f}" r="4.5">'
        f"<title>{escape(name)}: {up} {y:.3g}, {x:.3g} s</title></circle>"
        for x, y, name in points
    ]
    return (
        f'<svg class="scatter" viewBox="0 0 640 300" role="img" aria-label="{escape(up)} against {escape(across)}">'
        f'{"".join(lines)}{"".join(dots)}<text x="336" y="294" text-anchor="middle">{escape(across)}</text>'
        f'<text x="56" y="12">{escape(up)}</text></svg>'
    )
