"""The variational bound on −log p(x0), term by term, in nats and in bits/dim.

−log p(x0) ≤ KL(q(x_T | x0) ‖ p(x_T)) + Σ_{t=2}^T KL(q(x_{t−1} | x_t, x0) ‖ p(x_{t−1} | x_t)) − log p(x0 | x_1)
(Ho et al. 2020, eq. 5; 001, eq. 2.40; 004, section 12.1.2).
"""

import torch

from ddpm.schedules import Schedule, like
from ddpm.spaces import Space

Tensor = torch.Tensor


def normal_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(N(mean_q, var_q) ‖ N(mean_p, var_p)) of every element, in nats (Han 2025, 002)."""
    return 0.5 * (
        log_var_p - log_var_q - 1 + (log_var_q - log_var_p).exp() + (mean_q - mean_p).square() * (-log_var_p).exp()
    )


def reverse_log_variance(schedule: Schedule, x: Tensor, v: Tensor | None, t: Tensor, s: Tensor, large: bool) -> Tensor:
    """log Σ of p(x_s | x_t): v log σ²_ts + (1 − v) log β̃ where learned, otherwise log β̃ (small) or
    log σ²_ts (large) (Nichol & Dhariwal 2021, eq. 15; 000, "Learned variance"; 001, eq. 4.1)."""
    log_small, log_large = like(x, *schedule.log_variances(t, s))
    if v is None:
        return log_large if large else log_small
    return v * log_large + (1 - v) * log_small


def vlb_term(
    schedule: Schedule,
    x0: Tensor,
    x_t: Tensor,
    x0_hat: Tensor,
    v: Tensor | None,
    t: Tensor,
    space: Space,
    large: bool = False,
) -> Tensor:
    """L_{t−1} of every image, in nats per dimension, shape (B,): the KL at t ≥ 2, the decoder at t = 1.

    x0_hat is the prediction at x_t; v the learned variance's fraction or None; t has shape (B, 1, 1, 1); `space` has
    the decoder: a probability P(x0 | x1), or a density p(x0 | x1).

    The decoder of a discrete space has Σ = β̃_2 with either fixed variance: Ho et al. 2020, whose published code reads
    β̃_2, β_2, …, β_T for `fixedlarge` and β̃_2, β̃_2, …, β̃_T for `fixedsmall`. Where it is learned, Σ lies between β̃_2
    and β_1 (Nichol & Dhariwal 2021). A density, which no paper here has, keeps σ²_10 with `large`.
    """
    s = t - 1
    a, b, _ = like(x0, *schedule.posterior(t, s))
    log_var_q, _ = like(x0, *schedule.log_variances(t, s))
    log_var_p = reverse_log_variance(schedule, x0, v, t, s, large)
    mean_p = a * x0_hat + b * x_t
    log_decoder = log_var_q if v is None and space.discrete else log_var_p
    log_decoder = log_decoder.expand_as(x0)
    term = normal_kl(a * x0 + b * x_t, log_var_q, mean_p, log_var_p).flatten(1).mean(1)
    # The decoder for its own rows only, in float64: elsewhere it underflows and would spoil the gradient.
    first = (t.flatten() == 1).nonzero().flatten().to(x0.device)
    if len(first):
        x, mean, log_std = x0[first].double(), mean_p[first].double(), 0.5 * log_decoder[first].double()
        decoder = -space.log_prob(x, mean, log_std).flatten(1).mean(1)
        term = term.index_copy(0, first, decoder.to(term.dtype))
    return term


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x0) ‖ p(x_T)) of every image, in nats per dimension, shape (B,)."""
    t = torch.tensor(schedule.steps, dtype=torch.float64)
    alpha, log_var, log_prior = like(x0, schedule.alpha(t), 2 * schedule.sigma(t).log(), 2 * schedule.prior_std.log())
    return normal_kl(alpha * x0, log_var, torch.zeros_like(log_prior), log_prior).flatten(1).mean(1)
