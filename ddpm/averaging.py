"""Power-function averages of weights, and any of them from a few that were kept (Karras et al. 2024b, section 3 and
appendix C). No torch.

After t steps that left the weights θ_1 … θ_t the average is θ̂(t) = β(t) θ̂(t − 1) + (1 − β(t)) θ_t with
β(t) = (1 − 1/t)^{γ+1}, so that θ_s has the weight (s^{γ+1} − (s − 1)^{γ+1})/t^{γ+1}: the initial weights none, and the
average stays as long in relation to training. Its length is σ_rel = (γ+1)^½ (γ+2)^{−1} (γ+3)^{−½}, the standard
deviation of the profile p(τ) ∝ τ^γ, τ ≤ t, in units of t: for an `ema` of 0.1 a tenth of training.
"""

# The lengths that training averages over; others are made of snapshots of both.
KEPT = (0.05, 0.10)
# The length at γ = 0, where all steps weigh the same: every power-function average that forgets is shorter.
LONGEST = 12**-0.5


def exponent(length: float) -> float:
    """γ of a length σ_rel below LONGEST, by bisection: the root of (γ+2)² (γ+3) σ² = γ + 1."""
    low, high = 0.0, 1 / length
    for _ in range(100):
        middle = (low + high) / 2
        longer = (middle + 1) > (middle + 2) ** 2 * (middle + 3) * length**2
        low, high = (middle, high) if longer else (low, middle)
    return low


def decay(t: int, length: float) -> float:
    """β(t): how much of the average before step t stays, t = 1, 2, …"""
    return (1 - 1 / t) ** (exponent(length) + 1)


def moments(steps: int, count: int) -> list[int]:
    """The steps after which a snapshot of both averages is kept: `count`, evenly spaced, the last step among them."""
    return [round(steps * k / count) for k in range(1, count + 1)]


def overlap(t: float, gamma: float, s: float, eta: float) -> float:
    """∫ p(τ) q(τ) dτ of the profiles p(τ) = (γ+1) τ^γ/t^{γ+1}, τ ≤ t, and q of s and η (Karras et al. 2024b,
    algorithm 3)."""
    if t > s:
        return overlap(s, eta, t, gamma)
    return (gamma + 1) * (eta + 1) / (gamma + eta + 1) * (t / s) ** eta / s


def coefficients(steps: int, count: int, length: float) -> tuple[list[float], float]:
    """The c that bring Σ c_i p_i, over the snapshots' profiles p_i, nearest to the profile p of `length` at the end of
    training, by least squares: in the order of `moments`, each with all of KEPT; and ‖p − Σ c_i p_i‖/‖p‖."""
    import numpy as np  # of all that plans only a configuration with `ema` waits for it

    kept = [(t, exponent(each)) for t in moments(steps, count) for each in KEPT]
    wanted = (steps, exponent(length))
    onto = [overlap(*a, *wanted) for a in kept]
    found = np.linalg.solve([[overlap(*a, *b) for b in kept] for a in kept], onto).tolist()
    square = overlap(*wanted, *wanted)
    # At the minimum, A c = b, the square of the distance is ‖p‖² − c·b.
    return found, max(0.0, 1 - sum(c * b for c, b in zip(found, onto, strict=True)) / square) ** 0.5
