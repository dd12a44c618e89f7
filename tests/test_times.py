"""At which times an objective is trained: distributions, weights, and the memory of importance sampling."""

from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from oracles import EVERY, make_objective, randn
from scipy import stats

from ddpm.times import Draws, Importance, LogNormal, Uniform

Tensor = torch.Tensor


def places(count: int) -> Tensor:
    """The midpoints of `count` equal cells of (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def importance(steps: int = 6) -> Draws:
    found = make_objective(target="eps", times="importance").times.on(EVERY["cosine"](steps=steps))
    assert isinstance(found.times, Importance)
    return found


def probabilities(times: Draws) -> Tensor:
    """p_1 … p_T after what it has seen."""
    return times.times.probabilities(times.memory)


def filled(steps: int = 6, seed: int = 0) -> tuple[Draws, np.ndarray]:
    """A sampler that has seen ten losses of every t, and these losses (T, 10)."""
    times, losses = importance(steps), randn(seed, steps, 10).exp()
    times.learn(torch.arange(1, steps + 1).repeat_interleave(10).double(), losses.flatten())
    return times, losses.numpy()


def test_uniform() -> None:
    """Every t of 1 … T from an equal share of (0, 1), weight 1; the ends of the interval stay inside."""
    times = make_objective(target="eps").times.on(EVERY["cosine"](steps=7))
    assert isinstance(times.times, Uniform)
    t, weight = times.draw(places(700))
    assert t.tolist() == [1 + i // 100 for i in range(700)] and t.dtype == torch.float64
    assert weight.tolist() == [1] * 700
    assert times.draw(torch.tensor([0.0, 1 - 2**-53, 1.0]).double())[0].tolist() == [1, 7, 7]


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 2.5)])
def test_log_normal(name: str, mean: float, std: float) -> None:
    """ln(σ/α) ~ N(mean, std²) quantile by quantile, cut off at the levels of t = 1 and T; weight 1."""
    schedule, u = EVERY[name](), places(1001)
    times = make_objective(target="eps", times="log-normal", level_mean=mean, level_std=std).times.on(schedule)
    assert isinstance(times.times, LogNormal)
    t, weight = times.draw(u)
    assert t.dtype == torch.float64 and (weight == 1).all()
    low, high = (float(schedule.level(torch.tensor(float(i)).double()).log()) for i in (1, 1000))
    expected = stats.norm.ppf(u.numpy(), mean, std).clip(low, high)
    np.testing.assert_allclose(schedule.level(t).log().numpy(), expected, atol=1e-8)
    assert times.draw(torch.zeros(3).double())[0].tolist() == [1, 1, 1]


def test_importance_begins_uniform() -> None:
    """Until every t has ten losses, p_t = 1/T and the weight is 1 (Nichol & Dhariwal 2021, section 3.3)."""
    times = importance()
    t = torch.arange(1, 7).repeat_interleave(10).double()
    times.learn(t[:-1], 5 * torch.rand(59).double())
    found, weight = times.draw(places(600))
    assert found.tolist() == [1 + i // 100 for i in range(600)]
    np.testing.assert_allclose(weight.numpy(), 1, rtol=1e-12)
    times.learn(t[-1:], torch.ones(1).double())
    assert not np.allclose(probabilities(times).numpy(), 1 / 6, rtol=1e-2)


def test_probabilities() -> None:
    """001, eq. 4.3: p_t ∝ √E[L_t²], with a thousandth of it uniform; the draws have these frequencies."""
    times, losses = filled()
    size = np.sqrt((losses**2).mean(1))
    expected = 0.999 * size / size.sum() + 0.001 / 6
    np.testing.assert_allclose(probabilities(times).numpy(), expected, rtol=1e-12)
    t, weight = times.draw(places(1_000_000))
    np.testing.assert_allclose(np.bincount(t.long().numpy(), minlength=7)[1:] / 1e6, expected, atol=2e-6)
    np.testing.assert_allclose(weight.numpy(), 1 / (6 * expected[t.long().numpy() - 1]), rtol=1e-12)
    assert times.draw(torch.tensor([0.0, 1.0]).double())[0].tolist() == [1, 6]


def test_random_draws_have_the_distribution() -> None:
    """χ² of seeded uniform numbers (5 degrees of freedom, p = 0.001)."""
    times, _ = filled(seed=1)
    t, _ = times.draw(torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    expected = 20_000 * probabilities(times).numpy()
    found = np.bincount(t.long().numpy(), minlength=7)[1:]
    assert ((found - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, 5)


@pytest.mark.parametrize("method", ["uniform", "importance"])
def test_weighted_loss_is_unbiased(method: str) -> None:
    """The mean of weight · L_t over the draws is the mean of L_t over t, whatever L is."""
    times = filled()[0] if method == "importance" else Uniform().on(EVERY["cosine"](steps=6))
    loss = torch.tensor([0.3, -1.0, 4.0, 100.0, 0.01, 2.0], dtype=torch.float64)
    t, weight = times.draw(places(1_000_000))
    assert float((weight * loss[t.long() - 1]).mean()) == pytest.approx(float(loss.mean()), rel=1e-4)


def test_a_time_never_dies_out() -> None:
    """A t whose losses were all 0 is still drawn, with a weight that makes up for it."""
    times = importance()
    losses = torch.ones(6, 10).double()
    losses[2] = 0
    times.learn(torch.arange(1, 7).repeat_interleave(10).double(), losses.flatten())
    t, weight = times.draw(places(60_000))
    rare = t == 3
    assert int(rare.sum()) == 10 and weight[rare].tolist() == pytest.approx([1000] * 10, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 40, 200])
def test_the_last_ten_losses_are_kept(batch: int) -> None:
    """Against one queue per t, also where a batch holds a t more than ten times; any type and order."""
    times, queues = importance(), defaultdict(lambda: deque(maxlen=10))
    generator = torch.Generator().manual_seed(batch)
    for _ in range(400 // batch + 3):
        # Times as training draws them: some more often than others, not sorted.
        t = 1 + (6 * torch.rand(batch, generator=generator) ** 2).floor()
        losses = torch.rand(batch, generator=generator).requires_grad_()
        times.learn(t.double(), losses)
        for at, loss in zip(t.tolist(), losses.tolist(), strict=True):
            queues[int(at)].append(loss)
        full = all(len(queues[i]) == 10 for i in range(1, 7))
        size = np.array([np.sqrt(np.mean(np.square(queues[i]))) if queues[i] else 0 for i in range(1, 7)])
        expected = 0.999 * size / size.sum() + 0.001 / 6 if full else np.full(6, 1 / 6)
        np.testing.assert_allclose(probabilities(times).numpy(), expected, rtol=1e-6)
    assert full and not times.memory["history"].requires_grad


def test_state_resumes() -> None:
    """What a checkpoint holds is all there is: a fresh sampler that loads it goes on alike, unfilled or filled."""
    for count in (13, 300):
        one, two = importance(), importance()
        t = 1 + torch.randint(6, (count,), generator=torch.Generator().manual_seed(0)).double()
        one.learn(t, randn(3, count).abs())
        two.load({k: v.clone() for k, v in one.state().items()})
        for times in (one, two):
            times.learn(t[:50], randn(4, min(50, count)).abs())
        assert torch.equal(probabilities(one), probabilities(two))
        assert all(torch.equal(one.memory[name], two.memory[name]) for name in ("seen", "history"))
    assert Uniform().on(EVERY["linear"]()).state() == {}


def test_the_end_of_the_interval_is_the_last_time() -> None:
    """Σ p may round to less than 1: a place beyond it still stands for t = T."""
    times = importance(14)
    end = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert float(probabilities(times).cumsum(0)[-1]) < float(end)
    assert times.draw(end)[0].tolist() == [14]
