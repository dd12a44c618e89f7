"""Flow matching as a third family beside VP and VE: α and σ alone, and α(T) = 0.

Its samplers run in test_laws.py and test_orders.py; here is the rest: targets at T, the bound, the density, training.
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from oracles import DIGITS, PLANE, FlowMatching, GaussianDenoiser, log_normal, make_objective, maps, randn, time
from test_bound import quadrature

from ddpm import probability_flow, rng
from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.errors import UserError
from ddpm.objectives import Target
from ddpm.pipeline import checks, config, registry
from ddpm.pipeline.declarations import MethodSource
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.samplers import DDIM, AdaptiveODE, Ancestral, Heun, PlainLangevin
from ddpm.schedules import Schedule
from ddpm.spaces import Space
from ddpm.stages import likelihood, ode_likelihood
from ddpm.stages import train as training
from ddpm.stages.sample import chain

ROOT = Path(__file__).parent.parent
Tensor = torch.Tensor
TARGETS = ("x0", "eps", "score", "mu", "v", "F", "flow")
WEIGHTINGS = ("simple", "vlb", "edm", "min-snr")
MEAN, STD = 0.3, 0.5


def network(schedule: Schedule, target: str) -> "torch.nn.Module":
    """What the best network of N(MEAN, STD²) answers, E[y | x_t], at every t in [1, T]."""
    objective, exact = make_objective(target=target), GaussianDenoiser(schedule, MEAN, STD)

    def answer(scaled: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        t = schedule.time_at((-0.5 * log_snr.double()).exp()).reshape(-1, *[1] * (scaled.ndim - 1))
        # ±30 stands for an infinite log SNR.
        t = torch.where(log_snr.reshape(t.shape) == -30, schedule.steps, t)
        x_t = scaled / objective.target.input_scale(schedule, t)
        found = exact(x_t, t)
        return objective.target.of(schedule, found.x0, found.eps, t)

    return answer


def through(schedule: Schedule, target: str) -> Denoiser:
    return Denoiser(network(schedule, target), make_objective(target=target), schedule, clip=False)


# ---- targets at T -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_inversion_up_to_the_end(target: str) -> None:
    """x0 and ε at every t; at T, where ε and the score say nothing of x0, x̂0 = 0 and ε̂ = x_T/σ_T."""
    schedule, made = FlowMatching(), Target.make({"method": target})
    t, x0, eps = time(1, 400, 999, 1000), randn(0, 4, 2, 1, 1), randn(1, 4, 2, 1, 1)
    x_t = schedule.noisy(x0, eps, t)
    found, direction = made.invert(schedule, made.of(schedule, x0, eps, t), x_t, t)
    blind = target in ("eps", "score")
    torch.testing.assert_close(found, torch.cat([x0[:3], 0 * x0[3:]]) if blind else x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(direction, eps, rtol=0, atol=1e-10)
    assert made.blind(schedule, t).flatten().tolist() == [False] * 3 + [blind]
    prediction = through(schedule, target)(x_t, t)
    exact = GaussianDenoiser(schedule, MEAN, STD)(x_t, t)
    torch.testing.assert_close(prediction.eps, exact.eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(prediction.x0[:3], exact.x0[:3], rtol=0, atol=1e-8)
    assert float(prediction.x0[3].max()) == pytest.approx(0 if blind else MEAN, abs=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_up_to_the_end(target: str) -> None:
    """w gain is what a weighting asks of ‖x0 − x̂0‖²: 1/σ_d² + SNR, min(SNR, γ); 0 where y has no part in it."""
    schedule, t = FlowMatching(), torch.tensor([1.0, 30, 999, 1000]).double()
    snr, gain = (1000 - t) ** 2 / t**2, Target.make({"method": target}).gain(schedule, t)
    for weighting, expected in (("edm", 4 + snr), ("min-snr", snr.clamp(max=5.0))):
        weight = make_objective(target=target, weighting=weighting).weight(schedule, t)
        torch.testing.assert_close((weight * gain)[:3], expected[:3], rtol=1e-9, atol=0)
        assert weight[3] == 0 if target in ("eps", "score") else weight[3] * gain[3] == expected[3]
    # ½ (SNR_{t−1} − SNR_t), in bits and summed over T terms.
    weight = make_objective(target=target, weighting="vlb").weight(schedule, t)[1:]
    terms = 0.5 * ((1001 - t) ** 2 / (t - 1) ** 2 - snr)[1:] * 1000 / math.log(2)
    torch.testing.assert_close((weight * gain[1:])[:2], terms[:2], rtol=1e-8, atol=0)
    assert float(weight[2] * gain[3]) == pytest.approx(0 if target in ("eps", "score") else float(terms[2]), rel=1e-8)


OBJECTIVES = [
    *({"target": target, "weighting": weighting} for target, weighting in product(TARGETS, WEIGHTINGS)),
    *({"target": target, "variance": "learned"} for target in TARGETS),
    {"target": "eps", "variance": "learned", "weighting": "vlb"},
    {"target": "v", "variance": "learned", "weighting": "vlb"},
    {"target": "score", "matching": "sliced"},
]


@pytest.mark.parametrize("parameters", OBJECTIVES, ids=str)
@pytest.mark.parametrize("space", [PLANE, DIGITS])
def test_the_loss_is_finite_at_both_ends(parameters: dict, space: Space) -> None:
    """And its gradient, in single precision, with every law of times' first and last times."""
    schedule, objective = FlowMatching(), make_objective(**parameters)
    weight = torch.tensor(0.3, requires_grad=True)

    def answer(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        output = weight * x + log_snr.reshape(-1, 1, 1, 1) / 100
        return torch.cat([output, output.tanh()], dim=1) if objective.variance.heads == 2 else output

    x0, eps = randn(0, 4, 1, 2, 2).float().clamp(-1, 1), randn(1, 4, 1, 2, 2).float()
    loss = objective.loss(answer, schedule, x0, eps, time(1, 2, 999, 1000), None, space, lambda: torch.ones_like(x0))
    assert loss.shape == (4,) and loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert gradient.isfinite()


def test_times_of_training_stay_inside() -> None:
    """T is drawn; levels above any float64's reach T, where log SNR is −∞."""
    schedule, u = FlowMatching(), torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64)
    t, _ = make_objective(target="v").times.on(schedule).draw(u)
    assert t.tolist() == [1, 501, 1000]
    t, _ = make_objective(target="v", times="log-normal", level_mean=0.0, level_std=1.0).times.on(schedule).draw(u)
    assert t[0] >= 1 and float(t[1]) == pytest.approx(500, rel=1e-12) and t[2] <= 1000
    t, _ = make_objective(target="v", times="log-normal", level_std=200.0).times.on(schedule).draw(u)
    assert float(t[2]) == 1000


# ---- samplers ---------------------------------------------------------------------------------------------


def test_samplers_start_before_the_end() -> None:
    """At σ/α ≤ 164 with noise of σ there, whole chains too; only as many whole times as reach T are refused."""
    schedule = FlowMatching()
    for sampler in (DDIM(steps=1000), Heun(steps=1000, spacing="karras"), AdaptiveODE()):
        times = sampler.times(schedule)
        assert float(times[0]) == 993 and (times.diff() < 0).all()
    assert float(DDIM(steps=999, spacing="quadratic").times(schedule)[0]) == 999
    with pytest.raises(ValueError, match=r"steps: 1000; as many whole times reach to t = 1000, .* at most 999"):
        DDIM(steps=1000, spacing="quadratic").times(schedule)
    with pytest.raises(ValueError, match="steps: 2; x_t holds no data from t = 2 on"):
        AdaptiveODE(steps=2).times(FlowMatching(steps=2))
    x, *_ = chain(through(schedule, "v"), DDIM(steps=2), "own", torch.arange(5), NOTHING, (1, 2, 2))
    drawn = rng.normal(rng.key("sampling", "own"), torch.arange(5), 0, (1, 2, 2))
    torch.testing.assert_close(x, drawn * 0.993, rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_plain_langevin(target: str) -> None:
    """At t = 1 on α x0 + σ ε of N(m, c²): the mean nears α m as (1 − ε/2V)^S, V = α² c² + σ²."""
    schedule, steps, size = FlowMatching(), 40, 0.05
    *_, (offset, start, noise) = maps(
        PlainLangevin(steps=steps, step_size=size), through(schedule, target), steps, size=1
    )
    total = (0.999 * STD) ** 2 + 0.001**2
    shrink = 1 - size / (2 * total)
    assert float(offset) == pytest.approx(0.999 * MEAN * (1 - shrink**steps), rel=1e-7)
    assert float(start) == pytest.approx(shrink**steps, rel=1e-7)
    assert float(noise) == pytest.approx(size * (1 - shrink ** (2 * steps)) / (1 - shrink**2), rel=1e-6)


def test_annealed_langevin_requires_ve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "no VP": whatever does not say that it is VE cannot work, and the reason says what would."""
    own = {
        "flow": MethodSource("own", "Flow", {}, {"family": ""}),
        "ve": MethodSource("own", "Own", {}, {"family": "VE"}),
        "silent": MethodSource("own", "Silent", {}, {}),
    }
    known = registry.known
    monkeypatch.setattr(
        registry, "known", lambda kind, files=(): known(kind, files) | (own if kind == "schedule" else {})
    )

    def reason(schedule: str, sampler: str, variance: str = "fixed") -> str:
        values = {
            "objective": {"target": "score", "variance": variance},
            "schedule": {"method": schedule},
            "guidance": {"method": "none"},
            "sampler": {"method": sampler},
        }
        return checks.incompatibility(values)

    for schedule in ("flow", "silent", "linear", "cosine", "vp-sde"):
        assert reason(schedule, "langevin") == (
            "annealed Langevin dynamics walks through levels with α = 1 (VE schedules)"
        )
    assert not any(reason(schedule, "langevin") for schedule in ("ve", "karras", "geometric"))
    samplers = [name for name in known("sampler") if name != "langevin"]
    assert not any(reason("flow", sampler) for sampler in samplers)
    refused = [sampler for sampler in samplers if "sets its own variance" in reason("flow", sampler, "learned")]
    assert refused == [sampler for sampler in samplers if sampler != "ancestral"]
    assert reason("flow", "langevin", "learned").startswith("this sampler sets its own variance")


# ---- likelihood -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", *TARGETS])
def test_bound_of_gaussian_data(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three parts in expectation: KL_t = ½ (SNR_{t−1} − SNR_t) c²σ²/(α²c² + σ²), none for the prior.

    Where ε or the score is learned, the term of T has E‖x0‖² = m² + c² for the error, with x̂0 = 0.
    """
    steps, schedule = 200, FlowMatching(steps=200)
    z, eps, weights = quadrature()
    monkeypatch.setattr(
        rng, "normal", lambda key, index, draw, shape: eps.flatten(1).repeat(1, math.prod(shape)).reshape(-1, *shape)
    )
    denoiser = through(schedule, target) if target else GaussianDenoiser(schedule, MEAN, STD)
    parts = likelihood.vlb(denoiser, MEAN + STD * z, torch.arange(len(z)), 0, PLANE, steps, False, batch=64)
    ours = {part: float(weights @ value.numpy()) for part, value in parts.items() if part != "terms"}
    t = np.arange(1, steps + 1)
    alpha, sigma = 1 - t / steps, t / steps
    snr, error = alpha**2 / sigma**2, STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    if target in ("eps", "score"):
        error[-1] = MEAN**2 + STD**2
    # β̃ of 2 → 1: σ²_21 σ_1²/σ_2².
    small = (sigma[1] ** 2 - (alpha[1] / alpha[0]) ** 2 * sigma[0] ** 2) * sigma[0] ** 2 / sigma[1] ** 2
    decoder = 0.5 * math.log(2 * math.pi * small) + error[0] / (2 * small)
    expected = {"kl": float((0.5 * (snr[:-1] - snr[1:]) * error[1:]).sum()), "decoder": decoder, "prior": 0.0}
    expected["bound"] = sum(expected.values())
    for part, value in expected.items():
        assert ours[part] == pytest.approx(value / math.log(2), rel=1e-7, abs=1e-12), part
    assert ours["bound"] > 0.5 * math.log2(2 * math.pi * math.e * STD**2)


@pytest.mark.parametrize("target", ["", *TARGETS])
@pytest.mark.parametrize("t", [1.0, 30.25])
def test_density_of_a_gaussian(t: float, target: str) -> None:
    """log p(x_t) of N(0, σ_T′²) at T′ = T − 1 carried by the affine flow; the data's own to 1e-5 nats.

    KL of q(x_T′) from it is ½ (v − 1 − ln v) + ½ α² m²/σ² ≈ ½ α² m², v = 1 + α² c²/σ²: below 1e-6.
    """
    schedule = FlowMatching()
    denoiser = through(schedule, target) if target else GaussianDenoiser(schedule, MEAN, STD)
    alpha, sigma = 1 - t / 1000, t / 1000
    mean, std = alpha * MEAN, math.hypot(alpha * STD, sigma)
    x = mean + randn(4, 3, 2, 2, 2) * std
    probe = 2.0 * (randn(5, *x.shape) > 0) - 1
    found = probability_flow.log_density(denoiser, x, time(t), NOTHING, probe, 1e-8, 1e-8)
    end = math.hypot(0.001 * STD, 0.999)
    carried = 0.001 * MEAN + end / std * (x - mean)
    expected = (log_normal(carried, 0.0, 0.999**2) + math.log(end / std)).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * 5e-7)
    torch.testing.assert_close(found, log_normal(x, mean, std**2).flatten(1).sum(1), rtol=0, atol=8 * 3e-3)


def test_ode_likelihood_in_bits() -> None:
    """The stage's own number for continuous data: −log2 of the density at t = 1, per dimension."""
    schedule = FlowMatching()
    x = MEAN + STD * randn(6, 4, 3)
    found = ode_likelihood.ode(GaussianDenoiser(schedule, MEAN, STD), x, torch.arange(4), 0, PLANE, 1, 1e-8, 1e-8)
    expected = -log_normal(x, 0.999 * MEAN, (0.999 * STD) ** 2 + 1e-6).mean(1) / math.log(2)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_shares_of_the_draw() -> None:
    """(SNR_{t−1} − SNR_t)/(1 + SNR_t) up to SNR_T = 0: finite, of sum 1."""
    share = likelihood.time_shares(FlowMatching(steps=50))
    with mpmath.workdps(30):
        snr = [mpmath.mpf(50 - t) ** 2 / mpmath.mpf(t) ** 2 for t in range(1, 51)]
        gain = [(a - b) / (1 + b) for a, b in pairwise(snr)]
        expected = [float(0.9 * g / sum(gain) + mpmath.mpf(1) / 490) for g in gain]
    assert share.tolist() == pytest.approx(expected, rel=1e-12)


# ---- training ---------------------------------------------------------------------------------------------


def test_training_asks_the_schedule_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that is not known by name ends in noise where its own σ/α does: ∞ is enough, 1 is refused."""

    @dataclass(frozen=True)
    class Half(FlowMatching):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t / (2 * self.steps)

        def sigma(self, t: Tensor) -> Tensor:
            return t / (2 * self.steps)

    layout, grid = Layout(tmp_path), config.check(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"))
    execute("data", *grid.job("data"), layout)
    job, code = grid.job("train", "eps/linear/unconditional/seed0")
    job = job | {"training": job["training"] | {"steps": 3, "warmup": 0}}
    monkeypatch.setattr(training.Schedule, "make", lambda spec: Half())
    message = r"schedule linear of .*: σ/α ends at 1 and must reach 1\.62.*: raise its σ\(T\) against α\(T\)"
    with pytest.raises(UserError, match=message):
        execute("train", job, code, layout)
    monkeypatch.setattr(training.Schedule, "make", lambda spec: FlowMatching())
    execute("train", job, code, layout)
    assert layout.output("train", job["name"]).exists()


def test_ancestral_with_a_learned_variance_is_finite() -> None:
    """The one sampler of a learned variance, over all times that it may take."""
    denoiser = GaussianDenoiser(FlowMatching(steps=20), MEAN, STD, v=0.5)
    *_, x = Ancestral(steps=20).trajectory(denoiser, randn(0, 2000, 1), NOTHING, lambda: randn(1, 2000, 1))
    assert x.isfinite().all() and float(x.mean()) == pytest.approx(MEAN, abs=0.1)
