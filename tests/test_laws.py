"""Every sampler on every schedule, spacing and target at its default number of steps, against exact laws.

`python tests/test_laws.py` prints the errors as a table.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from oracles import ANY, MixtureDenoiser, VectorDenoiser, make_objective, maps
from scipy import stats

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    EulerODE,
    Heun,
    PredictorCorrector,
    Restart,
    Sampler,
    SDEDPMSolver,
    UniPC,
)
from ddpm.schedules import Schedule

Tensor = torch.Tensor
MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.3, 0.12], [0.12, 0.2]])
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
SPACINGS = ("uniform", "quadratic", "karras")
TARGETS = ("x0", "eps", "score", "mu", "v", "F")

# Sampler → (spacing, further fields) → sampler; how often S steps draw noise; its order; the largest relative error of
# mean and covariance at its default S, from the prior, over all schedules and spacings.
KINDS: dict[str, tuple[Callable[..., Sampler], Callable[[int], int], int, float]] = {
    "ancestral": (Ancestral, lambda s: s - 1, 1, 0.13),
    "ancestral, large": (lambda **k: Ancestral(variance="large", **k), lambda s: s - 1, 1, 0.15),
    "ddim": (DDIM, lambda s: 0, 1, 0.13),
    "ddim, eta 1": (lambda **k: DDIM(eta=1.0, **k), lambda s: s - 1, 1, 0.23),
    "euler-maruyama": (EulerMaruyama, lambda s: s - 1, 1, 0.09),
    "predictor-corrector": (PredictorCorrector, lambda s: 2 * (s - 1), 1, 0.08),
    "ode-euler": (EulerODE, lambda s: 0, 1, 0.27),
    "heun": (Heun, lambda s: 0, 2, 0.02),
    "heun, churn 10": (lambda **k: Heun(churn=10.0, **k), lambda s: s, 2, 0.042),
    "dpm-solver++": (DPMSolver, lambda s: 0, 2, 0.02),
    "sde-dpm-solver++": (SDEDPMSolver, lambda s: s - 1, 0, 0.06),
    "unipc": (UniPC, lambda s: 0, 0, 0.008),
    "restart": (Restart, lambda s: 4, 0, 0.075),
    "ode-adaptive": (AdaptiveODE, lambda s: 0, 0, 0.01),
}
# On flow matching ln σ/α falls by 1.4 in the first of fifty even steps, which is of first order (σ/α = 142 → 36).
FURTHER = {("dpm-solver++", "flow"): 0.021}


@cache
def remembered(name: str) -> Schedule:
    """A schedule that looks up α and σ of one time once: thousands of runs ask for the same ones."""
    schedule = ANY[name]()
    for function in ("alpha", "sigma"):
        plain, known = getattr(schedule, function), {}

        def look(t: Tensor, plain: Callable = plain, known: dict = known) -> Tensor:
            if t.numel() > 1 or t.requires_grad:
                return plain(t)
            place = float(t), t.ndim
            if place not in known:
                known[place] = plain(t)
            return known[place]

        object.__setattr__(schedule, function, look)
    return schedule


def network(schedule: Schedule, law: VectorDenoiser | MixtureDenoiser, target: str) -> Callable[..., Tensor]:
    """The best network of a target: what it must answer, from the scaled input and log SNR that it is given."""

    def answer(scaled: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        level = (-0.5 * log_snr[:1]).exp()
        alpha = {"VE": torch.ones_like(level), "VP": 1 / (1 + level**2).sqrt(), "": 1 / (1 + level)}[schedule.family]
        sigma = level * alpha
        x_t = scaled * ((0.25 * alpha**2 if target == "F" else alpha**2) + sigma**2).sqrt()
        t = schedule.time_at(level)[0]
        x0 = law.predict(x_t, t, NOTHING)[0]
        eps = (x_t - alpha * x0) / sigma
        if target == "mu":
            s = (t - 1).clamp(min=0)
            to, left = alpha / schedule.alpha(s), schedule.sigma(s) ** 2
            return (schedule.alpha(s) * (sigma**2 - to**2 * left) * x0 + to * left * x_t) / sigma**2
        skip, out = 0.25 * alpha / (0.25 * alpha**2 + sigma**2), 0.5 * sigma / (0.25 * alpha**2 + sigma**2).sqrt()
        answers = {"x0": x0, "eps": eps, "score": -eps / sigma, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        return (x0 - skip * x_t) / out if target == "F" else answers[target]

    return answer


def denoiser(name: str, target: str = "") -> Denoiser:
    """The exact denoiser of the Gaussian, itself or through the best network of a target."""
    exact = VectorDenoiser(remembered(name), [1.0], [MEAN], [COVARIANCE])
    if not target:
        return exact
    return Denoiser(network(exact.schedule, exact, target), make_objective(target=target), exact.schedule, clip=False)


def errors(mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """The largest errors of mean and covariance, relative to the data's own."""
    off = np.abs(mean.numpy() - MEAN).max() / math.sqrt(COVARIANCE.max())
    return off, np.abs(covariance.numpy() - COVARIANCE).max() / COVARIANCE.max()


def sampled(kind: str, name: str, spacing: str, target: str = "", times: int = 1, exact: bool = False) -> tuple:
    """Errors after `times` the default number of steps, from the prior, or (`exact`) from the law of the first time."""
    offset, start, noise = run(kind, name, spacing, target, times)
    schedule, mean = ANY[name](), torch.zeros(2).double()
    covariance = schedule.noise_std(schedule.start) ** 2 * torch.eye(2).double()
    if exact:
        first = KINDS[kind][0](spacing=spacing, steps=times * KINDS[kind][0]().steps).times(schedule)[0]
        mean, covariance = (part[0] for part in denoiser(name).moments(first))
    return errors(offset + mean @ start, start.T @ covariance @ start + noise)


@cache
def run(kind: str, name: str, spacing: str, target: str, times: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a sampler makes of x_T: `maps` after its last step."""
    make, draws, _, _ = KINDS[kind]
    sampler = make(spacing=spacing, steps=times * make().steps)
    *_, last = maps(sampler, denoiser(name, target), draws(sampler.steps))
    return last


@pytest.mark.parametrize("name", list(ANY))
@pytest.mark.parametrize("kind", list(KINDS))
def test_gaussian(kind: str, name: str) -> None:
    """Mean and covariance of correlated Gaussian data, from the prior, through the best network of every target.

    All targets say the same. Started from the law of its first time, twice the steps leave 2^−order of the error, or
    what is smaller than where its parts cancel.
    """
    _, _, order, most = KINDS[kind]
    most = FURTHER.get((kind, name), most)
    for spacing in SPACINGS:
        found = sampled(kind, name, spacing)
        assert max(found) < most, (spacing, found)
        for target in (*TARGETS, "flow") if name == "flow" else TARGETS:
            assert sampled(kind, name, spacing, target) == pytest.approx(found, abs=2e-6), (spacing, target)
        if order:
            one, two = (sampled(kind, name, spacing, times=k, exact=True)[1] for k in (1, 2))
            ratio, least = {1: (0.6, 0.013), 2: (0.45, 2e-4)}[order]
            assert two < ratio * one or two < least, (spacing, one, two)


@pytest.mark.parametrize("name", list(ANY))
@pytest.mark.parametrize("kind", list(KINDS))
def test_mixture(kind: str, name: str) -> None:
    """Two narrow modes in one dimension: the Wasserstein distance of 4 096 samples, in standard deviations.

    Of the ODE's samplers from even quantiles of the prior, so that nothing is random; else half of 2 % is chance.
    """
    make, _, _, most = KINDS[kind]
    exact = MixtureDenoiser(remembered(name), WEIGHTS, MEANS, STDS)
    grid, generator = (np.arange(4096) + 0.5) / 4096, torch.Generator().manual_seed(0)
    x = torch.from_numpy(stats.norm.ppf(grid))[:, None] * exact.schedule.noise_std(exact.schedule.start)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    points = np.linspace(-3, 3, 60_001)
    cdf = sum(w * stats.norm.cdf(points, m, c) for w, m, c in zip(WEIGHTS, MEANS, STDS, strict=True))
    quantiles = np.interp(grid, cdf, points)
    for spacing in SPACINGS:
        *_, last = make(spacing=spacing).trajectory(exact, x, NOTHING, noise)
        found = np.abs(np.sort(last.flatten().numpy()) - quantiles).mean() / quantiles.std()
        assert found < 0.02 + most / 2, (spacing, found)


def table() -> str:
    """Relative error of mean | covariance at the default S, and the order seen between S and 2S."""
    lines = ["| sampler | S | " + " | ".join(f"{n}, {s}" for n in ANY for s in SPACINGS) + " |"]
    lines.append("| :-- | --: |" + " --: |" * (len(ANY) * len(SPACINGS)))
    for kind, (make, _, order, _) in KINDS.items():
        row = []
        for name in ANY:
            for spacing in SPACINGS:
                mean, covariance = sampled(kind, name, spacing)
                one, two = (sampled(kind, name, spacing, times=k, exact=True)[1] for k in (1, 2))
                seen = f" ({math.log2(one / two):.1f})" if order else ""
                row.append(f"{mean:.3f} {covariance:.3f}{seen}")
        lines.append(f"| {kind} | {make().steps} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
