"""Whether samples are copies of training images, which FID cannot see: it is best for copies."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.stats import rankdata

from ddpm.metrics.distances import nearest, neighbours
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.parameters import Fraction

Tensor = torch.Tensor


@dataclass(frozen=True)
class Memorised(Metric):
    """The share of samples that are nearer to a training image than nearly all test images are.

    d(x) = min_i |f(x) − f(x_i)| over all training images x_i, in the extractor's features f. A sample y counts where
    d(y) < q, the 5 % quantile of d over the test split: about 0.05 for new real images, 1 for copies, and 0 for samples
    far from all data, whose FID says what is wrong with them. `memorised_z` is the test for data-copying of Meehan,
    Chaudhuri & Dasgupta (2020) in one cell: Mann & Whitney's U of d over the samples against d over the test split, as
    a standard normal z. Below −3 samples are nearer to the training images than new images are, above 3 farther. Real
    rows are training images, and have neither.

    Samples that are more typical than real ones, as guided ones are, lie nearer to all images, those of the training
    split among them: both numbers take this for memorisation, `Copied` does not.
    """

    method = "memorised"
    title = "Memorised"
    details = ("z",)
    near: Fraction = 0.05  # the share of test images that count as near

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        if samples.topline is not None:
            return {}
        ours, _ = _to_training(evaluator, samples, 1)
        real = _of_test(evaluator)
        share = float((ours < real.quantile(self.near)).double().mean())
        return {self.method: share, f"{self.method}_z": rank_z(ours, real)}


@dataclass(frozen=True)
class Copied(Metric):
    """The share of samples that are copies of training images, by what is nearest to them, whatever their distance.

    Of n training images and m test images, the nearest one to a new sample is of the training split with probability
    p = n/(n + m), wherever the sample lies, since nothing but chance has put an image into this split or that; to a
    copy it always is. With s the share of samples whose nearest image is of the training split,

        copied = (s − p)/(1 − p)

    has the mean f where a share f are copies: 0 of new samples, give or take, 1 of copies. `copied_z` is s − p over its
    standard deviation were the splits drawn anew from all n + m images (`exchanged_z`). Of real rows the image itself
    is left out: they have 0 where both splits look alike to the extractor, and else about what new images of the
    training split have.
    """

    method = "copied"
    title = "Copied"
    details = ("z",)

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        real, n = samples.topline is not None, len(evaluator.dataset.train.images)
        of_train, train_place = _to_training(evaluator, samples, 2 if real else 1)  # the first is the image itself
        test = evaluator.real_features("test", False)
        of_test, test_place = neighbours(evaluator.sample_features(samples), test)
        nearer = of_train < of_test
        p = (n - real) / (n - real + len(test))
        share = float(nearer.double().mean())
        found = {self.method: (share - p) / (1 - p)}
        if not real:
            hits = torch.where(nearer, train_place, n + test_place).bincount()
            found[f"{self.method}_z"] = exchanged_z(share, hits, n, len(test))
        return found


def exchanged_z(share: float, hits: Tensor, n: int, m: int) -> float:
    """(s − p)/√(p (1 − p) M/(M − 1) (Σ_i h_i² − 1/M)), M = n + m, p = n/M: how far s = Σ_{i ≤ n} h_i is from what it is
    when n of the M images are drawn by chance. hits: the M numbers h_i N of samples that image i is the nearest to, or
    the first of them up to the last that is not 0."""
    total, weight = n + m, hits.double() / hits.sum()
    p = n / total
    variance = p * (1 - p) * total / (total - 1) * float(weight.square().sum() - 1 / total)
    return (share - p) / variance**0.5 if variance > 0 else 0.0


def rank_z(a: Tensor, b: Tensor) -> float:
    """(U − mn/2)/√(mn (m + n + 1)/12), U the number of pairs where a (m,) exceeds b (n,): about standard normal where
    both are of one distribution, below 0 where a is smaller (Mann & Whitney 1947)."""
    m, n = len(a), len(b)
    larger = rankdata(torch.cat([a, b]).numpy())[:m].sum() - m * (m + 1) / 2
    return float((larger - m * n / 2) / (m * n * (m + n + 1) / 12) ** 0.5)


@lru_cache(maxsize=1)
def _to_training(evaluator: Evaluator, samples: Samples, k: int) -> tuple[Tensor, Tensor]:
    """The distance of every sample to the k-th nearest training image, (N,), and which that is, (N,)."""
    return neighbours(evaluator.sample_features(samples), evaluator.real_features("train", False), k)


@lru_cache(maxsize=1)
def _of_test(evaluator: Evaluator) -> Tensor:
    """d of every image of the test split, (M,)."""
    return nearest(evaluator.real_features("test", False), evaluator.real_features("train", False))
