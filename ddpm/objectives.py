"""What the network predicts and how its error is weighted.

Every target is y = p x0 + q ε. With D = α q − σ p one inversion serves them all:

    x̂0 = (q x_t − σ y) / D,    ε̂ = (α y − p x_t) / D,    ‖Δy‖² = (D/σ)² ‖Δx0‖².

The network's raw output is the target, with no hidden rescaling, so that differences between
parameterisations can show.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch

from ddpm import bound, extensions
from ddpm.condition import Condition
from ddpm.matching import Matching, Signs
from ddpm.methods import Component, annotations
from ddpm.parameters import NonNegative, Positive, unmet
from ddpm.schedules import Schedule, like
from ddpm.spaces import Space
from ddpm.times import Times

Tensor = torch.Tensor
# (x_t, log SNR (B,), condition) → output: a network of `ddpm.networks`, or any function like one.
Network = Callable[[Tensor, Tensor, Condition], Tensor]


# ---- targets ------------------------------------------------------------------------------------------------


class Target(Component):
    """y = p x0 + q ε; coefficients are float64, of the shape of `t`."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q at time t."""
        raise NotImplementedError

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of ‖y − ŷ‖² in the simplified loss (the poster, 000, "Simplified losses"): 1 unless stated."""
        return torch.ones_like(t, dtype=torch.float64)

    def of(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The target y of a clean image and its noise."""
        p, q = like(x0, *self.coefficients(schedule, t))
        return p * x0 + q * eps

    def invert(self, schedule: Schedule, y: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x̂0 and ε̂ from a (predicted) target y at x_t."""
        p, q = self.coefficients(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        blind = self.blind(schedule, t)
        d = torch.where(blind, math.inf, alpha * q - sigma * p)
        e_from_y = torch.where(blind, 1 / q, alpha / d)
        x_from_x, x_from_y, e_from_y, e_from_x = like(x_t, q / d, -sigma / d, e_from_y, -p / d)
        return x_from_x * x_t + x_from_y * y, e_from_y * y + e_from_x * x_t

    def blind(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Where y says nothing of x0: p = 0 (ε, score) at a time at which α is 0 too, so that D = α q is.

        x̂0 is 0 there, the mean of the prior, whatever y: the best estimate is E[x0], for x_t is noise, and the bound
        stays a bound with any x̂0. At T = 1000 of α = 1 − t/T it costs ½ SNR_{T−1} ‖E[x0]‖² = 5e-7 ‖E[x0]‖² nats. No
        weighting that is one of ‖x0 − x̂0‖² then asks anything of y: its weight is 0.
        """
        p, _ = self.coefficients(schedule, t)
        return (p == 0) & schedule.lost(t)

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        """What x_t is multiplied by before the network sees it: 1/√(α² + σ²), which is 1 for VP schedules."""
        return (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).rsqrt()

    def gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(D/σ)², by which an error in y exceeds the error in x0: ‖Δy‖² = gain ‖Δx0‖²."""
        p, q = self.coefficients(schedule, t)
        return (schedule.alpha(t) * q / schedule.sigma(t) - p) ** 2


class CleanImage(Target):
    """y = x0 (the poster, 000, "Clean image prediction")."""

    method = "x0"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return one, 0 * one


class NoiseTarget(Target):
    """y = ε (Ho et al. 2020; 000, "Noise prediction")."""

    method = "eps"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return 0 * one, one


class Score(Target):
    """y = ∇ log q(x_t | x0) = −ε/σ (the poster, 000, "Score prediction"; Shariatian & Conforti 2025, 003, eq. 33)."""

    method = "score"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(t)
        return 0 * sigma, -1 / sigma

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """1 − ᾱ_t = σ² (the poster, 000, "Simplified losses")."""
        return schedule.sigma(t) ** 2


class Velocity(Target):
    """y = v = α ε − σ x0 (Salimans & Ho 2022)."""

    method = "v"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return -schedule.sigma(t), schedule.alpha(t)


class FlowVelocity(Target):
    """y = ε − x0, the velocity dx/du of the straight paths x = (1 − u) x0 + u ε (Liu et al. 2023, eq. 1; Lipman et al.
    2023). D = α + σ, which is nowhere 0: any schedule may have this target."""

    method = "flow"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return -one, one


class PosteriorMean(Target):
    """y = µ̃(x_t, x0), the mean of q(x_{t−1} | x_t, x0): p = A + B α, q = B σ (Ho et al. 2020; 000, L_µ).

    Below t = 1, where a solver of its own times may end by rounding, it is the mean of q(x_0 | x_t, x0) = x0.
    """

    method = "mu"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b, _ = schedule.posterior(t, (t - 1).clamp(min=0))
        return a + b * schedule.alpha(t), b * schedule.sigma(t)


@dataclass(frozen=True)
class Preconditioned(Target):
    """y = F, EDM's preconditioned target: x̂0 = c_skip x_t + c_out F (Karras et al. 2022, eq. 7; 003, "EDM").

    p = (1 − c_skip α)/c_out, q = −c_skip σ/c_out, with σ_d = `sigma_data` and, for any α,

        c_skip = α σ_d²/(α² σ_d² + σ²),  c_out = σ σ_d/√(α² σ_d² + σ²),  c_in = 1/√(α² σ_d² + σ²).

    At α = 1 these are EDM's; with α² + σ² = 1 and σ_d = 1, F is −v.
    """

    method = "F"
    sigma_data: Positive = 0.5

    def _variance(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Var x_t = α² σ_d² + σ²."""
        return (schedule.alpha(t) * self.sigma_data) ** 2 + schedule.sigma(t) ** 2

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, std = schedule.alpha(t), schedule.sigma(t), self._variance(schedule, t).sqrt()
        # (1 − c_skip α)/c_out = σ/(σ_d √Var x_t), without the cancellation.
        return sigma / (self.sigma_data * std), -alpha * self.sigma_data / std

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self._variance(schedule, t).rsqrt()


# ---- weightings ---------------------------------------------------------------------------------------------


class Weighting(Component):
    """w(t) in the loss w ‖y − ŷ‖²: of most, one weight of ‖x0 − x̂0‖² whatever the target."""

    default = "simple"
    # Whether the loss of a learned variance is the variational bound alone.
    is_bound: ClassVar[bool] = False

    def of_x0(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of ‖x0 − x̂0‖², float64, of the shape of t."""
        raise NotImplementedError

    def of(self, target: Target, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of ‖y − ŷ‖², float64, of the shape of t."""
        return torch.where(target.blind(schedule, t), 0, self.of_x0(schedule, t) / target.gain(schedule, t))


class Simple(Weighting):
    """The documents' simplified losses: the target's own `simple_weight`.

    It is 1, so that ‖y − ŷ‖² counts the same at all times (Ho et al. 2020, eq. 14), but σ² for the score, whose loss
    then is ‖ε − ε̂‖².
    """

    method = "simple"

    def of(self, target: Target, schedule: Schedule, t: Tensor) -> Tensor:
        return target.simple_weight(schedule, t)


class Bound(Weighting):
    """The exact variational bound KL_t = ½ (SNR_{t−1} − SNR_t) ‖x0 − x̂0‖² with fixed small variance, in bits/dim and
    summed over t ≥ 2 as the table reports it, and at t = 1 the poster's ‖x0 − x̂0‖²/2σ² in place of the discretised
    decoder (000, "Unified loss framework").

    A learned variance is trained by the bound alone, the gradient reaching both of the network's heads.
    """

    method = "vlb"
    is_bound = True
    replaces = ("vlb_weight",)

    def of_x0(self, schedule: Schedule, t: Tensor) -> Tensor:
        # A²/2β̃ is ½ (SNR_{t−1} − SNR_t), and at t = 1 the poster's first term (000) with the clipped variance.
        a, _, _ = schedule.posterior(t, t - 1)
        log_small, _ = schedule.log_variances(t, t - 1)
        return schedule.steps / math.log(2) * a**2 / (2 * log_small.exp())


@dataclass(frozen=True)
class EDM(Weighting):
    """(ς² + σ_d²)/(ς σ_d)² ‖x0 − x̂0‖² with ς = σ/α and σ_d = `sigma_data` (Karras et al. 2022, eq. 8)."""

    method = "edm"
    sigma_data: Positive = 0.5

    def of_x0(self, schedule: Schedule, t: Tensor) -> Tensor:
        return 1 / self.sigma_data**2 + 1 / schedule.level(t) ** 2


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, γ) ‖x0 − x̂0‖² with γ = `gamma` (Hang et al. 2023)."""

    method = "min-snr"
    gamma: Positive = 5.0

    def of_x0(self, schedule: Schedule, t: Tensor) -> Tensor:
        return (1 / schedule.level(t) ** 2).clamp(max=self.gamma)


# ---- the variance of the reverse chain ------------------------------------------------------------------------


class Variance(Component):
    """How the variance Σ of p(x_s | x_t) comes about; `heads` is the number of images that the network gives."""

    default = "fixed"
    heads: ClassVar[int] = 1

    @property
    def share(self) -> float:
        """λ, the weight of L_vlb in the loss where v is learned and the weighting is not the bound itself."""
        raise NotImplementedError

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """ŷ, and the variance fraction v in [0, 1] or None."""
        raise NotImplementedError


class Fixed(Variance):
    """Not learned: samplers and the bound have their own."""

    method = "fixed"

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output, None


@dataclass(frozen=True)
class Learned(Variance):
    """A second head v with log Σ = v log β_t + (1 − v) log β̃_t, trained by L = L_weighting + λ L_vlb with the mean's
    gradient stopped in L_vlb (Nichol & Dhariwal 2021, eqs. 15 and 16; 001, eqs. 4.1 and 4.2).

    `vlb_weight` is λ, where L_vlb is summed over t = 1 … T and measured in bits/dim. 0.001 is the value of Nichol &
    Dhariwal 2021; the poster prints 1000 without a unit.
    """

    method = "learned"
    heads = 2
    vlb_weight: NonNegative = 0.001

    @property
    def share(self) -> float:
        return self.vlb_weight

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        y_hat, v = output.chunk(2, dim=1)
        return y_hat, (v + 1) / 2  # the head's [−1, 1] mapped to [0, 1]


# ---- an objective -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """A target, the weighting of its loss, the variance of the reverse chain, the distribution of the times
    that it is trained at, and how prediction and target are matched."""

    target: Target
    weighting: Weighting = field(default_factory=lambda: Weighting.named(Weighting.default)())
    variance: Variance = field(default_factory=lambda: Variance.named(Variance.default)())
    times: Times = field(default_factory=lambda: Times.named(Times.default)())
    matching: Matching = field(default_factory=lambda: Matching.named(Matching.default)())

    def __post_init__(self) -> None:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        names, needs = ({k: getattr(p, of) for k, p in parts.items()} for of in ("method", "needs"))
        for mistake in unmet(names, needs):
            raise ValueError(mistake)

    @classmethod
    def make(cls, spec: dict) -> Self:
        """From names and parameters in one mapping, {"target": "F", "weighting": "edm", "sigma_data": 0.3}: a parameter
        goes to every component that declares it; ValueError where none does."""
        spec = dict(spec)
        for file in spec.pop("modules", ()):
            extensions.load(file)
        bases: dict[str, type[Component]] = annotations(cls)
        classes = {part: base.named(spec.pop(part, base.default), part) for part, base in bases.items()}
        replaced = {name for c in classes.values() for name in c.replaces}
        used = set().union(*map(annotations, classes.values())) - replaced
        if unused := sorted(spec.keys() - used):
            chosen = ", ".join(f"{part} {c.method}" for part, c in classes.items())
            raise ValueError(f"{unused[0]}: {spec[unused[0]]!r}; none of {chosen} uses it: leave it out")
        parts: dict[str, Any] = {
            part: c(**{k: spec[k] for k in spec.keys() & annotations(c)}) for part, c in classes.items()
        }
        return cls(**parts)

    def outputs(
        self, network: Network, schedule: Schedule, x_t: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        """The network at x_t: ŷ and, where learned, v in [0, 1].

        The network sees x_t scaled by the target's `input_scale`, log SNR(t) and the condition.
        """
        (scale,) = like(x_t, self.target.input_scale(schedule, t))
        return self.variance.split(network(scale * x_t, schedule.log_snr_for(t, x_t), condition))

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """w(t) in w ‖y − ŷ‖², float64, of the shape of t."""
        return self.weighting.of(self.target, schedule, t)

    def loss(
        self,
        network: Network,
        schedule: Schedule,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        condition: Condition,
        space: Space,
        signs: Signs = None,
    ) -> Tensor:
        """The training loss of every image, shape (B,): a mean over its dimensions.

        t has shape (B, 1, 1, 1), in [1, T]; `space` is that of the data, whose decoder a bound takes;
        `signs()` gives random signs of x0's shape, which only sliced score matching asks for.
        """
        x_t = schedule.noisy(x0, eps, t)
        error, y_hat, v = self.matching.error(
            lambda x: self.outputs(network, schedule, x, t, condition), x_t, self.target.of(schedule, x0, eps, t), signs
        )
        bits = schedule.steps / math.log(2)

        def vlb(y_hat: Tensor) -> Tensor:
            x0_hat, _ = self.target.invert(schedule, y_hat, x_t, t)
            return bound.vlb_term(schedule, x0, x_t, x0_hat, v, t, space)

        if v is not None and self.weighting.is_bound:
            return bits * vlb(y_hat)
        (weight,) = like(x0, self.weight(schedule, t))
        loss = (weight * error).flatten(1).mean(1)
        return loss if v is None else loss + self.variance.share * bits * vlb(y_hat.detach())
