"""Exact answers: data whose diffusion is known in closed form, and the documents' formulas in plain numpy."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count

import mpmath
import numpy as np
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.exact import Mixture
from ddpm.methods import annotations
from ddpm.networks.network import Network
from ddpm.objectives import Matching, Objective, Target, Variance, Weighting
from ddpm.samplers import Sampler
from ddpm.schedules import VPSDE, Cosine, Flow, Geometric, Karras, Linear, Schedule
from ddpm.spaces import Pixels, Points
from ddpm.times import Times

torch.set_num_threads(1)

Tensor = torch.Tensor
Array = np.ndarray

# The discrete ones, and all of them.
SCHEDULES = {"linear": Linear, "cosine": Cosine}
EVERY = SCHEDULES | {"vp-sde": VPSDE, "geometric": Geometric, "karras": Karras}


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """The schedule `flow`, α = 1 − t/T and σ = t/T, with nothing in closed form but these."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t / self.steps

    def sigma(self, t: Tensor) -> Tensor:
        return t / self.steps


# With one of neither family: what holds of any schedule.
ANY = EVERY | {"flow": Flow}
# Images of 8×8 pixels with 17 grey levels, and points of the plane.
DIGITS = Pixels((1, 8, 8), 17)
PLANE = Points((2,), (-1.0, -1.0), (1.0, 1.0))
# What diffusers calls them.
DIFFUSERS_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def betas(name: str, steps: int = 1000) -> Array:
    """β_1 … β_T: Ho et al. 2020, section 4, scaled by 1000/T, or Nichol & Dhariwal 2021, eq. 17 with β ≤ 0.999."""
    t = np.arange(1, steps + 1)
    if name == "linear":
        return 1000 / steps * (1e-4 + (t - 1) / (steps - 1) * (0.02 - 1e-4))

    def f(t: Array) -> Array:
        return np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.minimum(1 - f(t) / f(t - 1), 0.999)


def alpha_bar(name: str, steps: int = 1000) -> Array:
    """ᾱ_0 … ᾱ_T = Π (1 − β_i), with ᾱ_0 = 1."""
    return np.concatenate([[1.0], np.exp(np.cumsum(np.log1p(-betas(name, steps))))])


def start(name: str, steps: int = 1000) -> int:
    """The last t with log SNR ≥ −10.2, where samplers start: λ ≥ −5.1 (Lu et al. 2022a)."""
    bar = alpha_bar(name, steps)
    return max(t for t in range(1, steps + 1) if math.log(bar[t] / (1 - bar[t])) >= -10.2)


def grid(steps: int, name: str = "linear") -> list[int]:
    """round(start · i/S) for i = S … 0, no index twice."""
    return [max(round(start(name) * i / steps), i) for i in range(steps, -1, -1)]


@cache
def _exact_alphas_bar(name: str, steps: int) -> list[mpmath.mpf]:
    """ᾱ_0 … ᾱ_T to 40 digits; the formulas of `betas` again, with T's own β from the papers' decimal numbers."""
    with mpmath.workdps(40):
        bar = [mpmath.mpf(1)]
        first, last, offset = mpmath.mpf("1e-4"), mpmath.mpf("0.02"), mpmath.mpf("0.008")

        def f(t: int) -> mpmath.mpf:
            return mpmath.cos((mpmath.mpf(t) / steps + offset) / (1 + offset) * mpmath.pi / 2) ** 2

        for t in range(1, steps + 1):
            linear = (first + (last - first) * (t - 1) / (steps - 1)) * 1000 / steps
            beta = linear if name == "linear" else min(1 - f(t) / f(t - 1), mpmath.mpf("0.999"))
            bar.append(bar[-1] * (1 - beta))
        return bar


def exact_scales(name: str, t: mpmath.mpf | float, steps: int = 1000) -> tuple[mpmath.mpf, mpmath.mpf]:
    """α(t) and σ(t) at any real t in [0, T] to 40 digits, with every parameter at its paper's value.

    Discrete schedules: log SNR linear between the indices, σ² linear below 1. VP-SDE: Song et al. 2021, eq. 33. VE:
    the levels of Song & Ermon 2019 and Karras et al. 2022, eq. 5, reckoned down from σ_max as in the papers.
    """
    with mpmath.workdps(40):
        t = mpmath.mpf(t)
        if name in SCHEDULES:
            bar, below = _exact_alphas_bar(name, steps), min(int(mpmath.floor(t)), steps - 1)
            if below == 0:
                noise = t * (1 - bar[1])
            else:
                odds = [mpmath.log(bar[i] / (1 - bar[i])) for i in (below, below + 1)]
                noise = 1 / (1 + mpmath.exp(odds[0] + (t - below) * (odds[1] - odds[0])))
            return mpmath.sqrt(1 - noise), mpmath.sqrt(noise)
        if name == "vp-sde":
            low, high = mpmath.mpf("0.1"), mpmath.mpf(20)
            u = t / steps
            alpha = mpmath.exp(-(u**2) * (high - low) / 4 - u * low / 2)
            return alpha, mpmath.sqrt(1 - alpha**2)
        low, high = (mpmath.mpf(v) for v in (("0.01", "50") if name == "geometric" else ("0.002", "80")))
        if t < 1:
            return mpmath.mpf(1), t * low
        down = (steps - t) / (steps - 1)
        if name == "geometric":
            return mpmath.mpf(1), high * (low / high) ** down
        root = mpmath.mpf(1) / 7
        return mpmath.mpf(1), (high**root + down * (low**root - high**root)) ** 7


def time(*values: float) -> Tensor:
    """One time as a scalar, several as one per image: (B, 1, 1, 1)."""
    t = torch.tensor(values, dtype=torch.float64)
    return t[0] if len(values) == 1 else t.reshape(-1, 1, 1, 1)


def randn(seed: int, *shape: int) -> Tensor:
    """Seeded standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    """log N(x; mean, var) of every element."""
    return -0.5 * ((x - mean) ** 2 / var + torch.as_tensor(2 * math.pi * var, dtype=torch.float64).log())


def level_log_probability(x: float, mean: float, std: float, levels: int) -> mpmath.mpf:
    """log of the mass of N(mean, std²) in the bin of level x, to 50 digits (Ho et al. 2020, eq. 13)."""
    with mpmath.workdps(50):
        k, half = round((x + 1) / 2 * (levels - 1)), mpmath.mpf(1) / (levels - 1)
        centre = -1 + 2 * half * k
        low = -mpmath.inf if k == 0 else (centre - half - mpmath.mpf(mean)) / mpmath.mpf(std)
        high = mpmath.inf if k == levels - 1 else (centre + half - mpmath.mpf(mean)) / mpmath.mpf(std)
        # By symmetry into the upper tail, where erfc does not cancel.
        if low + high < 0:
            low, high = -high, -low
        return mpmath.log((mpmath.erfc(low / mpmath.sqrt(2)) - mpmath.erfc(high / mpmath.sqrt(2))) / 2)


def make_objective(target: str, weighting: str = "simple", **spec: object) -> Objective:
    """One of a sweep: made without the parameters that none of its components uses."""
    bases = {"target": Target, "weighting": Weighting, "variance": Variance, "times": Times, "matching": Matching}
    spec |= {"target": target, "weighting": weighting}
    parts = [base.named(spec.get(part, base.default)) for part, base in bases.items()]
    used = {name for part in parts for name in annotations(part)} - {name for part in parts for name in part.replaces}
    return Objective.make({k: v for k, v in spec.items() if k in bases or k in used})


def answering(output: Tensor) -> Callable[..., Tensor]:
    """A network that answers `output`, whatever it is asked."""
    return lambda *_: output


class MixtureDenoiser(Denoiser):
    """Pixels drawn independently from Σ_k w_k N(m_k, c_k²), so x_t ~ Σ_k w_k N(α m_k, α² c_k² + σ²) per pixel.

    E[x0 | x_t] weighs every component's precision-weighted mean of m_k and x_t/α by its posterior probability.
    """

    def __init__(
        self,
        schedule: Schedule,
        weights: tuple[float, ...],
        means: tuple[float, ...],
        stds: tuple[float, ...],
        v: float | None = None,
        clip: bool = False,
    ):
        super().__init__(network=None, objective=None, schedule=schedule, clip=clip)
        self.weights, self.means, self.vars = (
            torch.tensor(values, dtype=torch.float64) for values in (weights, means, [c**2 for c in stds])
        )
        self.v = v

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log (w_k N(x_t; α m_k, α² c_k² + σ²)), the components along a new last axis."""
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        return self.weights.log() + log_normal(x_t[..., None], alpha * self.means, alpha**2 * self.vars + sigma**2)

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log q(x_t) of every pixel; at t = 0 that of the data."""
        return self._log_joint(x_t, t).logsumexp(-1)

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """∇ log q(x_t) of every pixel, by differentiating the density above."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            return torch.autograd.grad(self.log_likelihood(x, t).sum(), x)[0]

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        snr_root = (self.schedule.alpha(t) / self.schedule.sigma(t))[..., None]
        observed = x_t[..., None] / self.schedule.sigma(t)[..., None]
        means = (self.means / self.vars + snr_root * observed) / (1 / self.vars + snr_root**2)
        probability = self._log_joint(x_t, t).softmax(-1)
        return (probability * means).sum(-1), None if self.v is None else torch.full_like(x_t, self.v)


class GaussianDenoiser(MixtureDenoiser):
    """Pixels N(mean, std²): x_t ~ N(α m, α² c² + σ²), and every map between times is affine."""

    def __init__(self, schedule: Schedule, mean: float, std: float, v: float | None = None, clip: bool = False):
        super().__init__(schedule, (1.0,), (mean,), (std,), v, clip)
        self.mean, self.std = mean, std

    def flow(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_0 of the probability flow through x_t: it keeps the standardised pixel (x_t − α m)/√(α² c² + σ²)."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return self.mean + self.std * (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2).sqrt()


class VectorDenoiser(Denoiser):
    """Vectors (B, D) from Σ_k w_k N(m_k, C_k) with whole covariances: x_t ~ Σ_k w_k N(α m_k, α² C_k + σ² I).

    x̂0 = Σ_k p(k | x_t) [m_k + α C_k (α² C_k + σ² I)⁻¹ (x_t − α m_k)].
    """

    def __init__(self, schedule: Schedule, weights: list[float], means: Array, covariances: Array):
        super().__init__(network=None, objective=None, schedule=schedule, clip=False)
        self.weights, self.means, self.covariances = (
            torch.as_tensor(np.array(v), dtype=torch.float64) for v in (weights, means, covariances)
        )

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α m_k (K, D) and α² C_k + σ² I (K, D, D) at one time t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha * self.means, alpha**2 * self.covariances + sigma**2 * torch.eye(len(self.means[0])).double()

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log (w_k N(x_t; α m_k, α² C_k + σ² I)), (B, K)."""
        law = torch.distributions.MultivariateNormal(*self.moments(t))
        return self.weights.log() + law.log_prob(x_t[:, None])

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log q(x_t), (B,); at t = 0 that of the data."""
        return self._log_joint(x_t, t).logsumexp(-1)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        means, covariances = self.moments(t)
        gain = self.schedule.alpha(t) * torch.linalg.solve(covariances, self.covariances)
        x0 = self.means + torch.einsum("kij,bki->bkj", gain, x_t[:, None] - means)
        return torch.einsum("bk,bkd->bd", self._log_joint(x_t, t).softmax(-1), x0), None


def noises(seed: int, *shape: int) -> Callable[[], Tensor]:
    """A fresh seeded z at every call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, generator=generator, dtype=torch.float64)


def last(sampler: Sampler, denoiser: Denoiser, x: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
    """x_0 from x_T = x."""
    *_, x = sampler.trajectory(denoiser, x, NOTHING, noise)
    return x


def maps(sampler: Sampler, denoiser: Denoiser, draws: int, size: int = 2) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x after every step as offset (D,) + x_T @ start (D, D) + noise of covariance (D, D), without a random number.

    Where x̂0 is affine in x_t, so is every state in (x_T, z_1, …, z_draws): its matrix is read off by one unit impulse
    per image. `draws` is how many times the sampler must ask for noise.
    """
    x = torch.zeros(1 + (1 + draws) * size, size, dtype=torch.float64)
    x[1 : 1 + size] = torch.eye(size)
    calls = count(1)

    def impulse() -> Tensor:
        z, first = torch.zeros_like(x), 1 + size * next(calls)
        z[first : first + size] = torch.eye(size)
        return z

    for state in sampler.trajectory(denoiser, x, NOTHING, impulse):
        rows = state[1:] - state[0]
        yield state[0], rows[:size], rows[size:].T @ rows[size:]
    assert next(calls) == 1 + draws, "draws of noise"


def laws(sampler: Sampler, denoiser: Denoiser, draws: int, mean: Tensor, covariance: Tensor) -> list[tuple]:
    """Mean (D,) and covariance (D, D) of x after every step, from x_T ~ N(mean, covariance)."""
    found = maps(sampler, denoiser, draws, len(mean))
    return [(offset + mean @ start, start.T @ covariance @ start + noise) for offset, start, noise in found]


class ClassNetwork(Network):
    """What guidance asks a network for: the null condition, whose label is the number of classes."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes


class ClassDenoiser(Denoiser):
    """Class k: pixels N(m_k, c_k²); the null label: their mixture. Keeps the sizes of the batches it is called with."""

    def __init__(
        self,
        schedule: Schedule,
        weights: tuple[float, ...],
        means: tuple[float, ...],
        stds: tuple[float, ...],
        v: tuple[float, ...] | None = None,
    ):
        super().__init__(ClassNetwork(len(weights)), objective=None, schedule=schedule, clip=False)
        self.branches: list[MixtureDenoiser] = [
            GaussianDenoiser(schedule, m, c) for m, c in zip(means, stds, strict=True)
        ]
        self.branches.append(MixtureDenoiser(schedule, weights, means, stds))
        self.v, self.batches = v, []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        self.batches.append(len(x_t))
        labels = condition.labels
        rows = [
            self.branches[int(k)].predict(x, u, NOTHING)[0]
            for x, u, k in zip(x_t, self._rows(t, x_t), labels, strict=True)
        ]
        v = None if self.v is None else torch.stack([torch.full_like(x_t[0], self.v[int(k)]) for k in labels])
        return torch.stack(rows), v

    @staticmethod
    def _rows(t: Tensor, x_t: Tensor) -> Tensor:
        return t.flatten().expand(len(x_t))


def independent(law: Mixture, alpha: float = 1.0, sigma: float = 0.0) -> MixtureSameFamily:
    """The law of α x0 + σ ε by torch's own distributions."""
    noise = sigma**2 * torch.eye(law.means.shape[1], dtype=torch.float64)
    parts = MultivariateNormal(alpha * law.means, alpha**2 * law.covariances + noise)
    return MixtureSameFamily(Categorical(law.weights), parts)


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight, also those that start at zero or one, and every running statistic, is a number of its own."""
    for seed, (name, value) in enumerate(network.state_dict().items()):
        if value.is_floating_point():
            noise = 0.4 * randn(seed, *value.shape)
            value.copy_(1 + noise.abs() if "running_var" in name else noise)
    return network
