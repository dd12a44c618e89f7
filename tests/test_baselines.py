"""The rows without a network: exact bits/dim by fractions and by numpy, and draws that follow their law."""

from fractions import Fraction
from itertools import product
from math import log, log2, prod

import numpy as np
import pytest
import torch
from oracles import DIGITS

from ddpm import rng
from ddpm.baselines import Baseline
from ddpm.bound import prior_term, vlb_term
from ddpm.datasets.dataset import Data, Split, reference, stratified
from ddpm.datasets.digits import Digits
from ddpm.datasets.points import GaussianMixture
from ddpm.metrics.toplines import by_chance
from ddpm.schedules import Linear
from ddpm.spaces import Pixels, Space

torch.set_num_threads(1)

LEVELS = 3
# Images of two pixels; no 2 in the first pixel, no image of class 2, another number of every class.
TRAIN = [((0, 1), 0), ((0, 2), 0), ((1, 2), 0), ((1, 0), 1)]
CLASSES = 3


def tiny(train: list = TRAIN) -> Data:
    """A data set of 1 × 2 pixels; every possible image is in the test split."""
    images, labels = zip(*train, strict=True)
    everything = torch.tensor(list(product(range(LEVELS), repeat=2)), dtype=torch.uint8).reshape(-1, 1, 1, 2)
    half = Split(torch.tensor(images, dtype=torch.uint8).reshape(-1, 1, 1, 2), torch.tensor(labels))
    return Data(
        half, Split(everything, torch.zeros(len(everything), dtype=torch.int64)), Pixels((1, 1, 2), LEVELS), CLASSES
    )


def baseline(name: str, dataset: Data) -> Baseline:
    return Baseline.named(name)(dataset)


def half_added(count: int, total: int, of: int) -> Fraction:
    """Krichevsky & Trofimov's estimate (n + ½)/(N + of/2)."""
    return (count + Fraction(1, 2)) / (total + Fraction(of, 2))


def independent(image: tuple[int, ...], images: list[tuple[int, ...]]) -> Fraction:
    """Π_d p(x_d) of independent pixels, by counting."""
    return prod(half_added(sum(i[d] == k for i in images), len(images), LEVELS) for d, k in enumerate(image))


def law(name: str, image: tuple[int, ...]) -> Fraction:
    """p(image), exactly."""
    if name == "noise":
        return Fraction(1, LEVELS ** len(image))
    if name == "histogram":
        return independent(image, [i for i, _ in TRAIN])
    of = {y: [i for i, label in TRAIN if label == y] for y in range(CLASSES)}
    return sum(half_added(len(of[y]), len(TRAIN), CLASSES) * independent(image, of[y]) for y in of)


LAWS = ("noise", "histogram", "class-histogram")


@pytest.mark.parametrize("name", LAWS)
def test_bits_of_every_image_of_a_tiny_space(name: str) -> None:
    """−log2 p/D of all nine images, counted by hand in fractions, whose sum over the space is exactly 1."""
    dataset = tiny()
    images = list(product(range(LEVELS), repeat=2))
    exact = [law(name, image) for image in images]
    assert sum(exact) == 1
    found = baseline(name, dataset).bits_per_dim(dataset.test.images)
    assert found.dtype == torch.float64 and found.shape == (9,)
    assert found.tolist() == pytest.approx([-log2(p) / 2 for p in exact], rel=1e-14)
    assert float((-2 * found).exp2().sum()) == pytest.approx(1, rel=1e-14)


def test_two_numbers_by_hand() -> None:
    """(2 + ½)/(4 + 3/2) · (1 + ½)/(4 + 3/2) = 15/121 for the image (0, 1); a level never seen has 1/11."""
    histogram = baseline("histogram", tiny())
    images = torch.tensor([[0, 1], [2, 1]], dtype=torch.uint8).reshape(2, 1, 1, 2)
    expected = [-log2(15 / 121) / 2, -log2(1 / 11 * 3 / 11) / 2]
    assert histogram.bits_per_dim(images).tolist() == pytest.approx(expected, rel=1e-14)


def test_a_mixture_of_one_class_is_the_histogram() -> None:
    """Where there is one class, the mixture is the histogram."""
    images = torch.randint(0, 5, (30, 1, 3, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    half = Split(images, torch.zeros(30, dtype=torch.int64))
    dataset = Data(half, half, Pixels((1, 3, 3), 5), 1)
    mixture, single = (baseline(n, dataset).bits_per_dim(images[:7]) for n in ("class-histogram", "histogram"))
    assert torch.equal(mixture, single)


@pytest.fixture(scope="module")
def digits() -> Data:
    train, test = Digits().load()
    return Data(train, test, DIGITS, 10)


def test_digits_against_numpy(digits: Data) -> None:
    """Own loops over classes and pixels; the values of the default table."""
    train, test = (half.images.numpy().reshape(-1, 64) for half in (digits.train, digits.test))
    labels = digits.train.labels.numpy()

    def log_p(images: np.ndarray) -> np.ndarray:
        total = np.zeros(len(test))
        for d in range(64):
            counts = np.array([np.sum(images[:, d] == k) for k in range(17)])
            total += np.log2((counts + 0.5) / (len(images) + 8.5))[test[:, d]]
        return total

    histogram = -log_p(train) / 64
    joint = [np.log2((np.sum(labels == y) + 0.5) / (len(labels) + 5)) + log_p(train[labels == y]) for y in range(10)]
    mixture = -np.logaddexp2.reduce(joint) / 64
    for name, expected in (("histogram", histogram), ("class-histogram", mixture)):
        np.testing.assert_allclose(
            baseline(name, digits).bits_per_dim(digits.test.images).numpy(), expected, rtol=1e-12
        )
    assert round(float(histogram.mean()), 3) == 2.436 and round(float(mixture.mean()), 3) == 2.263
    assert set(baseline("noise", digits).bits_per_dim(digits.test.images).tolist()) == {log2(17)}


def test_the_bound_of_the_histograms_own_denoiser_lies_just_above_it(digits: Data) -> None:
    """E[x0 | x_t] of independent pixels, Σ_k g_k p(k) N(x_t; α g_k, σ²)/Σ_k …, in the variational bound on `linear`.

    The bound is above the exact bits/dim by what 1 000 Gaussian steps lose, and t = 2 … 5 cost next to nothing: there σ
    is a fifth of a grey level at most, and the exact denoiser rounds.
    """
    histogram, schedule = baseline("histogram", digits), Linear(steps=1000, beta_first=1e-4, beta_last=0.02)
    images = reference(digits, "test", 20)
    x0, log_p = digits.space.encode(images).double(), histogram.probabilities[1][0].log()
    grey, terms = torch.linspace(-1, 1, 17, dtype=torch.float64), []
    for k in range(1, 1001):
        t = torch.full((20, 1, 1, 1), float(k), dtype=torch.float64)
        eps = rng.normal(rng.key("bound"), torch.arange(20), k, (1, 8, 8), torch.float64)
        x_t, (alpha, sigma) = schedule.noisy(x0, eps, t), (schedule.alpha(t), schedule.sigma(t))
        away = x_t.reshape(20, 64, 1) - alpha.reshape(20, 1, 1) * grey
        mean = ((log_p - away.square() / (2 * sigma.reshape(20, 1, 1) ** 2)).softmax(2) * grey).sum(2)
        terms.append(vlb_term(schedule, x0, x_t, mean.reshape(x0.shape), None, t, DIGITS) / log(2))
    term = torch.stack(terms).mean(1)
    excess = float(term.sum() + prior_term(schedule, x0).mean() / log(2) - histogram.bits_per_dim(images).mean())
    assert 0.05 < excess < 0.25
    assert float(term[1:5].sum()) < 0.1


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_law(name: str) -> None:
    """Frequencies of all nine images among 20 000 against the law that `bits_per_dim` evaluates: χ² of 8 degrees."""
    count, images = 20000, list(product(range(LEVELS), repeat=2))
    drawn = baseline(name, tiny()).draw(count)
    assert drawn.dtype == torch.uint8 and drawn.shape == (count, 1, 1, 2)
    seen = torch.bincount(3 * drawn[:, 0, 0, 0].long() + drawn[:, 0, 0, 1], minlength=9).tolist()
    expected = [count * float(law(name, image)) for image in images]
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 26.1  # one in a thousand


def test_draws_are_the_same_at_every_call_and_of_any_number(digits: Data) -> None:
    """Image i is a function of its number; pixels of digits that are always 0 are nearly always 0."""
    for name in LAWS:
        one, other = baseline(name, digits), baseline(name, digits)
        assert torch.equal(one.draw(50), other.draw(80)[:50])
    drawn = baseline("class-histogram", digits).draw(898)
    always = (digits.train.images == 0).all(0)
    assert float((drawn[:, always] == 0).double().mean()) > 0.9 and int(drawn.max()) == 16


def test_class_draws_keep_the_pixels_of_a_class_together() -> None:
    """Two classes of opposite images: mixed pixels are as rare as half a count makes them."""
    dataset = tiny([((0, 0), 0)] * 500 + [((2, 2), 2)] * 500)
    first, second = baseline("class-histogram", dataset).draw(1000).reshape(-1, 2).T.tolist()
    assert sum(a == b for a, b in zip(first, second, strict=True)) > 980
    assert 400 < sum(a == 0 for a in first) < 600


def test_real_images_and_points_have_no_law(digits: Data) -> None:
    """The ceiling is the training split itself, stratified; points have noise over their rectangle, and no bits/dim."""
    real = baseline("real", digits)
    assert (
        torch.equal(real.draw(20), stratified(digits.train, 20, "real row"))
        and real.bits_per_dim(real.draw(20)) is None
    )
    train, test = GaussianMixture(train=100, test=10).load()
    uniform = baseline("noise", Data(train, test, Space.fit({"method": "points"}, train.images), 2))
    points = uniform.draw(1000)
    assert points.dtype == torch.float32 and uniform.bits_per_dim(points) is None
    low, high = train.images.amin(0), train.images.amax(0)
    assert ((points >= low) & (points <= high)).all() and (points.std(0) > 0.25 * (high - low)).all()


def test_classes_by_chance_are_the_toplines_first_set(digits: Data) -> None:
    """Class counts by chance; no image twice but of a class of which more are wanted than there are, and there all of
    them; without labels the row is that of real data."""
    count = len(digits.train.images)
    drawn = baseline("real-by-chance", digits).draw(count)
    place = {image.numpy().tobytes(): i for i, image in enumerate(digits.train.images)}
    found = torch.tensor([place[image.numpy().tobytes()] for image in drawn])
    sizes, times = digits.train.groups.bincount(), found.bincount(minlength=count)
    wanted = by_chance(sizes, count, 0)
    assert torch.equal(digits.train.groups[found].bincount(), wanted) and not torch.equal(wanted, sizes)
    for label, (size, asked) in enumerate(zip(sizes.tolist(), wanted.tolist(), strict=True)):
        of = times[digits.train.groups == label]
        assert of.sum() == asked and of.max() - of.min() <= 1 and of.max() == -(-asked // size)
    unlabelled = Data(Split(digits.train.images), digits.test, digits.space, 0)
    assert torch.equal(*(baseline(name, unlabelled).draw(50) for name in ("real", "real-by-chance")))
