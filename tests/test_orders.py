"""What samplers converge to on data whose flow and law are known, and how fast. No random numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import (
    ANY,
    EVERY,
    FlowMatching,
    GaussianDenoiser,
    MixtureDenoiser,
    VectorDenoiser,
    last,
    laws,
    make_objective,
    randn,
    time,
)
from scipy import optimize, stats

from ddpm.condition import NOTHING
from ddpm.denoiser import Denoiser
from ddpm.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    EulerODE,
    Heun,
    Langevin,
    PlainLangevin,
    PredictorCorrector,
    Restart,
    Sampler,
    SDEDPMSolver,
    UniPC,
)
from ddpm.schedules import VPSDE, Flow, Geometric, Karras, Schedule

Tensor = torch.Tensor
Array = np.ndarray
MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.3, 0.12], [0.12, 0.2]])
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)

# S → the sampler and how often it draws noise.
AFFINE: dict[str, Callable[[int], tuple[Sampler, int]]] = {
    "ancestral": lambda s: (Ancestral(steps=s), s - 1),
    "ancestral, large": lambda s: (Ancestral(steps=s, variance="large"), s - 1),
    "ddim": lambda s: (DDIM(steps=s), 0),
    "ddim, eta 0.5": lambda s: (DDIM(steps=s, eta=0.5), s - 1),
    "euler-maruyama": lambda s: (EulerMaruyama(steps=s), s - 1),
    "ode-euler": lambda s: (EulerODE(steps=s), 0),
    "heun": lambda s: (Heun(steps=s), 0),
    "heun, churn": lambda s: (Heun(steps=s, churn=10.0), s),
    "dpm-solver++": lambda s: (DPMSolver(steps=s), 0),
    "unipc": lambda s: (UniPC(steps=s), 0),
}
# Of few steps, x̂0 of the last one is most of their error.
FURTHER: dict[str, Callable[[int], tuple[Sampler, int]]] = {
    "sde-dpm-solver++": lambda s: (SDEDPMSolver(steps=s), s - 1),
    "restart": lambda s: (Restart(steps=s, restarts=3, restart_steps=s // 8), 3),
}


def true_law(denoiser: VectorDenoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of q(x_t) for a single Gaussian."""
    means, covariances = denoiser.moments(t)
    return means[0], covariances[0]


def distance(found: tuple[Tensor, Tensor], denoiser: VectorDenoiser, t: Tensor) -> float:
    """The largest error of mean and covariance, relative to the covariance."""
    mean, covariance = true_law(denoiser, t)
    errors = (found[0] - mean).abs().max() / covariance.max().sqrt(), (found[1] - covariance).abs().max()
    return float(max(errors[0], errors[1] / covariance.max()))


@pytest.mark.parametrize("name", list(ANY))
@pytest.mark.parametrize("kind", list(AFFINE))
def test_mean_and_covariance_converge(kind: str, name: str) -> None:
    """Correlated Gaussian data, started from their exact law: twice the steps leave at most 0.7 of the error."""
    denoiser, errors = VectorDenoiser(ANY[name](steps=1024), [1.0], [MEAN], [COVARIANCE]), []
    for steps in (32, 64):
        sampler, draws = AFFINE[kind](steps)
        start = true_law(denoiser, sampler.times(denoiser.schedule)[0])
        errors.append(distance(laws(sampler, denoiser, draws, *start)[-1], denoiser, time(0)))
    assert errors[1] < 0.7 * errors[0] and errors[1] < 0.6


@pytest.mark.parametrize("name", list(ANY))
def test_adaptive_ode_of_a_gaussian(name: str) -> None:
    """What is left is the last step, x̂0 at t = 1: the covariance is that of E[x0 | x_1], C − Cov[x0 | x_1]."""
    denoiser = VectorDenoiser(ANY[name](), [1.0], [MEAN], [COVARIANCE])
    start = true_law(denoiser, denoiser.schedule.start)
    mean, covariance = laws(AdaptiveODE(steps=4, rtol=1e-7, atol=1e-7), denoiser, 0, *start)[-1]
    level = float(denoiser.schedule.level(time(1))) ** 2
    expected = COVARIANCE @ np.linalg.solve(COVARIANCE + level * np.eye(2), COVARIANCE)
    np.testing.assert_allclose(mean.numpy(), MEAN, atol=1e-6)
    np.testing.assert_allclose(covariance.numpy(), expected, atol=1e-6)


# ---- orders -----------------------------------------------------------------------------------------------


def quantiles(schedule: Schedule, x: Array, t: float, s: float) -> Array:
    """The flow from t to s in one dimension is monotone and keeps quantiles: x_s = F_s⁻¹(F_t(x_t))."""
    scales = [(float(schedule.alpha(time(u))), float(schedule.sigma(time(u)))) for u in (t, s)]

    def cdf(x: float, alpha: float, sigma: float) -> float:
        parts = zip(WEIGHTS, MEANS, STDS, strict=True)
        return sum(w * stats.norm.cdf(x, alpha * m, math.hypot(alpha * c, sigma)) for w, m, c in parts)

    def inverse(p: float) -> float:
        return optimize.brentq(lambda u: cdf(u, *scales[1]) - p, -300, 300, xtol=1e-14, rtol=1e-14)

    return np.array([inverse(cdf(v, *scales[0])) for v in x])


def state_at(sampler: Sampler, schedule: Schedule, t: float) -> int:
    """Which state of the trajectory is x_t; t must be one of the sampler's times."""
    distance = (sampler.times(schedule)[1:] - t).abs()
    assert float(distance.min()) < 1e-9
    return int(distance.argmin())


@pytest.mark.parametrize(
    ("schedule", "sizes", "end"),
    [
        (VPSDE(steps=4096), (128, 256), 1024),
        (Geometric(), (128, 256), 1),
        (Karras(), (128, 256), 1),
        (FlowMatching(), (249, 497), 497),
    ],
    ids=["VP", "NCSN", "EDM", "flow"],
)
@pytest.mark.parametrize(("kind", "order"), [(EulerODE, 1), (DDIM, 1), (Heun, 2), (DPMSolver, 2)])
def test_order(kind: type[Sampler], order: int, schedule: Schedule, sizes: tuple[int, int], end: float) -> None:
    """The error against the exact flow of a mixture falls as S^−order; before the last step, which goes by x̂0."""
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    x = np.array([-1.5, -0.7, -0.2, 0.4, 1.8]) * float(schedule.prior_std)
    exact, errors = quantiles(schedule, x, float(schedule.start), end), []
    for steps in sizes:
        sampler = kind(steps=steps)
        states = list(sampler.trajectory(denoiser, torch.tensor(x).reshape(-1, 1), NOTHING, None))
        errors.append(np.abs(states[state_at(sampler, schedule, end)].flatten().numpy() - exact).max())
    assert errors[-1] < (6e-2 if order == 1 else 2e-4)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.07)


@pytest.mark.parametrize(
    ("schedule", "sizes", "end"),
    [
        (VPSDE(steps=4096), (256, 512), 1024),
        (Geometric(sigma_min=0.1, sigma_max=5.0), (65, 129), 500.5),
        (FlowMatching(), (249, 497), 497),
    ],
    ids=["VP", "NCSN", "flow"],
)
@pytest.mark.parametrize(
    ("kind", "order"), [("euler-maruyama", 1), ("heun, churn", 2), ("sde-dpm-solver++", 2), ("restart", 2)]
)
def test_weak_order(kind: str, order: int, schedule: Schedule, sizes: tuple[int, int], end: float) -> None:
    """The law of Euler and Maruyama's steps approaches q(x_t) as 1/S, that of the others as 1/S²: restarts keep the
    order of Heun's method, and on Gaussian data the multistep method of the SDE is of second order."""
    denoiser, errors = VectorDenoiser(schedule, [1.0], [MEAN], [COVARIANCE]), []
    for steps in sizes:
        sampler, draws = (AFFINE | FURTHER)[kind](steps)
        found = laws(sampler, denoiser, draws, *true_law(denoiser, schedule.start))
        errors.append(distance(found[state_at(sampler, schedule, end)], denoiser, time(end)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", [VPSDE(steps=4096), Karras(), Flow()], ids=["VP", "EDM", "flow"])
def test_order_of_unipc(schedule: Schedule, order: int) -> None:
    """The corrector adds one to the order of the predictor: S^−(p + 1) at t = 1, before the last step."""
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    x = np.array([-1.5, -0.7, -0.2, 0.4, 1.8]) * float(schedule.prior_std)
    exact, errors = quantiles(schedule, x, float(schedule.start), 1), []
    for steps in (64, 128):
        sampler = UniPC(steps=steps, order=order, spacing="karras")
        states = list(sampler.trajectory(denoiser, torch.tensor(x).reshape(-1, 1), NOTHING, None))
        errors.append(np.abs(states[state_at(sampler, schedule, 1)].flatten().numpy() - exact).max())
    assert errors[-1] < {2: 1e-3, 3: 2e-4}[order]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("schedule", [VPSDE(), Karras(), Flow()], ids=["VP", "EDM", "flow"])
def test_restarts_forget_what_was_before(schedule: Schedule) -> None:
    """From a single point the ODE leads to a single point. Every restart adds ς_max² − ς_min² to the variance of x/α at
    ς_min, and the way down multiplies it by (c² + ς_min²)/(c² + ς_max²): towards c² + ς_min²."""
    denoiser, low, high = VectorDenoiser(schedule, [1.0], [MEAN[:1]], [COVARIANCE[:1, :1]]), 0.06**2, 0.9**2
    for count in (1, 3):
        sampler = Restart(steps=8, restarts=count, restart_steps=64, level_min=0.06, level_max=0.9)
        bottom = schedule.time_at(time(0.06))
        found = laws(sampler, denoiser, count, torch.zeros(1).double(), torch.zeros(1, 1).double())
        _, variance = found[state_at(sampler, schedule, float(bottom))]
        expected = 0.0
        for _ in range(count):
            expected = (expected + high - low) * (0.3 + low) / (0.3 + high)
        assert float(variance) / float(schedule.alpha(bottom)) ** 2 == pytest.approx(expected, rel=1e-3)


# ---- single steps by their formulas -----------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), [(1000.0, 900.0), (400.0, 380.5), (1.0, 0.0)])
@pytest.mark.parametrize("noisy", [False, True])
def test_steps_of_the_equations(noisy: bool, t: float, s: float) -> None:
    """003, "SDE Formulation - Backward Process": dx = [f x − g² s] dt + g dw̄, and half of g² s for the ODE; the last
    step is x̂0."""
    x, eps, z = randn(0, 3, 2), randn(1, 3, 2), randn(2, 3, 2)
    denoiser = Denoiser(lambda *_: eps, make_objective(target="eps"), VPSDE(), clip=False)
    beta = (0.1 + t / 1000 * 19.9) / 1000  # per unit of t, as f = −β/2 and g² = β
    score = -eps / math.sqrt(-math.expm1(-0.5 * (t / 1000) ** 2 * 19.9 - t / 1000 * 0.1))
    if noisy:
        expected = x + (t - s) * (0.5 * beta * x + beta * score) + math.sqrt(beta * (t - s)) * z
        sampler: Sampler = EulerMaruyama()
    else:
        expected, sampler = x + (t - s) * (0.5 * beta * x + 0.5 * beta * score), EulerODE()
    if s == 0:
        log_alpha = -((t / 1000) ** 2) * 19.9 / 4 - t / 1000 * 0.1 / 2
        expected = (x - math.sqrt(-math.expm1(2 * log_alpha)) * eps) / math.exp(log_alpha)
    ours = sampler.step(denoiser, x, time(t), time(s), None, lambda: z)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear", "karras"])
@pytest.mark.parametrize("corrections", [1, 3])
def test_predictor_corrector_step(name: str, corrections: int) -> None:
    """Song et al. 2021, algorithms 4 and 5: after the predictor x ← x + ε s + √(2ε) z, ε = 2 (α_ts r σ_s)²."""
    schedule, x = EVERY[name](), randn(3, 4, 1, 2, 3)
    denoiser, t, s = GaussianDenoiser(schedule, 0.2, 0.6), time(500), time(470)
    drawn = [randn(10 + i, *x.shape) for i in range(1 + corrections)]
    ours, theirs = iter(drawn), iter(drawn)
    found = PredictorCorrector(corrections=corrections, snr=0.2).step(denoiser, x, t, s, None, lambda: next(ours))
    expected = EulerMaruyama().step(denoiser, x, t, s, None, lambda: next(theirs))
    alpha_t, alpha_s, sigma = float(schedule.alpha(t)), float(schedule.alpha(s)), float(schedule.sigma(s))
    size = 2 * (alpha_t / alpha_s * 0.2 * sigma) ** 2
    for z in theirs:
        score = -(expected - alpha_s * 0.2) / (alpha_s**2 * 0.36 + sigma**2)
        expected = expected + size * score + math.sqrt(2 * size) * z
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(ANY))
@pytest.mark.parametrize("corrections", [1, 3])
def test_predictor_corrector_keeps_the_law(corrections: int, name: str) -> None:
    """A Langevin step leaves V at V + ε²/V: of the order of r² too wide; no correction after the last step."""
    denoiser, steps = VectorDenoiser(ANY[name](steps=1024), [1.0], [MEAN], [COVARIANCE]), 64
    start, sampler = (
        true_law(denoiser, denoiser.schedule.start),
        PredictorCorrector(steps=steps, corrections=corrections),
    )
    found = laws(sampler, denoiser, (steps - 1) * (1 + corrections), *start)
    assert distance(found[-1], denoiser, time(0)) < 0.16**2


# ---- Langevin dynamics ------------------------------------------------------------------------------------


def test_plain_langevin() -> None:
    """x ← x + ε/2 s + √ε z on N(m, V): the mean's distance shrinks by 1 − ε/2V, the variance nears V/(1 − ε/4V)."""
    schedule, steps, size = Geometric(sigma_min=0.1), 60, 0.05
    denoiser = VectorDenoiser(schedule, [1.0], [MEAN[:1]], [COVARIANCE[:1, :1]])
    var = 0.3 + 0.1**2
    mean, covariance = torch.tensor([2.0]).double(), torch.tensor([[4.0]]).double()
    found = laws(PlainLangevin(steps=steps, step_size=size), denoiser, steps, mean, covariance)
    shrink = 1 - size / (2 * var)
    limit = var / (1 - size / (4 * var))
    for i in (0, 1, 20, steps - 1):
        assert float(found[i][0]) == pytest.approx(0.3 + shrink ** (i + 1) * 1.7, rel=1e-10)
        assert float(found[i][1]) == pytest.approx(limit + shrink ** (2 * i + 2) * (4 - limit), rel=1e-10)


def test_annealed_langevin() -> None:
    """001, algorithm 3: `corrections` steps of α_i = ε σ_i²/σ_L² at every level, the smallest included."""
    schedule, levels, corrections, size = Geometric(sigma_min=0.1, sigma_max=10.0), 7, 5, 0.01
    denoiser = VectorDenoiser(schedule, [1.0], [MEAN[:1]], [COVARIANCE[:1, :1]])
    mean, var = 1.5, 100.0
    found = laws(
        Langevin(steps=levels, corrections=corrections, step_size=size),
        denoiser,
        levels * corrections,
        torch.tensor([mean]).double(),
        torch.tensor([[var]]).double(),
    )
    for sigma, (one, two) in zip(np.geomspace(10, 0.1, levels), found, strict=True):
        step, total = size * (sigma / 0.1) ** 2, 0.3 + sigma**2
        for _ in range(corrections):
            mean = mean - step / 2 * (mean - 0.3) / total
            var = (1 - step / (2 * total)) ** 2 * var + step
        assert float(one) == pytest.approx(mean, rel=1e-9) and float(two) == pytest.approx(var, rel=1e-9)
    assert len(found) == levels


def weights_of_modes(x: Tensor) -> float:
    """The share of the points that lie nearer to the mode at (5, 5)."""
    return float((x.sum(1) > 0).double().mean())


def test_only_annealed_langevin_finds_the_weights_of_far_modes() -> None:
    """001, figure 3.2: 0.8 N((5, 5), I) + 0.2 N((−5, −5), I). Plain Langevin keeps to the side that it starts on."""
    schedule = Geometric(steps=10, sigma_min=1.0, sigma_max=20.0)
    denoiser = VectorDenoiser(schedule, [0.8, 0.2], [[5, 5], [-5, -5]], [np.eye(2), np.eye(2)])
    x = 20 * randn(0, 2000, 2)
    generator = torch.Generator().manual_seed(1)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    plain = last(PlainLangevin(steps=300, step_size=0.1), denoiser, x, noise)
    annealed = last(Langevin(steps=10, corrections=100, step_size=0.1), denoiser, x, noise)
    assert abs(weights_of_modes(plain) - 0.5) < 0.05
    assert weights_of_modes(annealed) == pytest.approx(0.8, abs=0.03)
    # Both have found the modes themselves: one unit of noise more than the data, per coordinate.
    for points in (plain, annealed):
        assert float((points.abs() - 5).var()) == pytest.approx(2.0, rel=0.1)
