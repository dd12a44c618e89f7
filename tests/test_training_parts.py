"""What a training run is made of: its draws, the average of its weights, its learning rate."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import nn

from ddpm import networks
from ddpm.datasets import dataset as data
from ddpm.pipeline import parallel
from ddpm.schedules import Cosine
from ddpm.spaces import Pixels
from ddpm.stages import train as training
from ddpm.times import Uniform

torch.set_num_threads(1)


# ---- draws ------------------------------------------------------------------------------------------------


def batches(
    count: int = 37, size: int = 8, steps: int = 10, dropout: float | None = None, name: str = "a/b/c/seed0"
) -> training.Batches:
    """Draws from `count` images, each of which shows its own number; its label is the number modulo 10."""
    number = torch.arange(count)
    half = data.Split(number.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), number % 10)
    job: dict = {"name": name, "schedule": {"steps": steps}, "training": {"batch": size}}
    if dropout is not None:
        job["training"]["label_dropout"] = dropout
    network = networks.build({"method": "mlp"}, (1, 2, 2), 1, 10)
    return training.Batches(data.Data(half, half, Pixels((1, 2, 2)), 10), job, torch.device("cpu"), network)


def numbers(x0: torch.Tensor) -> list[int]:
    """Which images a batch shows."""
    return ((x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_an_epoch_shows_every_image_once() -> None:
    """37 images in batches of 8: what is left over begins the next batch; every epoch has its own order."""
    draw = batches()
    seen = [n for step in range(37) for n in numbers(draw(step)[0])]
    epochs = [seen[i : i + 37] for i in range(0, len(seen), 37)]
    assert len(epochs) == 8
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_larger_than_the_data_goes_round() -> None:
    """5 images in batches of 12: two epochs and a part of the third."""
    seen = numbers(batches(count=5, size=12)(0)[0])
    assert sorted(seen[:5]) == sorted(seen[5:10]) == [0, 1, 2, 3, 4]


def test_draws_do_not_depend_on_what_was_drawn_before() -> None:
    """Any order of steps, also back into an earlier epoch, gives the same batches."""
    one, two = batches(dropout=0.3), batches(dropout=0.3)
    ordered = [one(step) for step in range(12)]
    for step in (11, 3, 3, 0, 9, 1):
        *tensors, condition = two(step)
        assert all(torch.equal(a, b) for a, b in zip(tensors, ordered[step], strict=False))
        assert torch.equal(condition.labels, ordered[step][3].labels)


def test_networks_and_steps_have_their_own_draws() -> None:
    """Another name or another step: other images, noise and times."""
    draw, elsewhere = batches(), batches(name="a/b/c/seed1")
    for one, two in ((draw(0), draw(1)), (draw(0), elsewhere(0))):
        assert numbers(one[0]) != numbers(two[0])
        assert not torch.equal(one[1], two[1]) and not torch.equal(one[2], two[2])


def times(u: torch.Tensor) -> list[float]:
    """The t of 1 … 10 that the places u stand for."""
    return Uniform().on(Cosine(steps=10)).draw(u)[0].tolist()


def test_signs_are_fair_and_of_their_step() -> None:
    """+1 and −1, each half of the time; others at another step, the same at the same one."""
    made = batches(count=4, size=4)
    found = torch.stack([made.signs(step, parallel.join(1, "cpu")) for step in range(400)])
    assert found.shape == (400, 4, 1, 2, 2) and set(found.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(found.mean())) < 4 / found.numel() ** 0.5
    assert abs(float((found[1:] * found[:-1]).mean())) < 4 / found.numel() ** 0.5
    assert torch.equal(made.signs(3, parallel.join(1, "cpu")), found[3])


def test_every_batch_covers_all_times() -> None:
    """Twenty images over T = 10: every t stands in every batch exactly twice."""
    draw = batches(size=20)
    for step in range(50):
        assert sorted(times(draw(step)[2])) == sorted([*range(1, 11)] * 2)


def test_each_time_is_uniform() -> None:
    """The t of one place in the batch, over many steps: each of 1 … T as often, by χ² (9 degrees, p = 0.001)."""
    draw = batches(size=3)
    found = [times(draw(step)[2]) for step in range(2000)]
    for place in range(3):
        counts = Counter(t[place] for t in found)
        assert set(counts) == set(range(1, 11))
        assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 27.9


def test_noise_is_standard_normal() -> None:
    """Mean, variance and independence of ε from the images that it is added to."""
    draw = batches(size=64)
    drawn = [draw(step) for step in range(200)]
    eps, x0 = (torch.cat([d[i].flatten() for d in drawn]).double() for i in (1, 0))
    n = len(eps)
    assert abs(eps.mean()) < 4 / n**0.5 and abs(eps.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(torch.corrcoef(torch.stack([eps, x0]))[0, 1]) < 4 / n**0.5


def test_labels_are_dropped_as_often_as_asked() -> None:
    """A tenth of the labels is the null label (10), within four standard errors; the others are the images'."""
    draw = batches(size=50, dropout=0.1)
    dropped = 0
    for step in range(200):
        x0, _, _, condition = draw(step)
        y = condition.labels
        dropped += int((y == 10).sum())
        assert all(label == 10 or label == n % 10 for label, n in zip(y.tolist(), numbers(x0), strict=True))
    assert abs(dropped / 10000 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 10000)


def test_labels_are_dropped_at_all_times() -> None:
    """Whether a label is dropped does not depend on its image's t, also at the place that t is drawn from."""
    draw = batches(size=2, dropout=0.2)
    found = [(times(u)[0], int(condition.labels[0]) == 10) for _, _, u, condition in map(draw, range(2000))]
    counts = Counter(t for t, dropped in found if dropped)
    assert set(counts) == set(range(1, 11))
    expected = sum(counts.values()) / 10
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9


def test_an_unconditional_network_gets_no_labels() -> None:
    """No dropout given means no condition."""
    assert batches()(0)[3].labels is None


# ---- the average and the learning rate --------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_follows_its_formula(decay: float) -> None:
    """θ_ema ← d θ_ema + (1 − d) θ, d = min(decay, (1 + n)/(10 + n)) after n updates; the first one copies."""
    torch.manual_seed(0)
    network = nn.Linear(3, 4)
    average = copy.deepcopy(network)
    by_hand: list[torch.Tensor] = []
    for n in range(60):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        training.average(average, network, n, decay)
        now = [p.detach().clone() for p in network.parameters()]
        if n:
            d = min(decay, (1 + n) / (10 + n))
            by_hand = [torch.lerp(a, p, 1 - d) for a, p in zip(by_hand, now, strict=True)]
        else:
            by_hand = now
        assert all(torch.equal(a, b) for a, b in zip(average.parameters(), by_hand, strict=True))


def test_the_learning_rate_rises_then_falls() -> None:
    """Linear to the peak over the warm-up, then constant, or half a cosine to 0 at the end."""

    def at(step: int, decay: str = "constant", warmup: int = 4) -> float:
        return training.learning_rate(step, 100, 2.0, warmup, decay)

    assert [at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert at(99) == 2.0
    assert at(0, warmup=0) == at(0, warmup=1) == 2.0
    assert at(50, "cosine") == pytest.approx(1.0, abs=1e-12)
    assert at(25, "cosine") == pytest.approx(1 + math.sqrt(0.5), abs=1e-12)
    assert at(100, "cosine") == pytest.approx(0.0, abs=1e-12)
    assert at(1, "cosine") == pytest.approx(2.0 * 0.5 * 0.5 * (1 + math.cos(math.pi / 100)), abs=1e-12)
