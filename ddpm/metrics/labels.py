"""Metrics of classes, which the classifier of clean images sees in samples."""

from dataclasses import dataclass
from functools import lru_cache

from ddpm.metrics.distances import within_classes
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric


@dataclass(frozen=True)
class LabelAccuracy(Metric):
    """The share of images in which the classifier sees the label that was asked for."""

    method = "label_accuracy"
    title = "Label accuracy"
    direction = "↑"
    wants = ("classifier",)

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        if samples.labels is None:
            return {}
        return {self.method: float((evaluator.sample_labels(samples) == samples.labels).double().mean())}


@dataclass(frozen=True)
class Diversity(Metric):
    """The variance of the features within the classes that the classifier sees, as a multiple of the test split's."""

    method = "diversity"
    title = "Diversity"
    direction = "↑"
    wants = ("classifier",)

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        ours = within_classes(evaluator.sample_features(samples), evaluator.sample_labels(samples))
        return {self.method: ours / _of_real(evaluator)}


@lru_cache(maxsize=1)
def _of_real(evaluator: Evaluator) -> float:
    return within_classes(evaluator.real_features("test", False), evaluator.predict(evaluator.dataset.test.images))
