"""Samplers after every step against diffusers, and against EDM's algorithm as its paper prints it."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from oracles import (
    ANY,
    DIFFUSERS_SCHEDULES,
    EVERY,
    SCHEDULES,
    MixtureDenoiser,
    alpha_bar,
    grid,
    make_objective,
    noises,
    randn,
    time,
)
from scipy import stats

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.samplers import DDIM, Ancestral, DPMSolver, Heun, Restart, SDEDPMSolver, UniPC
from ddpm.schedules import Schedule

# Theirs, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

Tensor = torch.Tensor
NAMES = list(SCHEDULES)
WEIGHTS, MEANS, STDS = (0.3, 0.7), (-0.8, 0.5), (0.15, 0.3)
# Wide enough that clipping x̂0 to [−1, 1] matters.
WIDE = (0.4, 0.9)


# ---- chains -----------------------------------------------------------------------------------------------


def diffusers_scheduler(kind: type, name: str, **settings: object) -> DDPMScheduler | DDIMScheduler:
    """A scheduler of diffusers with its table of ᾱ in float64, so that only its formulas are compared."""
    scheduler = kind(beta_schedule=DIFFUSERS_SCHEDULES[name], **settings)
    exact = torch.from_numpy(alpha_bar(name)[1:])
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), exact, rtol=1e-4, atol=1e-12)
    scheduler.alphas_cumprod = exact
    return scheduler


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "clip"), [(32, False), (32, True), (1000, False)])
@pytest.mark.parametrize(
    ("variance", "theirs", "v"),
    [("small", "fixed_small", None), ("large", "fixed_large", None), ("small", "learned_range", 0.3)],
)
def test_diffusers_ddpm(variance: str, theirs: str, v: float | None, steps: int, clip: bool, name: str) -> None:
    """DDPMScheduler after every step, on our grid and at full length; its index is our time less one.

    Its last step adds noise unless its index is 0; there x̂0 is compared.
    """
    scheduler = diffusers_scheduler(DDPMScheduler, name, variance_type=theirs, clip_sample=clip)
    scheduler.set_timesteps(timesteps=[t - 1 for t in grid(steps, name)[:-1]])
    free, denoiser = (
        MixtureDenoiser(SCHEDULES[name](), WEIGHTS, MEANS, WIDE, v=v, clip=clipped) for clipped in (False, clip)
    )
    x = randn(10, 2, 1, 2, 2)
    ours = Ancestral(steps=steps, variance=variance).trajectory(denoiser, x, NOTHING, noises(11, *x.shape))
    generator, outside = torch.Generator().manual_seed(11), False
    for index, state in zip(scheduler.timesteps.tolist(), ours, strict=True):
        prediction = free(x, time(index + 1))
        outside |= bool((prediction.x0.abs() > 1).any())
        output = prediction.eps
        if v is not None:
            output = torch.cat([output, torch.full_like(output, 2 * v - 1)], dim=1)
        stepped = scheduler.step(output, index, x, generator=generator)
        x = stepped.pred_original_sample if index == scheduler.timesteps[-1] else stepped.prev_sample
        torch.testing.assert_close(state, x, rtol=0, atol=1e-8)
    assert outside


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("steps", "spacing", "clip"), [(20, "trailing", False), (200, "trailing", True), (1000, "leading", False)]
)
def test_diffusers_ddim(steps: int, spacing: str, clip: bool, eta: float, name: str) -> None:
    """DDIMScheduler after every step on the same grid: `trailing` is ours where S divides T; `cosine` starts later."""
    scheduler = diffusers_scheduler(
        DDIMScheduler, name, timestep_spacing=spacing, clip_sample=clip, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    indices = [t - 1 for t in grid(steps, name)[:-1]]
    if name == "linear" or steps == 1000:
        assert scheduler.timesteps.tolist() == indices
    free, denoiser = (
        MixtureDenoiser(SCHEDULES[name](), WEIGHTS, MEANS, WIDE, clip=clipped) for clipped in (False, clip)
    )
    x = randn(12, 2, 1, 2, 2)
    drawn, outside = noises(13, *x.shape), False
    ours = DDIM(steps=steps, eta=eta).trajectory(denoiser, x, NOTHING, noises(13, *x.shape))
    for index, after, state in zip(indices, [*indices[1:], -1], ours, strict=True):
        prediction = free(x, time(index + 1))
        outside |= bool((prediction.x0.abs() > 1).any())
        scheduler.num_inference_steps = Fraction(1000, index - after)  # its step goes T // this many indices down
        # Its last step has no variance, so any noise will do there.
        z = drawn() if eta > 0 else torch.zeros_like(x)
        x = scheduler.step(
            prediction.eps, index, x, eta=eta, variance_noise=z, use_clipped_model_output=clip
        ).prev_sample
        torch.testing.assert_close(state, x, rtol=0, atol=1e-8)
    assert outside


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_diffusers_ddim_leading(name: str, eta: float) -> None:
    """One step at a time on diffusers' `leading` grid, 1 + k T/S in our times, down to 0 from the last."""
    steps, scheduler = 50, diffusers_scheduler(DDIMScheduler, name, timestep_spacing="leading", clip_sample=False)
    scheduler.set_timesteps(steps)
    denoiser, x = MixtureDenoiser(SCHEDULES[name](), WEIGHTS, MEANS, STDS), randn(14, 2, 1, 2, 2)
    for k, index in enumerate(reversed(scheduler.timesteps.tolist())):
        t, s, z = 1 + 20 * k, max(0, 1 + 20 * (k - 1)), randn(15 + k, *x.shape)
        assert index == t - 1
        output = denoiser(x, time(t)).eps
        expected = scheduler.step(output, index, x, eta=eta, variance_noise=z if s else 0 * z).prev_sample
        ours = DDIM(steps=steps, eta=eta).step(denoiser, x, time(t), time(s), None, lambda z=z: z)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


# ---- EDM --------------------------------------------------------------------------------------------------


def clean(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[x0 | x0 + σ ε = x] of the mixture: EDM's D(x; σ)."""
    parts = list(zip(WEIGHTS, MEANS, STDS, strict=True))
    density = [w * stats.norm.pdf(x, m, math.hypot(c, sigma)) for w, m, c in parts]
    means = [(m * sigma**2 + x * c**2) / (c**2 + sigma**2) for _, m, c in parts]
    return sum(d * m for d, m in zip(density, means, strict=True)) / sum(density)


def edm(
    x: np.ndarray, sigmas: list[float], noise: Iterator, churn: float, low: float, high: float, scale: float, vp: bool
) -> Iterator[np.ndarray]:
    """Karras et al. 2022, algorithm 2, but for σ̂, which stays below the first σ; x is x0 + σ ε, noise included.

    vp: Heun's step in the angle instead, where dz/dφ = v for z = x/√(1 + σ²), in the frame of the step's beginning.
    """
    for t, after in pairwise(sigmas):
        gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1) if low <= t <= high else 0
        raised = min(t + gamma * t, sigmas[0])
        if gamma > 0:
            x = x + math.sqrt(raised**2 - t**2) * scale * next(noise)
        slope = (x - clean(x, raised)) / raised
        if vp and after > 0:
            angle, turn = math.atan(raised), math.atan(raised) - math.atan(after)
            z, v = x * math.cos(angle), math.cos(angle) * slope - math.sin(angle) * clean(x, raised)
            ahead = (math.cos(turn) * z - math.sin(turn) * v) / math.cos(math.atan(after))
            there = clean(ahead, after)
            v = v / 2 + (math.cos(angle) * (ahead - there) / after - math.sin(angle) * there) / 2
            x = (math.cos(turn) * z - math.sin(turn) * v) / math.cos(math.atan(after))
            yield x
            continue
        ahead = x + (after - raised) * slope
        if after > 0:
            ahead = x + (after - raised) * (slope / 2 + (ahead - clean(ahead, after)) / after / 2)
        x = ahead
        yield x


@pytest.mark.parametrize(
    "churn", [(0.0, 0.0, 1e9, 1.0), (9.0, 0.0, 1e9, 1.0), (3.0, 0.05, 5.0, 1.003), (80.0, 0.1, 20.0, 0.9)]
)
@pytest.mark.parametrize(
    ("name", "spacing"), [("karras", "uniform"), ("geometric", "karras"), ("linear", "karras"), ("cosine", "uniform")]
)
def test_edms_algorithm(name: str, spacing: str, churn: tuple[float, float, float, float]) -> None:
    """In x/α and σ/α; on VP the step is taken in the angle.

    σ̂ = σ + γ σ with γ = min(S_churn/S, √2 − 1) between S_tmin and S_tmax.
    """
    schedule, x = EVERY[name](), randn(20, 6, 1) * EVERY[name]().prior_std
    names = ("churn", "churn_min", "churn_max", "churn_noise")
    sampler = Heun(steps=12, spacing=spacing, **dict(zip(names, churn, strict=True)))
    times = sampler.times(schedule)
    alphas, levels = schedule.alpha(times).tolist(), schedule.level(times).tolist()
    drawn = [randn(30 + i, 6, 1) for i in range(12)]
    ours, theirs = iter(drawn), (z.numpy() for z in drawn)
    found = sampler.trajectory(MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS), x, NOTHING, lambda: next(ours))
    expected = edm(x.numpy() / alphas[0], levels, theirs, *churn, vp=schedule.family == "VP")
    for alpha, state, other in zip(alphas[1:], found, expected, strict=True):
        np.testing.assert_allclose(state.numpy() / alpha, other, rtol=1e-7, atol=1e-8)
    # Both have drawn the same noise.
    assert len(list(ours)) == len(list(theirs))


@pytest.mark.parametrize("name", ["karras", "linear"])
@pytest.mark.parametrize(("low", "high"), [(0.06, 0.3), (0.5, 1000.0)])
def test_restart(low: float, high: float, name: str) -> None:
    """Xu et al. 2023, algorithm 1, in x/α and σ/α: Heun's steps; at σ_min K times σ_max² − σ_min² more variance and N
    steps back. σ_max is at most where samples begin, and the level next to σ_min is σ_min."""
    schedule, k, n = EVERY[name](), 3, 2
    sampler = Restart(steps=10, restarts=k, restart_steps=n, level_min=low, level_max=high, spacing="karras")
    times, plain = sampler.times(schedule), Heun(steps=10, spacing="karras").times(schedule)
    levels = schedule.level(times).tolist()
    moved = [i for i in range(11) if times[i] != plain[i]]
    nearest = min(range(1, 10), key=lambda i: abs(math.log(float(schedule.level(plain[i])) / low)))
    assert moved == [nearest] and levels[nearest] == pytest.approx(low, rel=1e-9)
    top, root = min(high, levels[0]), 1 / 7
    again = [(low**root + (1 - i / n) * (top**root - low**root)) ** 7 for i in range(n + 1)]
    x, drawn = randn(24, 6, 1) * schedule.prior_std, [randn(50 + i, 6, 1) for i in range(k)]
    ours, theirs = iter(drawn), (z.numpy() for z in drawn)
    found = sampler.trajectory(MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS), x, NOTHING, lambda: next(ours))
    state = x.numpy() / float(schedule.alpha(times[0]))

    def step(state: np.ndarray, t: float, after: float) -> np.ndarray:
        return next(edm(state, [t, after], iter(()), 0.0, 0.0, 0.0, 0.0, vp=schedule.family == "VP"))

    for i, (t, after) in enumerate(pairwise(levels)):
        state = step(state, t, after)
        for _ in range(k if i + 1 == nearest else 0):
            state = state + math.sqrt(top**2 - low**2) * next(theirs)
            for upper, lower in pairwise(again):
                state = step(state, upper, lower)
        np.testing.assert_allclose(
            next(found).numpy() / float(schedule.alpha(times[i + 1])), state, rtol=1e-7, atol=1e-8
        )
    assert not list(ours) and not list(found)


def test_restarts_begin_below_the_start() -> None:
    """A level_min that no step can lead to is named, with what would be right."""
    with pytest.raises(ValueError, match="level_min: 90; it must be below 80, the σ/α where samples begin"):
        Restart(level_min=90.0, level_max=100.0).times(EVERY["karras"]())


@pytest.mark.parametrize("name", ["karras", "geometric"])
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_diffusers_heun(spacing: str, name: str) -> None:
    """HeunDiscreteScheduler, whose state is x/α, on our levels: two of its steps are one of ours."""
    schedule, steps = EVERY[name](), 10
    scheduler = HeunDiscreteScheduler(beta_schedule="linear")
    sampler, x = Heun(steps=steps, spacing=spacing), randn(21, 3, 1, 2, 2) * EVERY[name]().prior_std
    times = sampler.times(schedule)
    level = schedule.level(times)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([level[:1], level[1:-1].repeat_interleave(2), level[-1:]])
    scheduler.set_begin_index(0)
    denoiser = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS)
    for (t, s), ours in zip(pairwise(times), sampler.trajectory(denoiser, x, NOTHING, None), strict=True):
        state = x / schedule.alpha(t)
        for at in (t, s) if s > 0 else (t,):
            state = scheduler.step(denoiser(schedule.alpha(at) * state, at).eps, 0, state).prev_sample
        x = schedule.alpha(s) * state
        torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_diffusers_edm() -> None:
    """EDMEulerScheduler with a network of EDM's F: its input, x̂0 and step are those of DDIM on the Karras levels.

    Its state is float32.
    """
    schedule, steps, seen = EVERY["karras"](), 18, []

    def network(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        # c_noise = ¼ ln σ.
        seen.append((x, -log_snr[0] / 8))
        return torch.tanh(x) + 0.3 * torch.sin(3 * x + log_snr[0])

    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = schedule.level(schedule.grid(steps))
    denoiser = Denoiser(network, make_objective(target="F", sigma_data=0.5), schedule, clip=False)
    x, sampler = 80 * randn(22, 3, 1, 2, 2), DDIM(steps=steps)
    states = sampler.trajectory(denoiser, x, NOTHING, None)
    for t, noise, ours in zip(sampler.times(schedule), scheduler.timesteps, states, strict=False):
        scaled = scheduler.scale_model_input(x, noise)
        torch.testing.assert_close(seen[-1][0], scaled, rtol=1e-12, atol=1e-12)
        assert float(seen[-1][1]) == pytest.approx(float(noise), rel=1e-5)
        output = network(scaled, schedule.log_snr(t)[None], NOTHING)
        stepped = scheduler.step(output, noise, x)
        torch.testing.assert_close(denoiser(x, t).x0, stepped.pred_original_sample, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours, stepped.prev_sample, rtol=1e-6, atol=1e-6)
        x = ours


# ---- multistep methods -----------------------------------------------------------------------------------------


def standardised(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """x_t/√(α² + σ²), what a VP schedule with the same σ/α would have."""
    return x / (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()


MULTISTEP = {
    "dpmsolver++": (DPMSolver, DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "sde": (SDEDPMSolver, DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "unipc-2": (partial(UniPC, order=2), UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 2}),
    "unipc-3": (partial(UniPC, order=3), UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 3}),
}


@pytest.mark.parametrize("name", list(ANY))
@pytest.mark.parametrize(("steps", "spacing"), [(1, "uniform"), (2, "uniform"), (10, "uniform"), (25, "karras")])
@pytest.mark.parametrize("kind", list(MULTISTEP))
def test_diffusers_multistep(kind: str, steps: int, spacing: str, name: str) -> None:
    """After every step, ending at σ = 0, on our levels. Their x is x/√(α² + σ²); the state of dpmsolver++ is float32.

    UniPC corrects what it predicted: its own prediction goes on.
    """
    ours, theirs, settings = MULTISTEP[kind]
    scheduler = theirs(prediction_type="sample", final_sigmas_type="zero", **settings)
    schedule, sampler = ANY[name](), ours(steps=steps, spacing=spacing)
    times = sampler.times(schedule)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = schedule.level(times)
    scheduler.set_begin_index(0)
    denoiser, generator = MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS), torch.Generator().manual_seed(24)
    x = randn(23, 4, 1, 2, 2) * schedule.noise_std(times[0])
    states = sampler.trajectory(denoiser, x, NOTHING, noises(24, *x.shape))
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if theirs is DPMSolverMultistepScheduler else {"rtol": 1e-11, "atol": 1e-11}
    )
    for i, (t, s) in enumerate(pairwise(times)):
        known, z = denoiser(x, t).x0, torch.randn(x.shape, generator=generator, dtype=torch.float64)
        more = {"variance_noise": z} if kind == "sde" else {}
        found = scheduler.step(known, scheduler.timesteps[i], standardised(schedule, x, t), **more).prev_sample
        x = next(states)
        torch.testing.assert_close(standardised(schedule, x, s), found.double(), **tolerance)
