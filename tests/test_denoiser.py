"""The denoiser itself: what it asks of the network, what it makes of the answer, and how it counts."""

import pytest
import torch
from oracles import make_objective, randn, time

from ddpm import networks
from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.guidance import ClassifierFree
from ddpm.schedules import Cosine, Linear

Tensor = torch.Tensor


class Network:
    """Answers half of what it is given, one head or two, and remembers it."""

    classes, null = 4, networks.Network.null

    def __init__(self, heads: int = 1):
        self.heads, self.asked = heads, []

    def __call__(self, x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        self.asked.append((x, log_snr, condition))
        return torch.cat([x / 2, x / 10], dim=1)[:, : self.heads * x.shape[1]]


@pytest.mark.parametrize("clip", [True, False])
def test_prediction(clip: bool) -> None:
    """x̂0 = (x_t − σ ε̂)/α, clipped to [−1, 1], ε̂ that of the clipped x̂0, v = (head + 1)/2; the network sees the
    condition."""
    schedule, network, condition = Cosine(), Network(heads=2), Condition(torch.tensor([3, 0, 2]))
    denoiser = Denoiser(network, make_objective(target="eps", variance="learned"), schedule, clip)
    x_t, t = 2 * randn(0, 3, 1, 4, 4), time(30, 500, 900)
    found = denoiser(x_t, t, condition)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0 = (x_t - sigma * x_t / 2) / alpha
    assert (x0.abs() > 1).any()
    x0 = x0.clamp(-1, 1) if clip else x0
    torch.testing.assert_close(found.x0, x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.eps, (x_t - alpha * x0) / sigma, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.v, (x_t / 10 + 1) / 2, rtol=1e-12, atol=1e-12)
    ((_, log_snr, asked),) = network.asked
    torch.testing.assert_close(log_snr, 2 * (alpha / sigma).log().flatten(), rtol=1e-12, atol=1e-12)
    assert asked is condition


def test_without_a_label() -> None:
    """No condition reaches the network as none, and a fixed variance gives no v."""
    network = Network()
    assert Denoiser(network, make_objective(target="x0"), Linear())(randn(0, 2, 1, 2, 2), time(7)).v is None
    assert network.asked[0][2] is NOTHING


def test_evaluations_add_up() -> None:
    """Network evaluations, summed over calls and images; a guided denoiser counts both branches."""
    denoiser = Denoiser(Network(), make_objective(target="x0"), Linear())
    assert denoiser.evaluated == 0
    for count, total in ((3, 3), (1, 4), (5, 9)):
        denoiser(randn(0, count, 1, 2, 2), time(7))
        assert denoiser.evaluated == total
    guided = ClassifierFree(weight=2.0)(Denoiser(Network(), make_objective(target="x0"), Linear()))
    for count, total in ((3, 6), (4, 14)):
        guided(randn(0, count, 1, 2, 2), time(7), Condition(torch.zeros(count, dtype=torch.int64)))
        assert guided.evaluated == total
