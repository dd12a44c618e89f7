"""Whether a schedule ends in noise: σ/α at t = T in plain numbers, from the parameters alone. No torch.

Of a schedule that is not known here by name, training asks α and σ themselves (`falls_short` of its σ_T/α_T).

Samplers start from noise without data, N(0, prior_std² I). Where σ_T/α_T is k standard deviations of the data, that
start lacks 1/(1 + k²) of the variance that x_T has, and so do the samples of the probability flow.
"""

import math
from itertools import pairwise

# Of σ_T/α_T, in standard deviations of the data: a tenth of the variance.
SMALLEST = 3.0
# The parameter by which a schedule ends in more noise; these are the known ones.
RAISED = {
    "linear": "beta_last",
    "cosine": "beta_max",
    "vp-sde": "beta_max",
    "geometric": "sigma_max",
    "karras": "sigma_max",
}
# These end in noise alone, α(T) = 0, whatever their parameters.
NOISE_ALONE = ("flow", "shifted-cosine", "sigmoid")
# More are refused as such.
MOST_STEPS = 1_000_000


def level(method: str, p: dict) -> float | None:
    """σ_T/α_T of a schedule with the parameters p (ddpm/schedules.py has the formulas).

    None of an unknown method or of too many steps; infinite where α_T is 0 or a β_t would be 1 or more.
    """
    if method in NOISE_ALONE:
        return math.inf
    if method not in RAISED or p.get("steps", 0) > MOST_STEPS:
        return None
    if method in ("linear", "cosine"):
        betas = list(_linear(p) if method == "linear" else _cosine(p))
        if max(betas) >= 1:
            return math.inf
        return _from_log_alpha_bar(sum(math.log1p(-beta) for beta in betas))
    if method == "vp-sde":
        return _from_log_alpha_bar(-0.5 * (p["beta_max"] - p["beta_min"]) - p["beta_min"])
    return p["sigma_max"]


def _linear(p: dict) -> list[float]:
    steps, scale = p["steps"], 1000 / p["steps"]
    rise = (p["beta_last"] - p["beta_first"]) / (steps - 1)
    return [scale * (p["beta_first"] + i * rise) for i in range(steps)]


def _cosine(p: dict) -> list[float]:
    steps, offset = p["steps"], p["offset"]
    f = [math.cos((t / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for t in range(steps + 1)]
    return [min(1 - after / before, p["beta_max"]) for before, after in pairwise(f)]


def _vanishes(betas: list[float]) -> bool:
    """Whether ᾱ = Π (1 − β) is 0 in float64: the bound of a step is one of ratios of ᾱ."""
    return max(betas) < 1 and math.exp(sum(math.log1p(-beta) for beta in betas)) == 0


def _from_log_alpha_bar(log_bar: float) -> float:
    """√((1 − ᾱ)/ᾱ)."""
    return math.sqrt(math.expm1(-log_bar)) if log_bar > -700 else math.inf


def mistake(method: str, p: dict, std: float) -> str:
    """What is wrong with the end of a schedule for data of the standard deviation `std`; empty where nothing is."""
    if method == "linear" and (last := 1000 / p["steps"] * p["beta_last"]) >= 1:
        least = math.floor(1000 * p["beta_last"]) + 1
        return f"steps: {p['steps']}; β_T = beta_last · 1000/T = {last:g} must be below 1: T must be at least {least}"
    if method == "linear" and p["steps"] <= MOST_STEPS and _vanishes(_linear(p)[:-1]):
        left = "nothing of the data is left before T, not even in float64"
        return f"beta_last: {p['beta_last']:g}; {left}: lower beta_last"
    if (end := level(method, p)) is None or not (short := falls_short(end, std)):
        return ""
    return f"{RAISED[method]}: {p[RAISED[method]]:g}; {short}: raise {RAISED[method]}"


def falls_short(end: float, std: float) -> str:
    """What is wrong with an end σ_T/α_T for data of the standard deviation `std`; empty where nothing is."""
    if end >= SMALLEST * std:
        return ""
    return (
        f"x_T is not noise but still shows the data: σ/α ends at {end:.3g} and must reach {SMALLEST * std:.3g}, "
        f"{SMALLEST:g} standard deviations of the data"
    )
