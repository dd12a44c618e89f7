"""The sliced Wasserstein distance of points, which sees shapes."""

from dataclasses import dataclass

from ddpm.metrics.distances import sliced_wasserstein
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric


@dataclass(frozen=True)
class SlicedWasserstein(Metric):
    """The sliced Wasserstein distance to the test split, in units of the data (Rabin et al. 2011)."""

    method = "sliced_wasserstein"
    title = "Sliced Wasserstein distance"
    wants = ("points",)
    distance = True

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: sliced_wasserstein(samples.images, evaluator.dataset.test.images)}
