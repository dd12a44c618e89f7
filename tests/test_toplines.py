"""Toplines: draws of real images against counting, closed forms and fresh draws of a known law."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ddpm.datasets.dataset import Data, Split, proportional, stratified
from ddpm.errors import UserError
from ddpm.metrics import distances, toplines
from ddpm.spaces import Pixels
from ddpm.stages.sample import draw_labels

torch.set_num_threads(1)

CLASSES, SIZE = 5, 4
SPACE = Pixels((1, 8, 8), 17)
DIGITS = torch.from_numpy(load_digits().target)


def statistics(features: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance by numpy."""
    return {"mu": features.numpy().mean(0), "sigma": np.cov(features.numpy().T)}


# ---- classes in proportion --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([3, 3, 3], 7, [3, 2, 2]),
        ([50, 30, 20], 10, [5, 3, 2]),
        ([50, 30, 20], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([6, 1, 1], 4, [3, 1, 0]),  # 3, 0.5, 0.5
        ([10, 0, 5], 30, [20, 0, 10]),
    ],
)
def test_shares_by_largest_remainder(sizes: list[int], count: int, expected: list[int]) -> None:
    """Worked by hand; ties go to the first, and more may be asked for than there are."""
    assert proportional(torch.tensor(sizes), count).tolist() == expected


@pytest.mark.parametrize("count", [1, 10, 300, 897, 898, 1796, 2000])
def test_labels_that_are_given_hold_each_class_in_proportion(count: int) -> None:
    """Within one image of N p_c whatever N is, exactly N of them, and not in the order of the classes."""
    labels = DIGITS[:898]
    half = Split(torch.zeros(898, 1, 8, 8, dtype=torch.uint8), labels)
    found = draw_labels(Data(half, half, SPACE, 10), "a", count)
    share = labels.bincount() * (count / 898)
    assert len(found) == count
    assert ((found.bincount(minlength=10) - share).abs() < 1).all()
    if count > 10:
        assert not torch.equal(found, found.sort().values)
    assert torch.equal(found, draw_labels(Data(half, half, SPACE, 10), "a", count))
    if count >= 300:
        assert not torch.equal(found, draw_labels(Data(half, half, SPACE, 10), "b", count))


def test_stratified_images_are_different_ones_in_proportion() -> None:
    """No image twice, each class within one of its share; another key, other images; never more than there are."""
    half = Split(torch.arange(898)[:, None], DIGITS[:898])
    found = stratified(half, 300, "key")[:, 0]
    assert len(found.unique()) == 300
    assert torch.equal(DIGITS[found].bincount(), proportional(DIGITS[:898].bincount(), 300))
    assert not torch.equal(found, found.sort().values)
    assert not torch.equal(found.sort().values, stratified(half, 300, "other")[:, 0].sort().values)
    assert torch.equal(stratified(half, 898, "key")[:, 0].sort().values, torch.arange(898))
    with pytest.raises(UserError, match=r"899 wanted.*898"):
        stratified(half, 899, "key")


# ---- parts of a topline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 16, 64])
def test_the_fast_distance_is_torch_fidelitys(size: int) -> None:
    """To 1e-9, where the covariances have full rank."""
    g = torch.Generator().manual_seed(size)
    mixing = torch.eye(size, dtype=torch.float64) + 0.1 * torch.randn(size, size, generator=g, dtype=torch.float64)
    a, b = (torch.randn(10 * size, size, generator=g, dtype=torch.float64) @ mixing + shift for shift in (0.0, 0.2))
    expected = distances.frechet(statistics(a), statistics(b))
    assert toplines.Distance(statistics(b))(a.mean(0), a.T.cov()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert expected > 0.01


def test_counts_by_chance_are_multinomial() -> None:
    """Mean N p and covariance N (diag p − p pᵀ) over many draws; always N; a class that has no image gets none."""
    sizes, count, draws = torch.tensor([5, 3, 0, 2]), 20, 2000
    found = torch.stack([toplines.by_chance(sizes, count, draw) for draw in range(draws)]).double()
    p = sizes.double() / 10
    expected = count * (torch.diag(p) - torch.outer(p, p))
    assert (found.sum(1) == count).all() and (found[:, 2] == 0).all()
    torch.testing.assert_close(found.mean(0), count * p, atol=0.2, rtol=0)
    torch.testing.assert_close(found.T.cov(), expected, atol=0.6, rtol=0)


def test_a_shuffle_counts_every_class() -> None:
    """All images once, and each one's place among its class, in the order of the shuffle."""
    label = DIGITS[:200]
    order, place = toplines.shuffled(label, 3)
    assert sorted(order.tolist()) == list(range(200)) and not torch.equal(order, toplines.shuffled(label, 4)[0])
    seen = [0] * 10
    for image, at in zip(order.tolist(), place.tolist(), strict=True):
        assert at == seen[label[image]]
        seen[label[image]] += 1


def test_weighted_moments() -> None:
    """Images that stand for themselves, for two each, and for one and a half, against numpy's."""
    features, label = torch.randn(12, 3, dtype=torch.float64), torch.arange(3).repeat(4)
    four = torch.tensor([4, 4, 4])
    mean, covariance = toplines.moments(features, label, four, four)
    torch.testing.assert_close((mean, covariance), (features.mean(0), features.T.cov()))
    twice = torch.cat([features, features[label == 1]])
    mean, covariance = toplines.moments(features, label, torch.tensor([4, 8, 4]), four)
    torch.testing.assert_close((mean, covariance), (twice.mean(0), twice.T.cov()))
    weight = torch.tensor([1.5, 0.5, 1.0], dtype=torch.float64)[label].numpy()
    mean, covariance = toplines.moments(features, label, torch.tensor([6, 2, 4]), four)
    np.testing.assert_allclose(mean, np.average(features, axis=0, weights=weight))
    np.testing.assert_allclose(covariance, np.cov(features.numpy().T, aweights=weight, ddof=0) * 12 / 11)


# ---- the law of Gaussian classes --------------------------------------------------------------------------

SCALE = torch.linspace(1.5, 0.5, SIZE, dtype=torch.float64)
MEANS = 1.5 * torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
EVEN = torch.ones(CLASSES, dtype=torch.float64) / CLASSES


def fresh(g: torch.Generator, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of new images, `counts` of each class."""
    label = torch.arange(CLASSES).repeat_interleave(counts)
    return MEANS[label] + SCALE * torch.randn(len(label), SIZE, generator=g, dtype=torch.float64), label


def even(count: int) -> torch.Tensor:
    return torch.full((CLASSES,), count // CLASSES)


def drawn(g: torch.Generator, count: int, chance: bool) -> torch.Tensor:
    """The features of N images, as rows without and with given labels have them."""
    counts = torch.multinomial(EVEN, count, True, generator=g).bincount(minlength=CLASSES) if chance else even(count)
    return fresh(g, counts)[0]


@pytest.mark.parametrize("count", [400, 2000])
def test_what_classes_by_chance_cost(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """1/N (Σ p ‖m‖² + ½ Σ_ij Var_p(M_ij)/(λ_i + λ_j)), to first order; with and without images to spare."""
    g = torch.Generator().manual_seed(3)
    (features, label), test = fresh(g, even(2000)), statistics(fresh(g, even(2000))[0])
    # Every class has its mean and its covariance exactly, so that nothing but the proportions is left to chance.
    for k in range(CLASSES):
        x = features[label == k] - features[label == k].mean(0)
        features[label == k] = MEANS[k] + SCALE * (x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T)
    m = MEANS - MEANS.mean(0)
    moment = m[:, :, None] * m[:, None, :] + torch.diag(SCALE**2)
    values, basis = torch.linalg.eigh(moment.mean(0))
    turned = basis.T @ moment @ basis
    ratio = turned.var(0, unbiased=False) / (values[:, None] + values[None, :])
    expected = float(m.square().sum(1).mean() + ratio.sum() / 2) / count
    monkeypatch.setattr(toplines, "DRAWS", 1000)
    monkeypatch.setattr(toplines, "COST", 1e12)
    test = {"mu": MEANS.mean(0).numpy(), "sigma": moment.mean(0).numpy()}
    chance, still = (toplines.topline(features, label, test, count, by)[0] for by in (True, False))
    assert chance - still == pytest.approx(expected, rel=0.08)
    assert expected > still * (0.5 if count == 400 else 5)


@pytest.mark.parametrize("chance", [False, True])
def test_a_topline_is_the_distribution_of_fresh_sets(chance: bool) -> None:
    """With many training images: its mean, its spread and its two ends, against new draws from the law itself."""
    g, count = torch.Generator().manual_seed(5), 200
    test = statistics(fresh(g, even(200))[0])
    mean, low, high = toplines.topline(*fresh(g, even(10000)), test, count, chance)
    found = np.array([distances.frechet(statistics(drawn(g, count, chance)), test) for _ in range(600)])
    assert mean == pytest.approx(found.mean(), rel=0.08)
    assert (high - low) / 3.92 == pytest.approx(found.std(), rel=0.15)
    assert 0.93 <= ((low <= found) & (found <= high)).mean() <= 0.975
    assert 0.003 <= (found < low).mean() <= 0.05 and 0.003 <= (found > high).mean() <= 0.05


@pytest.mark.parametrize("chance", [False, True])
@pytest.mark.parametrize("count", [100, 300])
def test_the_interval_holds_fresh_sets(chance: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few training images, N of 300: over new halves, about 95 of 100 new sets, and the mean is theirs."""
    g = torch.Generator().manual_seed(11)
    monkeypatch.setattr(toplines, "DRAWS", 25)
    held, means, found = [], [], []
    for _ in range(120):
        test = statistics(fresh(g, even(300))[0])
        mean, low, high = toplines.topline(*fresh(g, even(300)), test, count, chance)
        found.append(distances.frechet(statistics(drawn(g, count, chance)), test))
        means.append(mean)
        held.append(low <= found[-1] <= high)
    assert 0.88 <= np.mean(held) <= 0.99
    assert np.mean(means) == pytest.approx(np.mean(found), rel=0.1)


def test_all_of_the_training_half_is_one_set() -> None:
    """At N = n the stratified mean is that half's own FID; chance costs more; the draws are the same at every call."""
    g = torch.Generator().manual_seed(2)
    (features, label), test = fresh(g, even(300)), statistics(fresh(g, even(300))[0])
    mean, low, high = toplines.topline(features, label, test, 300, False)
    assert mean == pytest.approx(distances.frechet(statistics(features), test), rel=1e-9)
    assert low < mean < high
    other = toplines.topline(features, label + 3, test, 300, True)
    assert other[0] > 1.2 * mean and other == toplines.topline(features, label, test, 300, True)


def test_chance_on_the_digits() -> None:
    """N = 300 new images of the training split with multinomial classes, drawn by numpy: the same ratio, near two."""
    rng, digits = np.random.default_rng(0), load_digits()
    projected = digits.images.reshape(-1, 64) @ rng.normal(size=(64, 12)) / 30
    order = rng.permutation(1797)
    train, test, labels = projected[order[:898]], projected[order[898:]], digits.target[order[:898]]
    to = statistics(torch.from_numpy(test))
    classes, share = [np.flatnonzero(labels == k) for k in range(10)], np.bincount(labels) / 898

    def mean(counts: Callable[[], np.ndarray]) -> float:
        sets = [np.concatenate([rng.permutation(c)[:k] for c, k in zip(classes, counts(), strict=True)]) for _ in draws]
        return float(np.mean([distances.frechet(statistics(torch.from_numpy(train[s])), to) for s in sets]))

    draws = range(400)
    fixed = proportional(torch.from_numpy(np.bincount(labels)), 300).numpy()
    still, chance = mean(lambda: fixed), mean(lambda: rng.multinomial(300, share))
    features, label = torch.from_numpy(train), torch.from_numpy(labels)
    found = [toplines.topline(features, label, to, 300, by)[0] for by in (False, True)]
    assert found == pytest.approx([still, chance], rel=0.08)
    assert found[1] / found[0] == pytest.approx(chance / still, rel=0.08)


def test_dear_draws_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as COST pays for, never fewer than LEAST nor more than DRAWS: by count, in one topline."""
    g = torch.Generator().manual_seed(2)
    (features, label), test = fresh(g, even(50)), statistics(fresh(g, even(50))[0])
    calls = []
    real = toplines.shuffled
    monkeypatch.setattr(toplines, "shuffled", lambda *of: calls.append(of) or real(*of))
    for cost, expected in ((1.5e10, 200), (60 * 50 * SIZE**2, 60), (1.0, 25)):
        monkeypatch.setattr(toplines, "COST", cost)
        calls.clear()
        toplines.topline(features, label, test, 50, True)
        assert len(calls) == expected
