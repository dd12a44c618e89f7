"""Guidance wraps a denoiser, so every sampler inherits it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.methods import Method
from ddpm.parameters import Interval, NonNegative, Unbounded
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor
# (x_t, t, y) → log p(y | x_t) of every image, (B,), in nats: differentiable in x_t.
Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]
# What steers beside the network itself: a classifier, or a denoiser that is worse.
Guide = Classifier | Denoiser | None


class Guidance(Method):
    """How labels steer x̂0.

    `labels` is the kind of network it needs: `unconditional`, or `conditional` (trained with label dropout);
    `guide` says whether it needs a classifier of noisy images too (`ddpm.stages.guide`); a parameter `guide_network`
    names another network of the grid that it needs, of the same objective, schedule, labels and seed; `continuous` says
    whether x̂0 changes with t without jumps; `unguided` is the weight at which labels play no part, if there is one.
    """

    labels: ClassVar[str] = "unconditional"
    guide: ClassVar[bool] = False
    continuous: ClassVar[bool] = True
    unguided: ClassVar[float | None] = None

    @property
    def steers(self) -> bool:
        """Whether labels play a part in what is sampled."""
        return self.unguided is None or getattr(self, "weight", None) != self.unguided

    @property
    def evaluations(self) -> int:
        """Network evaluations per call and image, at most."""
        return 1

    def evaluations_at(self, schedule: Schedule, t: Tensor) -> int:
        """Network evaluations per image of a call at these times."""
        return self.evaluations

    def predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, guide: Guide
    ) -> tuple[Tensor, Tensor | None]:
        """Guided x̂0 before clipping, and the variance fraction v or None."""
        raise NotImplementedError

    def __call__(self, denoiser: Denoiser, guide: Guide = None) -> Denoiser:
        return Guided(denoiser, self, guide)


class Guided(Denoiser):
    """A denoiser under guidance."""

    def __init__(self, denoiser: Denoiser, guidance: Guidance, guide: Guide):
        super().__init__(denoiser.network, denoiser.objective, denoiser.schedule, denoiser.clip)
        self.denoiser, self.guidance, self.guide = denoiser, guidance, guide
        self.evaluations = guidance.evaluations * denoiser.evaluations

    def parts(self) -> list[Denoiser]:
        return self.denoiser.parts() + (self.guide.parts() if isinstance(self.guide, Denoiser) else [])

    def evaluations_at(self, t: Tensor) -> int:
        return self.guidance.evaluations_at(self.schedule, t) * self.denoiser.evaluations_at(t)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        return self.guidance.predict(self.denoiser, x_t, t, condition, self.guide)


class Unguided(Guidance):
    """Unconditional samples from a network trained without labels."""

    method = "none"

    def predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, guide: Guide
    ) -> tuple[Tensor, Tensor | None]:
        return denoiser.predict(x_t, t, NOTHING)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """(1 + w) · conditional − w · unconditional (Ho & Salimans 2022; 000, "Classifier free guidance").

    `weight` is w of the poster (000): 0 samples the conditional model, −1 the unconditional one. ω of Shariatian &
    Conforti 2025 (003) and γ of Sedykh 2024 (001) are 1 + w. The weights sum to 1, so the same combination holds for
    x̂0, ε̂ and score.
    Condition and null run as one batch; a learned variance is the conditional one's.
    """

    method = "cfg"
    requires = (("network", "labels", True, "classifier-free guidance takes a network that is trained with labels"),)
    labels = "conditional"
    unguided = -1.0
    weight: Annotated[float, Interval(ge=-1)] = 1.0

    @property
    def evaluations(self) -> int:
        """One evaluation where the other branch has no weight."""
        return 1 if self.weight in (0, -1) else 2

    def weights(self, schedule: Schedule, t: Tensor) -> Tensor:
        """w at every time, float64, of the shape of t."""
        return torch.full_like(t, self.weight, dtype=torch.float64)

    def predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, guide: Guide
    ) -> tuple[Tensor, Tensor | None]:
        if condition.labels is None:
            raise ValueError(f"{self.method}: classifier-free guidance needs the labels that it steers to")
        weight = self.weights(denoiser.schedule, t)
        if not weight.any():
            return denoiser.predict(x_t, t, condition)
        null = denoiser.network.null(condition)
        if self.weight == -1:
            return denoiser.predict(x_t, t, null)
        both = torch.cat([t, t]) if t.ndim else t
        x0, v = denoiser.predict(torch.cat([x_t, x_t]), both, condition.join(null))
        conditional, unconditional = x0.chunk(2)
        towards, away = like(x_t, 1 + weight, weight)
        return towards * conditional - away * unconditional, None if v is None else v.chunk(2)[0]


@dataclass(frozen=True)
class IntervalClassifierFree(ClassifierFree):
    """Classifier-free guidance at the noise levels `level_min` < σ/α ≤ `level_max` alone, the conditional model at all
    others, at one evaluation (Kynkäänniemi et al. 2024).

    At high noise guidance drives samples into few modes, and at low noise it changes nothing that counts.
    """

    method = "interval-cfg"
    continuous = False
    ordered = (("level_min", "<", "level_max"),)
    weight: NonNegative = 1.0
    level_min: NonNegative = 0.28
    level_max: Annotated[Unbounded, Interval(ge=0)] = 2.9

    def weights(self, schedule: Schedule, t: Tensor) -> Tensor:
        level = schedule.level(t)
        return self.weight * ((self.level_min < level) & (level <= self.level_max)).double()

    def evaluations_at(self, schedule: Schedule, t: Tensor) -> int:
        return 2 if self.weights(schedule, t).any() else 1


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """x̂0 + w σ²/α ∇ log p(y | x_t), which is ε̂ − w σ ∇ log p(y | x_t) (Sedykh 2024, 001, algorithm 4 and eq. 4.25).

    `weight` is w, γ of Sedykh 2024: 0 is the unconditional model. p(y | x_t) is a classifier of noisy images
    (`ddpm.stages.guide`); its gradient counts as an evaluation. The variance stays the unguided one's. Where the data
    have a range, the guided x̂0 is clipped to it; Dhariwal & Nichol 2021 clip before they guide.
    """

    method = "classifier"
    guide = True
    unguided = 0.0
    weight: NonNegative = 1.0

    @property
    def evaluations(self) -> int:
        return 1 if self.weight == 0 else 2

    def predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, guide: Guide
    ) -> tuple[Tensor, Tensor | None]:
        if condition.labels is None or guide is None or isinstance(guide, Denoiser):
            raise ValueError("classifier: classifier guidance needs labels, and a classifier of noisy images")
        x0, v = denoiser.predict(x_t, t, NOTHING)
        if self.weight == 0:
            return x0, v
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(guide(x, t, condition.labels).sum(), x)
        (scale,) = like(x_t, self.weight * denoiser.schedule.sigma(t) ** 2 / denoiser.schedule.alpha(t))
        return x0 + scale * gradient, v


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """(1 + w) D_1 − w D_0, where D_0 is a worse denoiser of the same data, labels and noise (Karras et al. 2024a).

    `guide_network` is the network of D_0: one of `networks`, smaller than the cell's own. Both are given the label;
    what D_0 gets more wrong than D_1 is taken for the direction of D_1's own errors. 1 + w is the paper's w.
    """

    method = "autoguidance"
    requires = (("network", "labels", True, "autoguidance compares networks that are trained with labels"),)
    labels = "conditional"
    guide_network: str = ""
    weight: NonNegative = 1.0

    @property
    def evaluations(self) -> int:
        return 1 if self.weight == 0 else 2

    def predict(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, condition: Condition, guide: Guide
    ) -> tuple[Tensor, Tensor | None]:
        if condition.labels is None or not isinstance(guide, Denoiser):
            raise ValueError("autoguidance: it needs labels, and a worse denoiser to be guided by")
        x0, v = denoiser.predict(x_t, t, condition)
        if self.weight == 0:
            return x0, v
        worse, _ = guide.predict(x_t, t, condition)
        return (1 + self.weight) * x0 - self.weight * worse, v
