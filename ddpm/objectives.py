"""What the network predicts and how its error is weighted.

Every target is y = p x0 + q ε. With D = α q − σ p one inversion serves them all:

    x̂0 = (q x_t − σ y) / D,    ε̂ = (α y − p x_t) / D,    ‖Δy‖² = (D/σ)² ‖Δx0‖².

The network's raw output is the target, with no hidden rescaling, so that differences between
parameterisations can show.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from ddpm import bound
from ddpm.methods import Method
from ddpm.schedules import Schedule, like
from ddpm.spaces import Space

Tensor = torch.Tensor
# (x_t, log SNR (B,), labels or None) → output: a network of `ddpm.networks`, or any function like one.
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Target(Method):
    """y = p x0 + q ε; coefficients are float64, of the shape of `t`.

    `sigma_data` is the standard deviation of the data, which only EDM's target and weighting refer to.
    """

    sigma_data: float = 0.5

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q at time t."""
        raise NotImplementedError

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """The weight of ‖y − ŷ‖² in the simplified loss (000, "Simplified losses"): 1 unless stated."""
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
    """y = x0 (000, "Clean image prediction")."""

    method = "x0"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return one, 0 * one


class Noise(Target):
    """y = ε (000, "Noise prediction"; Ho et al. 2020)."""

    method = "eps"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return 0 * one, one


class Score(Target):
    """y = ∇ log q(x_t | x0) = −ε/σ (000, "Score prediction"; 003, eq. 33)."""

    method = "score"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = schedule.sigma(t)
        return 0 * sigma, -1 / sigma

    def simple_weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """1 − ᾱ_t = σ² (000, "Simplified losses")."""
        return schedule.sigma(t) ** 2


class Velocity(Target):
    """y = v = α ε − σ x0 (Salimans & Ho 2022)."""

    method = "v"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return -schedule.sigma(t), schedule.alpha(t)


class PosteriorMean(Target):
    """y = µ̃(x_t, x0), the mean of q(x_{t−1} | x_t, x0): p = A + B α, q = B σ (000, L_µ; Ho et al. 2020).

    Below t = 1, where a solver of its own times may end by rounding, it is the mean of q(x_0 | x_t, x0) = x0.
    """

    method = "mu"

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b, _ = schedule.posterior(t, (t - 1).clamp(min=0))
        return a + b * schedule.alpha(t), b * schedule.sigma(t)


class Preconditioned(Target):
    """y = F, EDM's preconditioned target: x̂0 = c_skip x_t + c_out F (003, "EDM"; Karras et al. 2022, eq. 7).

    p = (1 − c_skip α)/c_out, q = −c_skip σ/c_out, with σ_d = `sigma_data` and, for any α,

        c_skip = α σ_d²/(α² σ_d² + σ²),  c_out = σ σ_d/√(α² σ_d² + σ²),  c_in = 1/√(α² σ_d² + σ²).

    At α = 1 these are EDM's; with α² + σ² = 1 and σ_d = 1, F is −v.
    """

    method = "F"

    def _variance(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Var x_t = α² σ_d² + σ²."""
        return (schedule.alpha(t) * self.sigma_data) ** 2 + schedule.sigma(t) ** 2

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, std = schedule.alpha(t), schedule.sigma(t), self._variance(schedule, t).sqrt()
        # (1 − c_skip α)/c_out = σ/(σ_d √Var x_t), without the cancellation.
        return sigma / (self.sigma_data * std), -alpha * self.sigma_data / std

    def input_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self._variance(schedule, t).rsqrt()


@dataclass(frozen=True)
class Objective(Method):
    """A target, the weighting of its loss, which times it is trained at, and whether the reverse variance is learned.

    target:     one of the classes above, by its name.
    weighting:  of ‖y − ŷ‖². `simple`: the documents' simplified losses. `vlb`: the exact variational bound
                KL_t = ½ (SNR_{t−1} − SNR_t) ‖x0 − x̂0‖² with fixed small variance, in bits/dim and summed over t ≥ 2
                as the table reports it, and at t = 1 document 000's ‖x0 − x̂0‖²/2σ² in place of the discretised decoder
                (000, "Unified loss framework"). `edm`: (ς² + σ_d²)/(ς σ_d)² ‖x0 − x̂0‖² with ς = σ/α (Karras et al.
                2022, eq. 8). `min-snr`: min(SNR, γ) ‖x0 − x̂0‖² (Hang et al. 2023).
    variance:   `fixed`, or `learned`: a second head v with log Σ = v log β_t + (1 − v) log β̃_t (001, eq. 4.1), trained
                by L = L_weighting + λ L_vlb (001, eq. 4.2) with the mean's gradient stopped in L_vlb; with the
                weighting `vlb`, by L_vlb alone, the gradient reaching both.
    vlb_weight: λ, where L_vlb is summed over t = 1 … T and measured in bits/dim. 0.001 is the value of Nichol &
                Dhariwal 2021; the poster prints 1000 without a unit.
    times:      how t is drawn (`ddpm.times`): `uniform`, `importance` (001, eq. 4.3), or `log-normal`:
                ln ς ~ N(level_mean, level_std²) (Karras et al. 2022, table 1).
    matching:   `denoising` (001, eq. 3.11), or for the score `sliced`: vᵀ ∇(vᵀ s) + ½ ‖s‖², with v of random signs
                (001, eq. 3.12), on x_t and with the same weight.
    sigma_data: σ_d, the standard deviation of the data that EDM's target and weighting assume;  gamma: γ of `min-snr`.
    """

    choices = {
        "weighting": ("simple", "vlb", "edm", "min-snr"),
        "variance": ("fixed", "learned"),
        "times": ("uniform", "importance", "log-normal"),
        "matching": ("denoising", "sliced"),
    }
    limits = {
        "vlb_weight": (0, None),
        "gamma": (1e-8, None),
        "sigma_data": (1e-8, None),
        "level_std": (1e-8, None),
    }
    uses = {
        "gamma": ({"weighting": ("min-snr",)},),
        "sigma_data": ({"target": ("F",)}, {"weighting": ("edm",)}),
        "vlb_weight": ({"variance": ("learned",), "weighting": ("simple", "edm", "min-snr")},),
        "level_mean": ({"times": ("log-normal",)},),
        "level_std": ({"times": ("log-normal",)},),
    }
    # Only a score has a divergence that stands in for its target.
    needs = (("matching", "sliced", "target", "score"), ("matching", "sliced", "variance", "fixed"))
    target: str
    weighting: str = "simple"
    variance: str = "fixed"
    vlb_weight: float = 0.001
    times: str = "uniform"
    level_mean: float = -1.2
    level_std: float = 1.2
    matching: str = "denoising"
    sigma_data: float = 0.5
    gamma: float = 5.0

    def check(self) -> None:
        Target.make({"method": self.target})

    @cached_property
    def parameterisation(self) -> Target:
        return Target.make({"method": self.target, "sigma_data": self.sigma_data})

    @property
    def learns_variance(self) -> bool:
        return self.variance == "learned"

    def outputs(
        self, network: Network, schedule: Schedule, x_t: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The network at x_t: ŷ and, where learned, v in [0, 1] mapped from the second head's [−1, 1].

        The network sees x_t scaled by the target's `input_scale`, log SNR(t) and the labels.
        """
        (scale,) = like(x_t, self.parameterisation.input_scale(schedule, t))
        output = network(scale * x_t, schedule.condition(t, x_t), y)
        if not self.learns_variance:
            return output, None
        y_hat, v = output.chunk(2, dim=1)
        return y_hat, (v + 1) / 2

    def weight(self, schedule: Schedule, t: Tensor) -> Tensor:
        """w(t) in w ‖y − ŷ‖², float64, of the shape of t."""
        target = self.parameterisation
        match self.weighting:
            case "simple":
                return target.simple_weight(schedule, t)
            case "vlb":
                # A²/2β̃ is ½ (SNR_{t−1} − SNR_t), and at t = 1 document 000's first term with the clipped variance.
                a, _, _ = schedule.posterior(t, t - 1)
                log_small, _ = schedule.log_variances(t, t - 1)
                per_x0 = schedule.steps / math.log(2) * a**2 / (2 * log_small.exp())
            case "edm":
                per_x0 = 1 / self.sigma_data**2 + 1 / schedule.level(t) ** 2
            case "min-snr":
                per_x0 = (1 / schedule.level(t) ** 2).clamp(max=self.gamma)
        return torch.where(target.blind(schedule, t), 0, per_x0 / target.gain(schedule, t))

    def loss(
        self,
        network: Network,
        schedule: Schedule,
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        y: Tensor | None,
        space: Space,
        signs: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """The training loss of every image, shape (B,): a mean over its dimensions.

        t has shape (B, 1, 1, 1), in [1, T]; `space` is that of the data, whose decoder a bound takes;
        `signs()` gives random signs of x0's shape, which only sliced score matching asks for.
        """
        x_t, target = schedule.noisy(x0, eps, t), self.parameterisation
        if self.matching == "sliced":
            return self._sliced(network, schedule, x_t, t, y, signs())
        y_hat, v = self.outputs(network, schedule, x_t, t, y)
        to_bits = schedule.steps / math.log(2)
        if v is not None and self.weighting == "vlb":
            x0_hat, _ = target.invert(schedule, y_hat, x_t, t)
            return to_bits * bound.vlb_term(schedule, x0, x_t, x0_hat, v, t, space)
        error = (y_hat - target.of(schedule, x0, eps, t)).square()
        (weight,) = like(x0, self.weight(schedule, t))
        loss = (weight * error).flatten(1).mean(1)
        if v is None:
            return loss
        x0_hat, _ = target.invert(schedule, y_hat.detach(), x_t, t)
        return loss + self.vlb_weight * to_bits * bound.vlb_term(schedule, x0, x_t, x0_hat, v, t, space)

    def _sliced(
        self, network: Network, schedule: Schedule, x_t: Tensor, t: Tensor, y: Tensor | None, signs: Tensor
    ) -> Tensor:
        """2 w (vᵀ ∇(vᵀ s) + ½ ‖s‖²), whose expectation is that of w ‖s + ε/σ‖² up to a constant."""
        x_t = x_t.detach().requires_grad_()
        score, _ = self.outputs(network, schedule, x_t, t, y)
        (product,) = torch.autograd.grad((signs * score).sum(), x_t, create_graph=True)
        (weight,) = like(x_t, self.weight(schedule, t))
        return (weight * (2 * signs * product + score.square())).flatten(1).mean(1)
