"""Fidelity and diversity apart, from balls around images in the space of features: each reaches to its k-th neighbour.

Of N samples y and M real images x of the test split, r_k(x) being the distance of x to its k-th neighbour among x:
precision and density ask how many samples lie among real images, recall and coverage how much of the real images there
is among the samples.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ddpm.errors import UserError
from ddpm.metrics.distances import nearest
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.parameters import Count

Tensor = torch.Tensor
# How many images are compared with all others at once.
ROWS = 1000


def enough(count: int, k: int) -> None:
    """Refuse fewer images than have a k-th neighbour."""
    if count <= k:
        raise UserError(f"sampling.images: {count} images have no {k} neighbours each: it must be at least {k + 1}")


@lru_cache(maxsize=1)
def precision_recall(evaluator: Evaluator, samples: Samples, k: int) -> tuple[float, float]:
    """Both, by torch-fidelity, which takes the generated set first."""
    ours, real = evaluator.sample_features(samples), evaluator.real_features("test", False)
    enough(min(len(ours), len(real)), k)
    options = {"prc_neighborhood": k, "prc_batch_size": ROWS, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(ours, real, **options)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


@lru_cache(maxsize=1)
def density_coverage(evaluator: Evaluator, samples: Samples, k: int) -> tuple[float, float]:
    """1/(kN) Σ_x #{y: |x − y| < r_k(x)}, and the share of real images x with any such sample y."""
    ours, real = evaluator.sample_features(samples), evaluator.real_features("test", False)
    enough(len(real), k)
    inside = torch.zeros(len(real), dtype=torch.int64)
    # A sample that is the k-th neighbour itself lies on the ball, whatever the rounding.
    radii = _radii(evaluator, k) * (1 - 1e-6)
    for start in range(0, len(real), ROWS):
        rows = slice(start, start + ROWS)
        inside[rows] = (torch.cdist(real[rows], ours) < radii[rows, None]).sum(1)
    return float(inside.sum()) / (k * len(ours)), float((inside > 0).double().mean())


@lru_cache(maxsize=1)
def _radii(evaluator: Evaluator, k: int) -> Tensor:
    """The distance (M,) of every real image to its k-th neighbour among them."""
    real = evaluator.real_features("test", False)
    return nearest(real, real, k + 1)  # the first is the image itself


@dataclass(frozen=True)
class Precision(Metric):
    """The share of samples that lie in the ball of any real image (Kynkäänniemi et al. 2019), k = 3 as there."""

    method = "precision"
    title = "Precision"
    direction = "↑"
    k: Count = 3

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: precision_recall(evaluator, samples, self.k)[0]}


@dataclass(frozen=True)
class Recall(Metric):
    """The share of real images that lie in the ball of any sample (Kynkäänniemi et al. 2019), k = 3 as there."""

    method = "recall"
    title = "Recall"
    direction = "↑"
    k: Count = 3

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: precision_recall(evaluator, samples, self.k)[1]}


@dataclass(frozen=True)
class Density(Metric):
    """In how many balls of real images a sample lies, over k (Naeem et al. 2020): about 1 for real images, and above
    for samples that crowd where real images do."""

    method = "density"
    title = "Density"
    direction = "↑"
    shown = "table.csv"
    k: Count = 5

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: density_coverage(evaluator, samples, self.k)[0]}


@dataclass(frozen=True)
class Coverage(Metric):
    """The share of real images in whose ball any sample lies (Naeem et al. 2020); 1 − 2^−k for real images where N = M,
    at least in high dimensions. Outliers among the samples, which make recall large, change nothing."""

    method = "coverage"
    title = "Coverage"
    direction = "↑"
    shown = "table.csv"
    k: Count = 5

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: density_coverage(evaluator, samples, self.k)[1]}
