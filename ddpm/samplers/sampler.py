"""What all samplers share: a grid of times, and one step after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.methods import Method, Requirement
from ddpm.parameters import Count
from ddpm.schedules import Schedule, distinct

Tensor = torch.Tensor
Noise = Callable[[], Tensor]


def karras_times(schedule: Schedule, high: Tensor, low: Tensor, count: int) -> Tensor:
    """`count` times from `high` to `low` at σ/α = (ς_low^{1/7} + u (ς_high^{1/7} − ς_low^{1/7}))^7, where u goes evenly
    from 1 to 0 (Karras et al. 2022, eq. 5)."""
    last, first = (schedule.level(t) ** (1 / 7) for t in (high, low))
    u = torch.linspace(1, 0, count, dtype=torch.float64)
    times = schedule.time_at((first + u * (last - first)) ** 7)
    times[-1], times[0] = low, high  # exactly, however the powers are rounded
    return times


@dataclass(frozen=True)
class Sampler(Method):
    """`steps` is S, the number of sampling steps; the grid of times is independent of the training's T.

    `spacing` of the times: `uniform` (the schedule's own `grid`), `quadratic`, τ_i = start (i/S)², rounded (Song, Meng
    & Ermon 2021, appendix D.2), or `karras`, S `karras_times` from start to 1, and then 0. The schedule's `start` is
    T, or a little before it.

    The last step, to clean data, is x̂0 = E[x0 | x_t] (Tweedie's formula) in every sampler but Langevin dynamics.
    """

    requires: ClassVar[tuple[Requirement, ...]] = (
        ("objective", "variance", "fixed", "this sampler sets its own variance: the learned one would not be used"),
    )
    # Whether it chooses its steps by their error: of a batch together, so that an image depends on those that are drawn
    # with it, and of networks in float32, since bfloat16's rounding would be an error that no step is short enough for.
    adaptive: ClassVar[bool] = False
    steps: Count = 50
    spacing: Literal["uniform", "quadratic", "karras"] = "uniform"

    def times(self, schedule: Schedule) -> Tensor:
        """start = τ_S > … > τ_0 = 0, float64, shape (S + 1,). ValueError where τ_S has no signal at all, α = 0."""
        if self.steps > schedule.steps:
            raise ValueError(f"steps: {self.steps} sampling steps are more than the schedule's T = {schedule.steps}")
        times = self._spaced(schedule)
        if schedule.alpha(times[0]) == 0:
            raise ValueError(
                f"steps: {self.steps}; as many whole times reach to t = {times[0]:g}, where x_t holds no data to step "
                f"from: it must be at most {schedule.last:g}"
            )
        return times

    def _spaced(self, schedule: Schedule) -> Tensor:
        if self.spacing == "quadratic":
            index = torch.arange(self.steps, -1, -1, dtype=torch.float64)
            return distinct(schedule.start * index**2 / self.steps**2)
        if self.spacing == "karras":
            inner = karras_times(schedule, schedule.start, torch.ones((), dtype=torch.float64), self.steps)
            return torch.cat([inner, torch.zeros_like(inner[:1])])
        return schedule.grid(self.steps)

    def step(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """x_s from x_t; t and s are scalars, `noise()` gives a fresh z ~ N(0, I) of x_t's shape."""
        raise NotImplementedError

    def trajectory(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Noise) -> Iterator[Tensor]:
        """x after every step, from x_T = `x`."""
        for t, s in pairwise(self.times(denoiser.schedule)):
            x = self.step(denoiser, x, t, s, condition, noise)
            yield x
