"""Whether a finished cell's samples are samples of the data at all: what makes a row `degenerate`. No torch."""

import math

# As multiples of the data's own range; a sampler that is merely poor stays within two or three.
FAR = 10.0
# Of the training split's variance.
FLAT = 0.01
# Of the distance that uniform noise has, √FID or (of points) the sliced Wasserstein distance.
NOISE = 0.7


def degenerate(sample: dict, fidelity: dict | None = None, noise: dict | None = None) -> str:
    """Why samples are none of the data, from the results of a cell's sampling and fidelity, and of the noise row's
    fidelity; empty where they are.

    They leave the range of the data by far, hardly differ from each other, or are about as far from the test split as
    noise is.
    """
    if (reach := sample.get("reach", 0.0)) > FAR:
        return f"samples reach {reach:.3g} times as far as the data"
    if (spread := sample.get("spread", 1.0)) < FLAT:
        return f"samples have {spread:.2g} of the data's variance"
    if fidelity is None or noise is None:
        return ""
    ours, theirs = _distance(fidelity), _distance(noise)
    if ours < NOISE * theirs:
        return ""
    return f"samples are {ours / theirs:.2g} times as far from the test split as noise is"


def _distance(fidelity: dict) -> float:
    """From the test split: the sliced Wasserstein distance of points, √FID of images."""
    return fidelity["sliced_wasserstein"] if "sliced_wasserstein" in fidelity else math.sqrt(max(0.0, fidelity["fid"]))
