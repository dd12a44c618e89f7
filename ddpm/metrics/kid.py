"""The kernel distance between the features of samples and of the test split."""

from dataclasses import dataclass

import torch
from torch_fidelity.metric_kid import mmd2

from ddpm import rng
from ddpm.metrics.distances import in_order
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.parameters import Count

Tensor = torch.Tensor


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y/D + 1)³ of all pairs of rows."""
    found = x @ y.T / x.shape[1] + 1
    return found * found * found  # a power would take ten times as long


def subset_distances(a: Tensor, b: Tensor, subsets: int, size: int) -> Tensor:
    """The unbiased squared discrepancy of `size` rows of a (N, D) and as many of b (M, D), of every pair of random
    subsets: float64 (subsets,)."""
    found = []
    for draw in range(subsets):
        x, y = (rows[rng.permutation(len(rows), "kid", side, draw)[:size]] for side, rows in (("a", a), ("b", b)))
        found.append(float(mmd2(*(kernel(*pair).numpy() for pair in ((x, x), (x, y), (y, y))))))
    return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class Kid(Metric):
    """The squared maximum mean discrepancy to the test split with the kernel (x·y/D + 1)³ (Bińkowski et al. 2018),
    by torch-fidelity: the mean over random subsets of both sets, and its standard deviation over them.

    Unbiased, so that it is about 0 for real images at any N, and may be below. Subsets hold `size` images, as in the
    paper, and at most half of the smaller set, so that they differ.
    """

    method = "kid"
    title = "KID"
    shown = "table.csv"
    details = ("subsets_std",)
    subsets: Count = 50
    size: Count = 1000

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        ours, real = in_order(evaluator.sample_features(samples)), evaluator.real_features("test", False)
        size = max(2, min(self.size, len(ours) // 2, len(real) // 2))
        found = subset_distances(ours, real, self.subsets, size)
        return {self.method: float(found.mean()), f"{self.method}_subsets_std": float(found.std())}
