"""Intervals of FID: influences against derivatives, variances against resampling, coverage on Gaussians."""

import numpy as np
import pytest
import torch
from measuring import closed_form
from oracles import randn
from scipy.stats import gamma

from ddpm.metrics.distances import frechet, statistics
from ddpm.metrics.intervals import influences, interval, variance
from ddpm.metrics.toplines import Distance

torch.set_num_threads(1)


def sets(seed: int, count: int = 60, size: int = 5) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Features of another mean and covariance than those that the statistics are of."""
    real = randn(seed, 4 * count, size).double() @ randn(seed + 1, size, size).double()
    return randn(seed + 2, count, size).double() @ randn(seed + 3, size, size).double() + 0.3, statistics(real)


def test_an_influence_is_a_derivative() -> None:
    """d/dε of the closed form, at scipy's root, as ε of the empirical law goes to one sample; up to its mean."""
    features, real = sets(0)
    ours, step, slopes = statistics(features), 1e-5, []
    for x in features.numpy():
        error, ends = x - ours["mu"], []
        for side in (step, -step):
            sigma = ours["sigma"] + side * (np.outer(error, error) - ours["sigma"])
            ends.append(closed_form({"mu": ours["mu"] + side * error, "sigma": sigma}, real))
        slopes.append((ends[0] - ends[1]) / (2 * step))
    expected = np.array(slopes) - np.mean(slopes)
    np.testing.assert_allclose(influences(features, real).numpy(), expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_features_that_never_vary_change_nothing() -> None:
    """A dead feature, 0 in both sets, has neither a distance nor a share in the variance."""
    features, real = sets(1)
    dead = torch.cat([features, torch.zeros(len(features), 1).double()], dim=1)
    wider = {"mu": np.append(real["mu"], 0.0), "sigma": np.pad(real["sigma"], (0, 1))}
    torch.testing.assert_close(influences(dead, wider), influences(features, real), rtol=1e-8, atol=1e-8)
    assert torch.equal(influences(features[:1].expand(60, -1), real), torch.zeros(60).double())


def test_variance_is_of_a_mean_and_within_classes() -> None:
    """Var(h)/N, as a mean of N has it; of fixed proportions Σ (n_c/N)² s_c²/n_c."""
    h, group = randn(2, 12).double(), torch.tensor([5, 5, 5, 5, 5, 2, 2, 2, 2, 2, 2, 9])
    assert variance(h) == pytest.approx(float(h.var()) / 12, rel=1e-12)
    parts = [float(h[group == c].var()) * n / 144 for c, n in ((5, 5), (2, 6))]
    assert variance(h, group) == pytest.approx(sum(parts), rel=1e-12)


def test_variance_is_the_bootstraps() -> None:
    """Of 400 resamples, whose standard deviation has an error of 4 %; their mean FID is too large."""
    features, real = sets(3, count=400, size=3)
    distance, generator = Distance(real), torch.Generator().manual_seed(0)
    drawn = [features[torch.randint(400, (400,), generator=generator)] for _ in range(400)]
    fids = np.array([distance(x.mean(0), x.T.cov()) for x in drawn])
    assert variance(influences(features, real)) ** 0.5 == pytest.approx(fids.std(ddof=1), rel=0.12)
    assert fids.mean() > frechet(statistics(features), real)


def test_interval_is_gammas() -> None:
    """95 % of a gamma distribution with mean 2 and variance 0.5: shape 8, scale 1/4; a point without any variance."""
    low, high = interval(2.0, 0.5)
    assert (low, high) == pytest.approx(tuple(gamma(8, scale=0.25).ppf([0.025, 0.975])), rel=1e-12)
    assert interval(2.0, 0.0) == (2.0, 2.0) and interval(-1e-9, 0.3) == (-1e-9, -1e-9)


@pytest.mark.parametrize(
    ("shift", "scale", "most"), [(0.0, 1.0, 1.0), (0.3, 1.0, 0.99), (1.0, 1.0, 0.98), (0.0, 0.7, 0.98)]
)
def test_intervals_hold_the_mean_fid_of_n_samples(shift: float, scale: float, most: float) -> None:
    """Of 300 sets of 200 samples, 95 % have the mean over sets in their interval, within chance; more at the topline,
    where the slope at the samples holds their own error and the interval is too wide."""
    generator = torch.Generator().manual_seed(0)
    real = statistics(torch.randn(200, 6, generator=generator, dtype=torch.float64))
    distance, found = Distance(real), []
    for _ in range(300):
        x = scale * torch.randn(200, 6, generator=generator, dtype=torch.float64) + shift / 6**0.5
        fid = distance(x.mean(0), x.T.cov())
        found.append((fid, *interval(fid, variance(influences(x, real)))))
    fid, low, high = np.array(found).T
    assert 0.91 < ((low < fid.mean()) & (fid.mean() < high)).mean() <= most


def test_fixed_proportions_leave_less_to_chance() -> None:
    """Two classes far apart, half of the samples each: their interval holds the mean, and one that takes the classes
    for chance is far too wide."""
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(200) % 2

    def draw() -> torch.Tensor:
        return torch.randn(200, 4, generator=generator, dtype=torch.float64) + 6 * group[:, None]

    real = statistics(draw() + 0.3)
    found = [(frechet(statistics(x), real), influences(x, real)) for x in (draw() for _ in range(200))]
    fid = np.array([f for f, _ in found])
    within, whole = (np.mean([variance(h, g) for _, h in found]) ** 0.5 for g in (group, None))
    assert fid.std() * 0.85 < within < fid.std() * 1.35 and whole > 1.5 * fid.std()
