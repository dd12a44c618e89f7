"""Distances between sets."""

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from ddpm import rng
from ddpm.errors import UserError

Tensor = torch.Tensor


def enough(n: int, d: int) -> None:
    """Refuse a covariance of d features that n images cannot give."""
    if n <= d:
        raise UserError(f"sampling.images: {n} images for {d} features; FID needs more images than features")


def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance as torch-fidelity wants them; refuses what would only look like a FID."""
    enough(*features.shape)
    return fid_features_to_statistics(features)


def frechet(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖µ_a − µ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Heusel et al. 2017), by torch-fidelity."""
    return fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]


def in_order(features: Tensor) -> Tensor:
    """The same features (N, D), sorted along one fixed direction: what draws subsets of them, or parts, then depends on
    no order of the samples."""
    direction = rng.normal(rng.key("order of features"), torch.zeros(1), 0, (features.shape[1],), torch.float64)[0]
    return features[(features @ direction).argsort(stable=True)]


def neighbours(features: Tensor, to: Tensor, k: int = 1, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """The distance (N,) of every row of features (N, D) to the k-th nearest of `to` (M, D), and its place there (N,).

    |a|² + |b|² − 2 a·b finds the k nearest; their distances are those of exact differences, 0 for equal rows.
    """
    distances, places = [], []
    for part in features.split(rows):
        index = torch.cdist(part, to).topk(k, largest=False).indices
        last = (part[:, None] - to[index]).norm(dim=2).max(1)
        distances.append(last.values)
        places.append(index.gather(1, last.indices[:, None])[:, 0])
    return torch.cat(distances), torch.cat(places)


def nearest(features: Tensor, to: Tensor, k: int = 1, rows: int = 1000) -> Tensor:
    """The distance (N,) alone of `neighbours`."""
    return neighbours(features, to, k, rows)[0]


def within_classes(features: Tensor, labels: Tensor) -> float:
    """Σ ‖f − mean of its class‖²/(N − classes): the variance of features (N, D) within the classes `labels` (N,)."""
    _, label = labels.unique(return_inverse=True)
    count = torch.bincount(label)
    means = torch.zeros(len(count), features.shape[1], dtype=features.dtype).index_add(0, label, features)
    error = features - (means / count[:, None])[label]
    return float(error.square().sum()) / max(1, len(features) - len(count))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """The mean distance by which the points a (N, D) must be moved to become b (M, D), as seen from random directions.

    1/L Σ_l W₁(a u_l, b u_l) with unit vectors u_l, in units of the data (Rabin et al. 2011). Zero for equal sets alone,
    where the Fréchet distance compares no more than mean and covariance.
    """
    u = rng.normal(rng.key("directions"), torch.arange(directions), 0, tuple(a.shape[1:]), torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    pairs = zip((a.double() @ u.T).T.numpy(), (b.double() @ u.T).T.numpy(), strict=True)
    return float(np.mean([wasserstein_distance(x, y) for x, y in pairs]))
