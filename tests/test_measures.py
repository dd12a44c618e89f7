"""KID, precision and recall, density and coverage, memorisation and scores: against other computations of the same
features, and what corruptions do to them."""

from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from oracles import DIGITS, PLANE, randn
from scipy.spatial import cKDTree
from scipy.special import softmax
from scipy.stats import entropy, mannwhitneyu
from sklearn.neighbors import NearestNeighbors

from ddpm.datasets.dataset import Data, Dataset, Split
from ddpm.errors import UserError
from ddpm.metrics import kid, scores
from ddpm.metrics.distances import in_order, nearest
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.pipeline import measures
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import write_tensors
from ddpm.pipeline.run import execute

torch.set_num_threads(1)
Tensor = torch.Tensor
IDENTITY = {"extractor": "identity", "weights": ""}


def numbers(evaluator: Evaluator, samples: Samples, *names: str) -> dict[str, float]:
    """What these metrics say of the samples."""
    found: dict[str, float] = {}
    for name in names:
        found |= Metric.make({"method": name}).compute(evaluator, samples)
    return found


@pytest.fixture(scope="module")
def clouds() -> tuple[Evaluator, Samples]:
    """Points in six dimensions, whose features are they themselves: 120 real ones, and 90 samples of another law."""
    test, train, ours = randn(0, 120, 6).float(), randn(1, 150, 6).float(), 0.8 * randn(2, 90, 6).float() + 0.4
    return Evaluator(Data(Split(train), Split(test), PLANE, 0), IDENTITY, None), Samples(ours)


def features(clouds: tuple[Evaluator, Samples]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the samples, the test split and the training split."""
    evaluator, samples = clouds
    return tuple(
        x.double().numpy() for x in (samples.images, evaluator.dataset.test.images, evaluator.dataset.train.images)
    )


# ---- against other computations ---------------------------------------------------------------------------


def test_kid_is_the_sum_over_pairs(clouds: tuple[Evaluator, Samples]) -> None:
    """Bińkowski et al. 2018, equation 4, term by term, for all rows; and over subsets its mean, within three errors."""
    ours, real, _ = features(clouds)
    real = real[:90]

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(np.dot(x, y) / 6 + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return sum(pairs) / len(pairs)

    expected = mean(ours, ours, True) + mean(real, real, True) - 2 * mean(ours, real, False)
    a, b = torch.from_numpy(ours), torch.from_numpy(real)
    assert float(kid.subset_distances(a, b, 1, 90)[0]) == pytest.approx(expected, rel=1e-9)
    each = kid.subset_distances(a, b, 200, 30)
    assert len(set(each.tolist())) == 200
    assert float(each.mean()) == pytest.approx(expected, abs=3 * float(each.std()) / 200**0.5)


def test_kid_is_of_half_of_the_smaller_set(clouds: tuple[Evaluator, Samples]) -> None:
    """50 subsets of 45 of 90 samples, whose spread stands beside the mean."""
    evaluator, samples = clouds
    found = numbers(evaluator, samples, "kid")
    each = kid.subset_distances(
        in_order(evaluator.sample_features(samples)), evaluator.real_features("test", False), 50, 45
    )
    assert found == {"kid": pytest.approx(float(each.mean())), "kid_subsets_std": pytest.approx(float(each.std()))}


def balls(centres: np.ndarray, k: int) -> np.ndarray:
    """The distance of every point to its k-th neighbour, itself left out, by scikit-learn."""
    return NearestNeighbors(n_neighbors=k).fit(centres).kneighbors()[0][:, -1]


def inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Whether (point, centre) lie within the centre's radius, by broadcast differences."""
    return np.sqrt(((points[:, None] - centres[None]) ** 2).sum(2)) <= radii[None]


def test_balls_are_scikit_learns(clouds: tuple[Evaluator, Samples]) -> None:
    """Precision and recall with k = 3, density and coverage with k = 5, each a count of points in balls."""
    ours, real, _ = features(clouds)
    found = numbers(*clouds, "precision", "recall", "density", "coverage")
    among, among_5 = inside(ours, real, balls(real, 3)), inside(ours, real, balls(real, 5))
    expected = {
        "precision": among.any(1).mean(),
        "recall": inside(real, ours, balls(ours, 3)).any(1).mean(),
        "density": among_5.sum() / (5 * len(ours)),
        "coverage": among_5.any(0).mean(),
    }
    assert found == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert len({round(value, 3) for value in expected.values()}) == 4


def test_one_good_point_again_and_again_has_precision_and_no_recall(clouds: tuple[Evaluator, Samples]) -> None:
    """The direction of both: the generated set is what collapses, not the real one."""
    evaluator = clouds[0]
    real = evaluator.dataset.test.images
    middle = real[real.square().sum(1).argmin()]
    found = numbers(
        evaluator, Samples(middle.expand(90, -1).contiguous()), "precision", "recall", "density", "coverage"
    )
    assert found["precision"] == 1 and found["recall"] < 0.02 and found["density"] >= 1 and found["coverage"] < 0.2


@pytest.mark.parametrize("name", ["precision", "density"])
def test_too_few_for_neighbours_are_refused(name: str) -> None:
    """Where an image has no k-th neighbour: the key, the number, and what would be right."""
    few = Evaluator(Data(Split(randn(0, 3, 2)), Split(randn(1, 3, 2)), PLANE, 0), IDENTITY, None)
    with pytest.raises(UserError, match=r"sampling.images: 3 images .* at least [46]"):
        numbers(few, Samples(randn(2, 3, 2).float()), name)


def test_nearest_is_a_trees(clouds: tuple[Evaluator, Samples]) -> None:
    """The k-th nearest by scipy's tree; 0 for equal points, however far they lie from 0."""
    ours, real, _ = features(clouds)
    for k in (1, 4):
        expected = cKDTree(real).query(ours, k=[k])[0][:, 0]
        found = nearest(torch.from_numpy(ours), torch.from_numpy(real), k, rows=7)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    far = torch.from_numpy(real) + 1e5
    assert torch.equal(nearest(far, far), torch.zeros(120).double())


def test_memorised_counts_near_neighbours(clouds: tuple[Evaluator, Samples]) -> None:
    """The share below the 5 % quantile of the test split's distances to the training split, and Mann & Whitney's z."""
    ours, real, train = features(clouds)
    found = numbers(*clouds, "memorised")
    tree = cKDTree(train)
    theirs, of_test = (tree.query(x)[0] for x in (ours, real))
    assert found["memorised"] == pytest.approx((theirs < np.quantile(of_test, 0.05)).mean(), rel=1e-9)
    u = mannwhitneyu(theirs, of_test).statistic
    assert found["memorised_z"] == pytest.approx((u - 90 * 120 / 2) / np.sqrt(90 * 120 * 211 / 12), rel=1e-9)


def test_copies_are_memorised() -> None:
    """Of samples of which a share are copies of training points, that share counts, and 5 % of the rest; z falls."""
    evaluator = Evaluator(Data(Split(randn(1, 400, 6)), Split(randn(0, 400, 6)), PLANE, 0), IDENTITY, None)
    fresh, copies, found = randn(3, 300, 6).float(), evaluator.dataset.train.images[:300].float(), []
    for share in (0, 60, 150, 300):
        mixed = torch.cat([copies[:share], fresh[share:]])
        found.append(numbers(evaluator, Samples(mixed), "memorised"))
        assert found[-1]["memorised"] == pytest.approx((share + 0.05 * (300 - share)) / 300, abs=0.03)
    assert found[-1]["memorised"] == 1 and abs(found[0]["memorised_z"]) < 3 and found[-1]["memorised_z"] < -15
    assert sorted(found, key=lambda f: -f["memorised_z"]) == found
    assert numbers(evaluator, Samples(copies, topline="by chance"), "memorised") == {}


def copied(evaluator: Evaluator, points: Tensor) -> tuple[float, float]:
    """`copied` and its z."""
    return tuple(numbers(evaluator, Samples(points.float()), "copied").values())


def test_copied_counts_what_is_nearest() -> None:
    """By scipy's tree of both splits: the excess of training points among the nearest; z by all 792 ways to make 7 of
    12 points the training split."""
    train, test, ours = randn(0, 7, 6), randn(1, 5, 6), randn(2, 90, 6).float()
    nearest_of = cKDTree(np.concatenate([train, test])).query(ours)[1]
    share, p = (nearest_of < 7).mean(), 7 / 12
    shares = [np.isin(nearest_of, chosen).mean() for chosen in combinations(range(12), 7)]
    found = copied(Evaluator(Data(Split(train), Split(test), PLANE, 0), IDENTITY, None), ours)
    assert np.mean(shares) == pytest.approx(p)
    assert found == pytest.approx(((share - p) / (1 - p), (share - p) / np.std(shares)), rel=1e-9)


@pytest.mark.parametrize("sizes", [(400, 400), (900, 300), (300, 600)])
def test_copies_are_copied(sizes: tuple[int, int]) -> None:
    """Of samples of which a share are copies of training points that share, whatever the sizes of the splits."""
    train, test, fresh = (randn(i, n, 6) for i, n in enumerate((*sizes, 300)))
    evaluator = Evaluator(Data(Split(train), Split(test), PLANE, 0), IDENTITY, None)
    for share in (0, 60, 150, 300):
        found, z = copied(evaluator, torch.cat([train[:share], fresh[share:]]))
        error = 3 * (sizes[0] / sizes[1] * (1 - share / 300) / 100) ** 0.5
        assert found == pytest.approx(share / 300, abs=error) and (abs(z) < 3 if not share else z > share / 60)
    assert found == 1


def test_contracted_samples_are_near_and_not_copied() -> None:
    """Points of neither split, pulled to the mean of their class as guidance pulls: the distances to the training split
    call them memorised, their nearest neighbours do not. All of them at one place say nothing at all."""
    label = torch.arange(900) % 3
    means = 6 * torch.eye(6)[label]
    train, test, fresh = (means + randn(i, 900, 6) for i in range(3))
    evaluator = Evaluator(Data(Split(train), Split(test), PLANE, 0), IDENTITY, None)
    contracted = means + 0.4 * (fresh - means)
    near = numbers(evaluator, Samples(contracted.float()), "memorised")
    assert near["memorised"] > 0.1 and near["memorised_z"] < -10
    found, z = copied(evaluator, contracted)
    assert abs(found) < 0.15 and abs(z) < 2.5
    assert abs(copied(evaluator, means[:1].expand(900, -1) + 0.01)[1]) < 1.1


def test_real_rows_leave_the_image_itself_out() -> None:
    """0 where the splits are alike, also where they are of unlike sizes, and more where they are not; no z."""
    train, test = randn(0, 600, 6), randn(1, 300, 6)
    for shift, low, high in ((0.0, -0.25, 0.25), (1.5, 0.5, 1.0)):
        evaluator = Evaluator(Data(Split(train), Split(test + shift), PLANE, 0), IDENTITY, None)
        found = numbers(evaluator, Samples(train[:400].float(), topline="stratified"), "copied")
        assert list(found) == ["copied"] and low < found["copied"] < high


def test_vendi_is_of_the_kernels_eigenvalues() -> None:
    """exp of the entropy of K/N, N × N; 1 for one sample again and again, and the number of those without anything in
    common."""
    x = randn(5, 30, 7).double()
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 30).clip(1e-300)
    assert scores.vendi(x) == pytest.approx(np.exp(entropy(values)), rel=1e-6)
    assert scores.vendi(x[:1].expand(9, -1)) == pytest.approx(1) and scores.vendi(3 * torch.eye(7)) == pytest.approx(7)


# ---- with the classifier ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """The digits, whose features are a small classifier's."""
    train, test = Dataset.make({"method": "digits", "seed": 0}).load()
    layout = Layout(tmp_path_factory.mktemp("measures"))
    halves = {f"{n}_{p}": getattr(s, p) for n, s in (("train", train), ("test", test)) for p in ("images", "labels")}
    write_tensors(layout.output("data"), halves, {"space": DIGITS.spec, "classes": 10})
    settings = {"width": 8, "features": 16, "epochs": 10, "batch": 64, "learning_rate": 3e-3, "seed": 0}
    execute("classifier", {"data": {}, "classifier": settings, "threads": 1}, "", layout)
    spec = {"extractor": "classifier", "weights": ""}
    return Evaluator(Data(train, test, DIGITS, 10), spec, layout.output("classifier"))


def test_inception_score_is_of_ten_parts(digits: Evaluator) -> None:
    """exp(mean KL) of every part by scipy's entropy; the parts are torch-fidelity's, of the samples in one order."""
    samples = Samples(digits.dataset.test.images[:300])
    order = np.random.RandomState(2020).permutation(300)
    p = softmax(in_order(digits.sample_logits(samples)).numpy()[order], axis=1)
    each = [np.exp(np.mean([entropy(q, part.mean(0)) for q in part])) for part in np.split(p, 10)]
    found = numbers(digits, samples, "inception_score")
    assert found == {
        "inception_score": pytest.approx(np.mean(each), rel=1e-6),
        "inception_score_parts_std": pytest.approx(np.std(each), rel=1e-6),
    }
    assert 2 < found["inception_score"] < 10


def test_vendi_score_is_a_mean_over_the_classes_that_are_seen(digits: Evaluator) -> None:
    """Of each class the score of its features, whatever label was asked for."""
    samples = Samples(digits.dataset.test.images[:200], torch.zeros(200, dtype=torch.int64))
    seen = digits.predict(samples.images)
    each = [scores.vendi(digits.features(samples.images[seen == of])) for of in seen.unique()]
    assert numbers(digits, samples, "vendi")["vendi"] == pytest.approx(np.mean(each), rel=1e-5)


def blurred(images: Tensor, times: int) -> Tensor:
    """The mean of 3 × 3 pixels, some times."""
    x = images.double()
    for _ in range(times):
        x = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x.round().to(torch.uint8)


@cache
def corrupted(kind: str, strength: int, digits: Evaluator) -> Samples:
    """600 fresh images, the 300 first of both splits, corrupted: noise of this σ, blur, this many classes missing, or
    each image this many times."""
    halves = digits.dataset.test, digits.dataset.train
    images, labels = (torch.cat([getattr(s, p)[:300] for s in halves]) for p in ("images", "labels"))
    if kind == "noise":
        images = (images + strength * randn(7, *images.shape)).round().clamp(0, 16).to(torch.uint8)
    elif kind == "blur":
        images = blurred(images, strength)
    elif kind == "missing":
        kept = (labels >= strength).nonzero()[:, 0]
        index = kept.repeat(3)[:600]  # 240 images at least are left
        images, labels = images[index], labels[index]
    elif kind == "twice":
        index = torch.arange(600) // 2**strength
        images, labels = images[index], labels[index]
    elif kind == "labels":
        labels = torch.where(torch.arange(600) < 100 * strength, (labels + 1) % 10, labels)
    return Samples(images, labels)


FALLS = {
    "noise": ("precision", "recall", "density", "coverage", "inception_score", "label_accuracy"),
    "blur": ("coverage", "inception_score", "label_accuracy", "diversity"),
    "missing": ("recall", "coverage", "inception_score"),
    "twice": ("recall", "coverage", "vendi"),
    "labels": ("label_accuracy",),
}
RISES = {"noise": ("fid", "fid_binarized", "kid"), "blur": ("fid", "fid_binarized", "kid"), "missing": ("fid", "kid")}
RISES |= {"twice": ("fid",)}
LEVELS = {"noise": (0, 2, 4, 8), "blur": (0, 1, 2), "missing": (0, 3, 6), "twice": (0, 3, 6), "labels": (0, 2, 5)}


@pytest.mark.parametrize("kind", LEVELS)
def test_corruptions_move_metrics_in_their_direction(digits: Evaluator, kind: str) -> None:
    """Each worse than the one before, in every metric that can see it."""
    found = {}
    for strength in LEVELS[kind]:
        samples = corrupted(kind, strength, digits)
        found[strength] = numbers(digits, samples, *FALLS[kind], *RISES.get(kind, ()))
    for name in (*FALLS[kind], *RISES.get(kind, ())):
        values = [of[name] for of in found.values()]
        sign = -1 if name in FALLS[kind] else 1
        assert measures.metrics()[name]["direction"] == {-1: "↑", 1: "↓"}[sign]
        assert all(sign * b > sign * a for a, b in pairwise(values)), (name, values)
