"""Metrics of classes, which the classifier of clean images sees in samples."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from ddpm.datasets.dataset import reference
from ddpm.metrics.distances import within_classes
from ddpm.metrics.evaluator import Evaluator
from ddpm.metrics.metric import Metric, Samples

Tensor = torch.Tensor


@dataclass(frozen=True)
class LabelAccuracy(Metric):
    """The share of images in which the classifier sees the label that was asked for."""

    method = "label_accuracy"
    title = "Label accuracy"
    direction = "↑"
    requires = ("classifier",)

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        if samples.labels is None:
            return {}
        return {self.method: float((evaluator.predict(samples.images) == samples.labels).double().mean())}


@dataclass(frozen=True)
class Diversity(Metric):
    """The variance of the features within the classes that the classifier sees, as a multiple of the test split's."""

    method = "diversity"
    title = "Diversity"
    direction = "↑"
    requires = ("classifier",)

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        return {self.method: _within(evaluator, samples.images) / _of_real(evaluator)}


def _within(evaluator: Evaluator, images: Tensor) -> float:
    return within_classes(evaluator.features(images), evaluator.predict(images))


@lru_cache(maxsize=1)
def _of_real(evaluator: Evaluator) -> float:
    return _within(evaluator, reference(evaluator.dataset, "test"))
