"""The probability-flow ODE, solved adaptively, and the density that it carries along.

With ς = σ/α and ℓ = ln ς, in the coordinate z = x/√(α² + σ²), whose size stays that of the data or of a standard
normal at every noise level, the flow dx = [f x − ½ g² ∇ log p] dt (Song et al. 2021, eq. 13; 003) is

    dz/dℓ = ς/√(1 + ς²) ε̂ − ς²/(1 + ς²) z,    d log p(z)/dℓ = −tr ∂(dz/dℓ)/∂z    (Song et al. 2021, eq. 39).

It knows the schedule only through α² + σ² and the time at which σ/α = ς, so it is the same for all.
"""

import math
from collections.abc import Iterator

import torch

from ddpm.condition import Condition
from ddpm.denoiser import Denoiser
from ddpm.schedules import Schedule, like
from ddpm.spaces import log_normal

Tensor = torch.Tensor

# Of a step in ln ς. Near the prior the flow stands almost still, so that a step may grow tenfold each time until it
# leaps over the data, where its error estimate does not see them: at rtol = 1e-3 images were off by 0.8.
LONGEST = 1.0
# Between two reported times. Exact denoisers take some tens.
MOST_STEPS = 2_000


def _scale(schedule: Schedule, t: Tensor) -> Tensor:
    """√(α² + σ²), by which z must be multiplied to give x."""
    return (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()


class Velocity:
    """dz/dℓ at (ℓ, z); with a `probe` v, shape of z, also Hutchinson's estimate vᵀ ∂(dz/dℓ)/∂z v of the trace, (B,)."""

    def __init__(self, denoiser: Denoiser, condition: Condition, probe: Tensor | None = None):
        self.denoiser, self.condition, self.probe = denoiser, condition, probe

    def at(self, ell: Tensor, z: Tensor) -> Tensor:
        schedule, level = self.denoiser.schedule, ell.detach().cpu().double().exp()
        t = schedule.time_at(level)
        share = level**2 / (1 + level**2)
        scale, root, share = like(z, _scale(schedule, t), share.sqrt(), share)
        return root * self.denoiser(scale * z, t, self.condition).eps - share * z

    def __call__(self, ell: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.probe is None:
            return (self.at(ell, state[0]),)
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            velocity = self.at(ell, z)
            (product,) = torch.autograd.grad((velocity * self.probe).sum(), z)
        return velocity.detach(), (product * self.probe).flatten(1).sum(1)


def _integrate(
    velocity: Velocity, schedule: Schedule, state: tuple[Tensor, ...], times: Tensor, rtol: float, atol: float
) -> tuple[Tensor, ...]:
    from torchdiffeq import odeint  # half a second, which only this solver should cost

    ell = schedule.level(times).log().to(state[0].device)
    # The solver is made to hit both ends, and told its first step, which it would look for far outside of them, where
    # there is no schedule to follow.
    options = {"step_t": ell[[0, -1]], "first_step": LONGEST, "max_step": LONGEST, "max_num_steps": MOST_STEPS}
    try:
        return odeint(velocity, state, ell, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError:
        # So torchdiffeq gives up, where a step underflows or there are too many: no number is the result.
        return tuple(part.new_full((len(times), *part.shape), math.nan) for part in state)


def solve(
    denoiser: Denoiser, x: Tensor, times: Tensor, condition: Condition, rtol: float, atol: float
) -> Iterator[Tensor]:
    """x at times[1], times[2], … from x at times[0]; times are monotonic, above 0, in either direction.

    NaN where the solver does not converge, here and in `log_density`.
    """
    schedule = denoiser.schedule
    scales = [like(x, _scale(schedule, t))[0] for t in times]
    (z,) = _integrate(Velocity(denoiser, condition), schedule, (x / scales[0],), times, rtol, atol)
    for i, scale in enumerate(scales[1:], 1):
        yield z[i] * scale


def log_density(
    denoiser: Denoiser, x: Tensor, t: Tensor, condition: Condition, probe: Tensor, rtol: float, atol: float
) -> Tensor:
    """log p(x) of every image in nats, (B,), where p is the density of the flow at time t > 0, from the prior at T.

    Where x_T holds no data (ℓ = ∞), from noise at the last time T′ at which x still does (`Schedule.last`).
    log p(z_t) = log p(z_T) + ∫ tr ∂(dz/dℓ)/∂z dℓ from t to T; the trace is estimated with `probe`, of x's shape, whose
    entries are ±1: unbiased, and exact where the Jacobian is diagonal (Hutchinson 1990).
    """
    schedule, dimensions = denoiser.schedule, x[0].numel()
    times = torch.stack([t, schedule.last])
    first, last = (like(x, _scale(schedule, t))[0] for t in times)
    state = (x / first, x.new_zeros(len(x)))
    z, trace = _integrate(Velocity(denoiser, condition, probe), schedule, state, times, rtol, atol)
    (std,) = like(x, schedule.noise_std(schedule.last))
    prior = log_normal(z[-1], torch.zeros_like(std), (std / last).log()).flatten(1).sum(1)
    return prior + trace[-1] - dimensions * first.log()
