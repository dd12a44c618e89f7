"""At which times an objective is trained: uniform, log-normal in the noise level, or by importance.

Every draw is (t, weight) from an even grid u of (0, 1), shifted at random, such that the mean of weight · L_t is an
unbiased estimate of the mean of L_t over t = 1 … T (of the objective's own distribution for `log-normal`).
"""

import torch

from ddpm.objectives import Objective
from ddpm.schedules import Schedule

Tensor = torch.Tensor


class Times:
    """A distribution of training times; a subclass is found by its `method`."""

    method = ""

    def __init__(self, objective: Objective, schedule: Schedule):
        self.objective, self.schedule = objective, schedule

    @classmethod
    def of(cls, objective: Objective, schedule: Schedule) -> "Times":
        """The one that the objective asks for."""
        return next(c for c in cls.__subclasses__() if c.method == objective.times)(objective, schedule)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t in [1, T] and its weight for places u in (0, 1); float64, of u's shape."""
        raise NotImplementedError

    def learn(self, t: Tensor, loss: Tensor) -> None:
        """Take note of the losses L_t (B,) at the times t (B,)."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""


class Uniform(Times):
    """t uniform on 1 … T."""

    method = "uniform"

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + (u * self.schedule.steps).floor()).clamp(max=self.schedule.steps), torch.ones_like(u)


class LogNormal(Times):
    """ln(σ/α) ~ N(level_mean, level_std²), cut off at t = 1 and T (Karras et al. 2022, table 1: −1.2 and 1.2)."""

    method = "log-normal"

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        level = (self.objective.level_mean + self.objective.level_std * torch.special.ndtri(u)).exp()
        return self.schedule.time_at(level).clamp(min=1), torch.ones_like(u)


class Importance(Times):
    """p_t ∝ √E[L_t²] over the last ten losses at every t (001, eq. 4.3; Nichol & Dhariwal 2021, section 3.3).

    Uniform until every t has ten; a thousandth of p_t stays uniform, so that no t dies out. weight = 1/(T p_t).
    """

    method = "importance"
    length = 10
    floor = 1e-3

    def __init__(self, objective: Objective, schedule: Schedule):
        super().__init__(objective, schedule)
        self.history = torch.zeros(schedule.steps, self.length, dtype=torch.float64)
        self.seen = torch.zeros(schedule.steps, dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """p_1 … p_T, float64."""
        steps = self.schedule.steps
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        if (self.seen < self.length).any():
            return uniform
        size = self.history.square().mean(1).sqrt()
        return (1 - self.floor) * size / size.sum() + self.floor * uniform

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.searchsorted(p.cumsum(0), u).clamp(max=len(p) - 1)
        return 1.0 + index, 1 / (len(p) * p[index])

    def learn(self, t: Tensor, loss: Tensor) -> None:
        index, order = (t - 1).long().sort(stable=True)
        first, after = torch.searchsorted(index, index), torch.searchsorted(index, index, right=True)
        place = torch.arange(len(index)) - first  # among the losses of the same t in this batch
        kept = after - first - place <= self.length
        slot = (self.seen[index] + place) % self.length
        self.history[index[kept], slot[kept]] = loss.detach().cpu().double()[order][kept]
        self.seen += torch.bincount(index, minlength=len(self.seen))

    def state(self) -> dict[str, Tensor]:
        return {"history": self.history, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        self.history, self.seen = state["history"], state["seen"]
