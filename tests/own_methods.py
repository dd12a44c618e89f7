"""Methods that ours leave out, as a user's own file would hold them; the contract asks them too."""

from dataclasses import dataclass

import torch
from oracles import FlowMatching

from ddpm import rng
from ddpm.datasets.dataset import Dataset, Split
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.extractors import Extractor
from ddpm.metrics.metric import Metric
from ddpm.parameters import Count
from ddpm.spaces import Pixels

Tensor = torch.Tensor


class OwnFlow(FlowMatching):
    """Of neither family, with α(T) = 0, and nothing in closed form but α and σ."""

    method = "own-flow"


@dataclass(frozen=True)
class OwnInverted(Pixels):
    """Grey levels whose darkest is x = 1."""

    method = "own-inverted"

    def encode(self, stored: Tensor) -> Tensor:
        return -super().encode(stored)

    def decode(self, x: Tensor) -> Tensor:
        return super().decode(-x)


@dataclass(frozen=True)
class OwnColours(Dataset):
    """Colour images of 4 × 6 pixels with five grey levels, without labels: brighter to the right."""

    method = "own-colours"
    space = {"method": "own-inverted", "levels": 5}
    classes = 0
    shape = (3, 4, 6)
    train: Count = 300
    test: Count = 300

    def load(self) -> tuple[Split, Split]:
        return self.split("train", self.train), self.split("test", self.test)

    def split(self, name: str, count: int) -> Split:
        u = rng.uniform(rng.key("colours", name), torch.arange(count), 0, (3, 4, 6))
        return Split((4.99 * u * torch.linspace(0.2, 1, 6)).floor().to(torch.uint8))


@dataclass(frozen=True)
class OwnContrast(Metric):
    """How much the mean value of an image differs between images, as a multiple of the test split's."""

    method = "own-contrast"
    title = "Contrast"
    direction = "↑"

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        ours, real = (x.double().flatten(1).mean(1).std() for x in (samples.images, evaluator.dataset.test.images))
        return {self.method: float(ours / real)}


@dataclass(frozen=True, eq=False)
class OwnMoments(Extractor):
    """Mean and standard deviation of the values of an image."""

    method = "own-moments"
    counted = 2

    @property
    def hash(self) -> str:
        return "own-moments"

    def __call__(self, images: Tensor) -> Tensor:
        values = images.flatten(1).double()
        return torch.stack([values.mean(1), values.std(1)], dim=1)
