"""Whether samples are copies of training images, which FID cannot see: it is best for copies."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.stats import rankdata

from ddpm.metrics.distances import nearest
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
    """

    method = "memorised"
    title = "Memorised"
    details = ("z",)
    near: Fraction = 0.05  # the share of test images that count as near

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        if samples.topline is not None:
            return {}
        ours = nearest(evaluator.sample_features(samples), evaluator.real_features("train", False))
        real = _of_test(evaluator)
        share = float((ours < real.quantile(self.near)).double().mean())
        return {self.method: share, f"{self.method}_z": rank_z(ours, real)}


def rank_z(a: Tensor, b: Tensor) -> float:
    """(U − mn/2)/√(mn (m + n + 1)/12), U the number of pairs where a (m,) exceeds b (n,): about standard normal where
    both are of one distribution, below 0 where a is smaller (Mann & Whitney 1947)."""
    m, n = len(a), len(b)
    larger = rankdata(torch.cat([a, b]).numpy())[:m].sum() - m * (m + 1) / 2
    return float((larger - m * n / 2) / (m * n * (m + n + 1) / 12) ** 0.5)


@lru_cache(maxsize=1)
def _of_test(evaluator: Evaluator) -> Tensor:
    """d of every image of the test split, (M,)."""
    return nearest(evaluator.real_features("test", False), evaluator.real_features("train", False))
