"""Noise schedules: α(t) and σ(t) with x_t = α(t) x0 + σ(t) ε.

Index 0 is clean data, T is noise. Times and everything that depends on the schedule alone are float64
tensors on the CPU, of any shape; `like` moves the finished coefficients to the images' device and type.
Give times a shape that broadcasts against the images: () for one time, (B, 1, 1, 1) for one per image.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from ddpm.methods import Method

Tensor = torch.Tensor


def like(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients in the type and on the device of `x`; a single time stays a CPU scalar."""
    return tuple(c.to(x.dtype) if c.ndim == 0 else c.to(x.device, x.dtype, non_blocking=True) for c in coefficients)


@dataclass(frozen=True)
class Schedule(Method):
    """A pair α(t), σ(t); everything else follows from it.

    `steps` is T, the number of diffusion steps that a network is trained on. α(0) = 1 and σ(0) = 0, so
    the last step of a sampler needs no special case.
    """

    limits = {"steps": (2, None)}
    steps: int = 1000

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale α(t), without unit."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale σ(t), in units of the data."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """log SNR(t) = log α²/σ², what every network is conditioned on; +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The forward process in one step: x_t = α x0 + σ ε (000, "Forward process"; 001, eq. 2.9)."""
        alpha, sigma = like(x0, self.alpha(t), self.sigma(t))
        return alpha * x0 + sigma * eps

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_t | x_s) = N(α_ts x_s, σ²_ts) for s < t: returns α_ts = α_t/α_s and σ²_ts = σ_t² − α²_ts σ_s².

        σ²_ts is β_t where s = t − 1 (001, eq. 2.3).
        """
        alpha_ts = self.alpha(t) / self.alpha(s)
        return alpha_ts, self.sigma(t) ** 2 - alpha_ts**2 * self.sigma(s) ** 2

    def posterior(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_s | x_t, x0) = N(A x0 + B x_t, β̃): returns A, B, β̃ (000, µ_q and Σ_q; 003, eq. 8).

        A = α_s σ²_ts / σ_t²,  B = α_ts σ_s² / σ_t²,  β̃ = σ²_ts σ_s² / σ_t².
        """
        alpha_ts, var_ts = self.transition(t, s)
        var_t, var_s = self.sigma(t) ** 2, self.sigma(s) ** 2
        return self.alpha(s) * var_ts / var_t, alpha_ts * var_s / var_t, var_ts * var_s / var_t

    def log_variances(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """log β̃ and log σ²_ts, the smallest and the largest sensible log-variance of p(x_s | x_t).

        β̃ vanishes at s = 0; there it counts as β̃ of the step 2 → 1, so that the decoder p(x0 | x1) has a
        width (Nichol & Dhariwal 2021, section 3.1).
        """
        _, var_ts = self.transition(t, s)
        one = torch.ones((), dtype=torch.float64)
        floor = self.posterior(2 * one, one)[2]
        return torch.maximum(self.posterior(t, s)[2], floor).log(), var_ts.log()


class VariancePreserving(Schedule):
    """α² + σ² = 1, given by ᾱ_1 … ᾱ_T with α² = ᾱ (Ho et al. 2020)."""

    def alphas_bar(self) -> Tensor:
        """ᾱ_0 … ᾱ_T with ᾱ_0 = 1; float64, shape (T + 1,)."""
        raise NotImplementedError

    @cached_property
    def _alpha_bar(self) -> Tensor:
        return self.alphas_bar()

    def _at(self, t: Tensor) -> Tensor:
        index = torch.as_tensor(t).long()
        if not (index == t).all() or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) <= self.steps):
            raise ValueError(f"time {t}; it must be a whole number in 0 … T = {self.steps}")
        return self._alpha_bar[index]

    def alpha(self, t: Tensor) -> Tensor:
        return self._at(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._at(t)).sqrt()


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """β_t linear in t from `beta_first` to `beta_last` (Ho et al. 2020; 001, section 2.1).

    The two ends hold for T = 1000 as in the paper; they are not rescaled for another T.
    """

    method = "linear"
    limits = {"beta_first": (1e-8, 0.9999), "beta_last": (1e-8, 0.9999)}
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def check(self) -> None:
        if self.beta_first > self.beta_last:
            raise ValueError(f"beta_first: {self.beta_first}; it must be at most beta_last, {self.beta_last}")

    def alphas_bar(self) -> Tensor:
        beta = torch.linspace(self.beta_first, self.beta_last, self.steps, dtype=torch.float64)
        return torch.cat([beta.new_ones(1), (1 - beta).cumprod(0)])


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), β_t clipped (001, eqs. 4.4–4.6).

    `offset` is s; `beta_max` clips β_t = 1 − ᾱ_t/ᾱ_{t−1} (Nichol & Dhariwal 2021).
    """

    method = "cosine"
    limits = {"offset": (0, 1), "beta_max": (1e-8, 0.9999)}
    offset: float = 0.008
    beta_max: float = 0.999

    def alphas_bar(self) -> Tensor:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        f = torch.cos((t + self.offset) / (1 + self.offset) * torch.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)
        return torch.cat([f.new_ones(1), (1 - beta).cumprod(0)])
