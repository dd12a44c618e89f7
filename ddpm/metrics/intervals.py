"""How sure a FID is: what it would be for other samples of the same model, N of them, against the same real images.

To first order in the empirical distribution FID is a mean of one number per sample, its influence (Hampel 1974): with
T = Σ_r^½ (Σ_r^½ Σ Σ_r^½)^(−½) Σ_r^½, the optimal transport from N(µ, Σ) to N(µ_r, Σ_r),

    h(x) = 2 (µ − µ_r)·(x − µ) + (x − µ)ᵀ (I − T) (x − µ)

up to a constant, and the variance of FID over sets of N samples is that of h over N. This is the bootstrap's variance
for infinitely many resamples, to first order, in closed form: the infinitesimal jackknife (Jaeckel 1972; Efron 1982,
section 6). Resampling itself would cost hundreds of matrix roots, and its mean is too large, since it adds the bias of
N samples a second time. Here only the variance is used: the centre is the FID that was found, so that the interval is
one of the N-sample FID, bias included, as all rows of a table have it. The real images stay as they are.
"""

import numpy as np
import torch
from scipy.stats import gamma

Tensor = torch.Tensor
# Eigenvalues below this share of the largest count as 0: features that are constant in one of the two sets.
RANK = 1e-12


def influences(features: Tensor, to: dict[str, np.ndarray]) -> Tensor:
    """h of every sample, of mean 0: float64 (N,), from its features (N, D), for the FID to fixed statistics."""
    mean, real = features.mean(0), torch.from_numpy(to["mu"])
    error = features - mean
    covariance = error.T @ error / (len(features) - 1)
    # ---- Σ_r^½, and from it T
    values, vectors = torch.linalg.eigh(torch.from_numpy(to["sigma"]))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    values, vectors = torch.linalg.eigh(root @ covariance @ root)
    inverse = torch.where(values > RANK * values.max().clamp(min=1e-300), values.clamp(min=1e-300).rsqrt(), 0.0)
    half = root @ (vectors * inverse.sqrt())
    # ---- (x − µ)ᵀ (I − T) (x − µ) = ‖x − µ‖² − ‖halfᵀ (x − µ)‖²
    found = 2 * error @ (mean - real) + error.square().sum(1) - (error @ half).square().sum(1)
    return found - found.mean()


def variance(influence: Tensor, groups: Tensor | None = None) -> float:
    """The variance of FID over sets of N samples, from every sample's influence (N,).

    groups: the class (N,) of samples that come in fixed proportions: only what varies within classes is chance.
    """
    groups = torch.zeros(len(influence), dtype=torch.int64) if groups is None else groups
    _, group = groups.unique(return_inverse=True)
    sizes = group.bincount().double()
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, group, influence) / sizes
    squares = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, group, (influence - means[group]).square())
    # The squares of a class of one sample are 0: it adds nothing, where nothing is known.
    return float((squares * sizes / (sizes - 1).clamp(min=1)).sum()) / len(influence) ** 2


def interval(fid: float, variance: float) -> tuple[float, float]:
    """The central 95 % of a gamma distribution with this mean and variance: FID is nearly a quadratic form in normal
    variables, which is nearly gamma distributed (Satterthwaite 1946)."""
    if not (fid > 0 and variance > 0):
        return fid, fid
    low, high = gamma.ppf((0.025, 0.975), fid**2 / variance, scale=variance / fid)
    return float(low), float(high)
