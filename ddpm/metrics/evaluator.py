"""The evaluator: what all metrics share of one dataset, computed once and only where a metric asks for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from ddpm.datasets.dataset import Data
from ddpm.metrics import toplines
from ddpm.metrics.distances import enough, statistics
from ddpm.metrics.extractors import Extractor, TrainedClassifier, binarize
from ddpm.metrics.store import Store

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """What is measured: images as they are stored, and the labels (N,) that were asked for, where any were.

    topline: of real images, how their classes come, `stratified` or `by chance`; None of all others.
    """

    images: Tensor
    labels: Tensor | None = None
    topline: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluator:
    """The data, the extractor, and the features of the real splits.

    spec: the configuration's section `fidelity`.
    classifier_file: the trained classifier's, opened where a metric or the extractor asks for it; None where none does.
    store: where features of real images are kept; None: nowhere.
    """

    dataset: Data
    spec: dict
    classifier_file: Path | None
    device: str = "cpu"
    store: Store | None = None

    @cached_property
    def classifier(self) -> TrainedClassifier:
        """The classifier of clean images, which says what label an image has."""
        return TrainedClassifier(str(self.classifier_file), self.device)

    @cached_property
    def extractor(self) -> Extractor:
        if self.spec["extractor"] == TrainedClassifier.method:
            return self.classifier
        own = {"modules": self.spec.get("modules", ())}
        weights = {"method": self.spec["extractor"], "weights": self.spec["weights"], "device": self.device}
        return Extractor.make(own | weights)

    def images(self, stored: Tensor, size: int, binarized: bool = False) -> Iterator[Tensor]:
        """Stored images as the extractors take them, `size` at once, on the device."""
        for batch in stored.split(size):
            images = self.dataset.space.to_images(batch).to(self.device)
            yield binarize(images) if binarized else images

    def sample_features(self, samples: Samples, binarized: bool = False) -> Tensor:
        """The features of what is measured, (N, D), float64, computed once for all metrics."""
        return self._sample_features(samples, binarized)

    @lru_cache(maxsize=2)  # noqa: B019 - plain and binarized
    def _sample_features(self, samples: Samples, binarized: bool) -> Tensor:
        return self.features(samples.images, binarized)

    @lru_cache(maxsize=1)  # noqa: B019
    def sample_logits(self, samples: Samples) -> Tensor:
        """The classifier's logits of what is measured, float64 (N, classes), computed once for all metrics."""
        return self.logits(samples.images)

    def sample_labels(self, samples: Samples) -> Tensor:
        """The labels that the classifier sees in what is measured, int64 (N,)."""
        return self.sample_logits(samples).argmax(1)

    @torch.no_grad()
    def features(self, stored: Tensor, binarized: bool = False) -> Tensor:
        """The extractor's features of stored images, (N, D), float64."""
        batches = self.images(stored, self.extractor.batch, binarized)
        return torch.cat([self.extractor(batch).double().cpu() for batch in batches])

    @torch.no_grad()
    def logits(self, stored: Tensor) -> Tensor:
        """The classifier's logits of every image, float64 (N, classes)."""
        batches = self.images(stored, self.classifier.batch)
        return torch.cat([self.classifier.logits(batch).cpu() for batch in batches])

    def predict(self, stored: Tensor) -> Tensor:
        """The classifier's label of every image, int64 (N,)."""
        return self.logits(stored).argmax(1)

    @cache  # noqa: B019 - it lives as long as its evaluator
    def real_features(self, split: str, binarized: bool) -> Tensor:
        """The features of all images of a split, `train` or `test`."""

        def compute() -> Tensor:
            return self.features(getattr(self.dataset, split).images, binarized)

        if self.store is None:
            return compute()
        asked = {"split": split, "binarized": binarized, "extractor": self.spec["extractor"]}
        place = {"hash": self.extractor.hash, "device": self.device, "threads": torch.get_num_threads()}
        return self.store.features(asked | place, compute)

    @cache  # noqa: B019
    def real_statistics(self, split: str, binarized: bool) -> dict[str, np.ndarray]:
        """Mean and covariance of `real_features`."""
        return statistics(self.real_features(split, binarized))

    def topline(self, count: int, kind: str, binarized: bool) -> tuple[float, float, float]:
        """FID of `count` fresh real images against the test split: mean, and interval of 95 %."""
        features = self.real_features("train", binarized)
        enough(count, features.shape[1])
        to, groups = self.real_statistics("test", binarized), self.dataset.train.groups
        return toplines.topline(features, groups, to, count, chance=kind == "by chance")
