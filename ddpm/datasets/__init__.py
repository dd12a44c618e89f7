"""The datasets: images, or points in the plane; each class is one kind (see `ddpm.datasets.dataset`)."""

from ddpm.datasets.celeba import CelebA
from ddpm.datasets.cifar import CIFAR10
from ddpm.datasets.digits import Digits
from ddpm.datasets.folder import Folder
from ddpm.datasets.lsun import LSUN
from ddpm.datasets.mnist import MNIST, FashionMNIST
from ddpm.datasets.points import Checkerboard, Circles, GaussianMixture, Moons, Ring, Spiral

__all__ = [
    "CIFAR10",
    "LSUN",
    "MNIST",
    "CelebA",
    "Checkerboard",
    "Circles",
    "Digits",
    "FashionMNIST",
    "Folder",
    "GaussianMixture",
    "Moons",
    "Ring",
    "Spiral",
]
