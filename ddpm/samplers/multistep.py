"""Samplers that use x̂0 of earlier steps again: one evaluation per step, whatever their order.

All are exponential integrators in λ = log(α/σ): with h = λ_s − λ_t, the flow from x_t to x_s is exactly

    x_s = σ_s/σ_t x_t − α_s (e^{−h} − 1) D,    D = ∫_0^1 h e^{−h(1−u)}/(1 − e^{−h}) x̂0(λ_t + u h) du,

a mean of x̂0 over the step, which they take from x̂0 at the times that they know it at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.samplers.sampler import Noise, Sampler
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor


def carried(schedule: Schedule, x_t: Tensor, d: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s of the flow; −α_s (e^{−h} − 1) = α_s − α_t σ_s/σ_t stays finite at σ_s = 0."""
    ratio = schedule.sigma(s) / schedule.sigma(t)
    from_x, from_d = like(x_t, ratio, schedule.alpha(s) - ratio * schedule.alpha(t))
    return from_x * x_t + from_d * d


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), the exponential integrator of second order in x̂0:

        x_s = σ_s/σ_t x_t − α_s (e^{−h} − 1) D,    D = x̂0 + (x̂0 − x̂0′)/(2r),    h = λ_s − λ_t,    r = h′/h,

    with λ = log(α/σ), and x̂0′ and h′ of the step before. The first step and the last, to σ = 0, have D = x̂0.
    """

    method = "dpm-solver++"

    def advance(self, schedule: Schedule, x_t: Tensor, d: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """x_s from x_t and D."""
        return carried(schedule, x_t, d, t, s)

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        schedule = denoiser.schedule
        before: tuple[Tensor, Tensor] | None = None  # x̂0 and h of the step before
        for t, s in pairwise(self.times(schedule)):
            x0, h = denoiser(x, t, condition).x0, 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
            d = x0
            if before is not None and s > 0:
                x0_before, h_before = before
                (share,) = like(x, 0.5 * h / h_before)
                d = x0 + share * (x0 - x0_before)
            x = self.advance(schedule, x, d, t, s, noise)
            before = x0, h
            yield x


@dataclass(frozen=True)
class SDEDPMSolver(DPMSolver):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b), the same for the reverse SDE, with D as in DPM-Solver++(2M):

        x_s = σ_s/σ_t e^{−h} x_t + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) z.

    It is q(x_s | x_t, x0) with D in x0's place; with D = x̂0 it would be `ddim` with η = 1.
    """

    method = "sde-dpm-solver++"

    def advance(self, schedule: Schedule, x_t: Tensor, d: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        from_d, from_x, variance = schedule.posterior(t, s)
        from_d, from_x, std = like(x_t, from_d, from_x, variance.sqrt())
        x_s = from_d * d + from_x * x_t
        return x_s + std * noise() if s > 0 else x_s


# λ, and x̂0 there.
Point = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC-p (Zhao et al. 2023) in x̂0, with B₂(h) = e^h − 1; p = `order`, and its errors fall as S^−(p + 1). With x̂0_j
    at other places u_j of the flow, u = (λ − λ_t)/h,

        D = x̂0 + Σ_j ρ_j (x̂0_j − x̂0)/u_j,    Σ_j ρ_j u_j^{i−1} = ∫_0^1 h e^{−h(1−u)}/(1 − e^{−h}) u^i du,    i = 1, 2, …

    The predictor has those of the p − 1 steps before: with p = 2 it is DPM-Solver++(2M). The corrector takes the same
    step again, once x̂0 at its end is known, with u = 1 besides; the next step needs that x̂0 as well, so it costs
    nothing. A single u_j has ρ = ½. Near both ends p is what the number of steps before and after allows.
    """

    method = "unipc"
    order: Literal[2, 3] = 2

    @staticmethod
    def mean(points: list[Point], end: Tensor) -> Tensor:
        """D of a step from the first of the points to λ = `end`, with x̂0 at all of them."""
        (start, x0), *others = points
        h, count = end - start, len(others)
        if not others:
            return x0
        u = torch.stack([(at - start) / h for at, _ in others])
        rho = torch.full_like(u, 0.5)
        if count > 1:
            # By parts: the mean of u^i is 1/(1 − e^{−h}) less i/h times that of u^{i−1}.
            moments = [torch.ones_like(h)]
            for i in range(1, count + 1):
                moments.append(-1 / torch.expm1(-h) - i / h * moments[-1])
            rho = torch.linalg.solve(torch.stack([u**i for i in range(count)]), torch.stack(moments[1:]))
        d = x0
        for share, (_, other) in zip(like(x0, *(rho / u)), others, strict=True):
            d = d + share * (other - x0)
        return d

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        schedule, times = denoiser.schedule, self.times(denoiser.schedule)
        before, known = x, list[Point]()  # x at the step before, corrected; the newest point first
        for i, (t, s) in enumerate(pairwise(times)):
            here = 0.5 * schedule.log_snr(t), denoiser(x, t, condition).x0
            if known:
                x = carried(schedule, before, self.mean([*known, here], here[0]), times[i - 1], t)
            known = [here, *known][: min(self.order, self.steps - i)]
            before, x = x, carried(schedule, x, self.mean(known, 0.5 * schedule.log_snr(s)), t, s)
            yield x
