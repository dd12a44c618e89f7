"""At which times an objective is trained: uniform, logit-normal, log-normal in the noise level, or by importance.

Every draw is (t, weight) from an even grid u of (0, 1), shifted at random, such that the mean of weight · L_t is an
unbiased estimate of the mean of L_t over t = 1 … T (over their own distribution for the two normal ones).
"""

from dataclasses import dataclass

import torch

from ddpm.methods import Component
from ddpm.parameters import Positive
from ddpm.schedules import Schedule

Tensor = torch.Tensor


class Times(Component):
    """A distribution of training times. What it learns in training is its memory: tensors by name, which a checkpoint
    holds."""

    default = "uniform"

    def memory(self, schedule: Schedule) -> dict[str, Tensor]:
        """The memory that training begins with."""
        return {}

    def draw(self, u: Tensor, schedule: Schedule, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """t in [1, T] and its weight for places u in (0, 1); float64, of u's shape."""
        raise NotImplementedError

    def learn(self, t: Tensor, loss: Tensor, memory: dict[str, Tensor]) -> None:
        """Take note of the losses L_t (B,) at the times t (B,)."""

    def on(self, schedule: Schedule) -> "Draws":
        """The distribution on one schedule, with the memory that training begins with."""
        return Draws(self, schedule)


class Draws:
    """A distribution of times on a schedule, and what it has learnt."""

    def __init__(self, times: Times, schedule: Schedule):
        self.times, self.schedule, self.memory = times, schedule, times.memory(schedule)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t in [1, T] and its weight for places u in (0, 1); float64, of u's shape."""
        return self.times.draw(u, self.schedule, self.memory)

    def learn(self, t: Tensor, loss: Tensor) -> None:
        """Take note of the losses L_t (B,) at the times t (B,)."""
        self.times.learn(t, loss, self.memory)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return self.memory

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.memory = state


class Uniform(Times):
    """t uniform on 1 … T."""

    method = "uniform"

    def draw(self, u: Tensor, schedule: Schedule, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return (1 + (u * schedule.steps).floor()).clamp(max=schedule.steps), torch.ones_like(u)


@dataclass(frozen=True)
class LogNormal(Times):
    """ln(σ/α) ~ N(level_mean, level_std²), cut off at t = 1 and T (Karras et al. 2022, table 1: −1.2 and 1.2)."""

    method = "log-normal"
    level_mean: float = -1.2
    level_std: Positive = 1.2

    def draw(self, u: Tensor, schedule: Schedule, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        level = (self.level_mean + self.level_std * torch.special.ndtri(u)).exp()
        return schedule.time_at(level).clamp(min=1), torch.ones_like(u)


@dataclass(frozen=True)
class LogitNormal(Times):
    """ln(u/(1 − u)) ~ N(logit_mean, logit_std²), u = t/T, cut off at t = 1 (Esser et al. 2024, section 3.1).

    On the schedule `flow`, where u/(1 − u) is σ/α, it is `log-normal` in other words.
    """

    method = "logit-normal"
    logit_mean: float = 0.0
    logit_std: Positive = 1.0

    def draw(self, u: Tensor, schedule: Schedule, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        place = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(u))
        return (schedule.steps * place).clamp(min=1), torch.ones_like(u)


class Importance(Times):
    """p_t ∝ √E[L_t²] over the last ten losses at every t (Nichol & Dhariwal 2021, section 3.3; 001, eq. 4.3).

    Uniform until every t has ten; a thousandth of p_t stays uniform, so that no t dies out. weight = 1/(T p_t).
    """

    method = "importance"
    length = 10
    floor = 1e-3

    def memory(self, schedule: Schedule) -> dict[str, Tensor]:
        """history (T, 10): the last losses of every t;  seen (T,): how many there were."""
        return {
            "history": torch.zeros(schedule.steps, self.length, dtype=torch.float64),
            "seen": torch.zeros(schedule.steps, dtype=torch.int64),
        }

    def probabilities(self, memory: dict[str, Tensor]) -> Tensor:
        """p_1 … p_T, float64."""
        history, seen = memory["history"], memory["seen"]
        steps = len(seen)
        uniform = torch.full((steps,), 1 / steps, dtype=torch.float64)
        if (seen < self.length).any():
            return uniform
        size = history.square().mean(1).sqrt()
        return (1 - self.floor) * size / size.sum() + self.floor * uniform

    def draw(self, u: Tensor, schedule: Schedule, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        p = self.probabilities(memory)
        index = torch.searchsorted(p.cumsum(0), u).clamp(max=len(p) - 1)
        return 1 + index.double(), 1 / (len(p) * p[index])

    def learn(self, t: Tensor, loss: Tensor, memory: dict[str, Tensor]) -> None:
        history, seen = memory["history"], memory["seen"]
        index, order = (t - 1).long().sort(stable=True)
        first, after = torch.searchsorted(index, index), torch.searchsorted(index, index, right=True)
        place = torch.arange(len(index)) - first  # among the losses of the same t in this batch
        kept = after - first - place <= self.length
        slot = (seen[index] + place) % self.length
        history[index[kept], slot[kept]] = loss.detach().cpu().double()[order][kept]
        seen += torch.bincount(index, minlength=len(seen))
