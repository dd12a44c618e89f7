"""Toplines: the FID against the test split that fresh real images get at the same N, its mean and its interval.

A row of the table can be no better than N new images of the data's own distribution would be, and those do not get 0:
with deviations δ of mean and covariance from its own, FID is near its least value a quadratic form in δ_N − δ_test, so
that it grows as 1/N + 1/N_test. There are two toplines, because N new images may come in two ways:

stratified: N images with classes in the training split's proportions, by largest remainder, as rows that are given
    labels have them (`sampling.draw_labels`).
by chance: class counts k ~ Multinomial(N, proportions), as a sampler that is given no labels has them. With few classes
    far apart this costs much: with m_c the means of the classes about the mean of all, p_c their shares, M_c their
    second moments about it and λ the eigenvalues of Σ_c p_c M_c, in whose basis M is written, to first order in 1/N

        E[FID] − E[FID stratified] = 1/N (Σ_c p_c ‖m_c‖² + ½ Σ_ij Var_p(M_ij)/(λ_i + λ_j))

Both are distances to one and the same test split, as every row's. Images of the training split are new to the test
split, though not to an extractor that was trained on them, and what separates the two splits (MNIST's have other
writers) belongs to the topline: a model can learn no more than the training split.
"""

import numpy as np
import torch
from scipy.stats import gamma

from ddpm import rng
from ddpm.datasets.dataset import proportional, ranks

Tensor = torch.Tensor
# Draws per topline: as many as cost about this many multiplications, and between these bounds.
COST, DRAWS, LEAST = 1.5e10, 200, 25


class Distance:
    """The Fréchet distance to fixed statistics (Heusel et al. 2017), many times: `fidelity.frechet`, only faster.

    tr (Σ Σ₀)^½ = Σ √eig(Lᵀ Σ L) with Σ₀ = L Lᵀ, which is symmetric.
    """

    def __init__(self, to: dict[str, np.ndarray]):
        self.mean, covariance = torch.from_numpy(to["mu"]), torch.from_numpy(to["sigma"])
        values, vectors = torch.linalg.eigh(covariance)
        self.root, self.trace = vectors * values.clamp(min=0).sqrt(), covariance.trace()

    def __call__(self, mean: Tensor, covariance: Tensor) -> float:
        roots = torch.linalg.eigvalsh(self.root.T @ covariance @ self.root).clamp(min=0).sqrt().sum()
        return float((mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * roots)


def by_chance(sizes: Tensor, count: int, draw: int) -> Tensor:
    """Multinomial(count, sizes/Σ sizes): how many of `count` images fall into each class, int64 (C,)."""
    u = rng.uniform(rng.key("classes by chance"), torch.arange(count), draw)
    edges = sizes.double().cumsum(0) / sizes.sum()
    return torch.searchsorted(edges[:-1], u).bincount(minlength=len(sizes))


def shuffled(label: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    """The images (n,) in a random order, and the place of each among its class in that order, from 0."""
    order = rng.permutation(len(label), "topline", draw)
    return order, ranks(label[order])


def moments(features: Tensor, label: Tensor, wanted: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the features (n, D) of `taken` (C,) images of the classes, which stand for
    `wanted` (C,) each: each has the weight wanted/taken, and all weights together are N."""
    weight = (wanted.to(features) / taken.clamp(min=1))[label][:, None]
    count = weight.sum()
    mean = (weight * features).sum(0) / count
    error = features - mean
    return mean, error.T @ (weight * error) / (count - 1)


def topline(
    features: Tensor, labels: Tensor, to: dict[str, np.ndarray], count: int, chance: bool
) -> tuple[float, float, float]:
    """The mean FID of `count` new real images, and the interval in which 95 % of such sets fall.

    features (n, D), labels (n,): all images of the training split; `to`: statistics of the test split.

    The mean is over draws without replacement, each of them a fresh set: no image stands twice in it, as in a
    bootstrap, whose centre is the training split and not the distribution's, and whose mean is greater in the ratio
    (2/n + 1/N_test)/(1/n + 1/N_test) at N = n. Where chance asks for k_c images of a class that holds n_c < k_c, all of
    these are weighted by k_c/n_c.

    The spread is the delete-d jackknife's (Shao & Wu 1989): the sets above overlap, at N = n they are all one set, so
    they vary too little. A part s_c of a class with 1/s_c = 1/k_c + 1/n_c, weighted by k_c/s_c, has a mean of variance
    V_c (1/s_c − 1/n_c) = V_c/k_c about the class's mean in the training split, as k_c images have about the
    distribution's. It covers most of the mean's own error too, since the training split lies farther from the test
    split than the distribution does, and FID is steeper there. On Gaussian classes the interval holds 91 to 96 % of
    fresh sets' FIDs, and 86 % where the splits differ by far more than by chance and N = n.

    A quadratic form in normal variables is nearly gamma distributed, with its mean and variance (Satterthwaite 1946).
    """
    _, label = labels.unique(return_inverse=True)
    sizes, distance = label.bincount(), Distance(to)
    whole: list[float] = []
    parts: list[float] = []
    for draw in range(max(LEAST, min(DRAWS, int(COST / (count * features.shape[1] ** 2))))):
        wanted = by_chance(sizes, count, draw) if chance else proportional(sizes, count)
        part = (wanted * sizes / (wanted + sizes)).round().long().clamp(min=1).minimum(wanted)
        order, place = shuffled(label, draw)
        for found, taken in ((whole, wanted.minimum(sizes)), (parts, part)):
            kept = order[place < taken[label[order]]]
            found.append(distance(*moments(features[kept], label[kept], wanted, taken)))
    mean, variance = np.mean(whole), np.var(parts, ddof=1)
    low, high = gamma.ppf((0.025, 0.975), mean**2 / variance, scale=variance / mean)
    return float(mean), float(low), float(high)
