"""The datasets: images, or points in the plane; each class is one kind (see `ddpm.datasets.dataset`)."""

from ddpm.datasets.digits import Digits
from ddpm.datasets.folder import Folder
from ddpm.datasets.mnist import MNIST
from ddpm.datasets.points import Checkerboard, Circles, GaussianMixture, Moons, Ring, Spiral

__all__ = ["MNIST", "Checkerboard", "Circles", "Digits", "Folder", "GaussianMixture", "Moons", "Ring", "Spiral"]
