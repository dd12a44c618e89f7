"""FID and binarized FID through torch-fidelity, with a classifier of the same data as feature extractor.

For points in the plane the features may be the coordinates themselves, and a second distance sees shapes.
Two FIDs are comparable only if extractor and number of images agree: the extractor's hash stands in every
record, N is exact, and the rows of real data give the scale (`ddpm.metrics.toplines`).
"""

import json
from functools import cache, lru_cache

import numpy as np
import torch

from ddpm.baselines import Baseline
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.errors import UserError
from ddpm.metrics import toplines
from ddpm.metrics.distances import enough, frechet, sliced_wasserstein, statistics, within_classes
from ddpm.metrics.extractors import Extractor
from ddpm.pipeline.grid import BASELINES
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical, read_tensors
from ddpm.pipeline.run import Outcome, Run

Tensor = torch.Tensor
# The rows of real images → whether their classes come by chance.
REAL = {"real": False, "real-by-chance": True}


class Yardstick:
    """What every cell is measured with: the data, the extractor, and the statistics of the real halves."""

    def __init__(self, layout: Layout, spec: dict, device: str):
        self.dataset = data.read(layout.output("data"))
        self.extractor = Extractor(spec, layout.output("classifier"), self.dataset.levels, device)

    def statistics(self, images: Tensor, binarized: bool) -> dict[str, np.ndarray]:
        return statistics(self.extractor(images, binarized))

    @cache  # noqa: B019 - it lives as long as its yardstick, which is the process
    def real_diversity(self) -> float:
        return self.diversity(reference(self.dataset, "test"))

    def diversity(self, images: Tensor) -> float:
        """The variance of the features within the classes that the classifier sees."""
        return within_classes(self.extractor(images), self.extractor.predict(images))

    @cache  # noqa: B019
    def features(self, half: str, binarized: bool) -> Tensor:
        return self.extractor(getattr(self.dataset, half).images, binarized)

    @cache  # noqa: B019
    def of(self, half: str, binarized: bool) -> dict[str, np.ndarray]:
        return statistics(self.features(half, binarized))

    def topline(self, count: int, chance: bool, binarized: bool) -> tuple[float, float, float]:
        """FID of `count` fresh real images against the test half: mean, and interval of 95 %."""
        features = self.features("train", binarized)
        enough(count, features.shape[1])
        return toplines.topline(features, self.dataset.train.labels, self.of("test", binarized), count, chance)


@lru_cache(maxsize=1)
def _yardstick(layout: Layout, hashes: tuple[str, ...], spec: str, device: str) -> Yardstick:
    """One for all cells of a batch; the hashes of its files are part of the key."""
    return Yardstick(layout, json.loads(spec), device)


def evaluate(run: Run) -> Outcome:
    """The `fidelity` stage of one cell, or of a baseline.

    FID against the whole test half (`fid`) and the whole training half (`fid_train`), and both binarized (of points,
    which have no binary form, the sliced Wasserstein distance to the test half instead); the variance of the features
    within classes, as a multiple of the test half's (`diversity`); the share of conditional images that the classifier
    gives the label that was asked for (`label_accuracy`). Of a baseline whose law is known, also its −log2 p/D of the
    whole test half (`bits_per_dim`, exact, with its standard error over images).
    """
    name, job, layout = run.name, run.job, run.layout
    if name not in BASELINES and (status := run.parent("samples")["status"]) != "ok":
        return status, {}
    hashes = tuple(run.recorder.record["inputs"][of] for of in ("data", "extractor"))
    yardstick = _yardstick(layout, hashes, canonical(run.settings), run.device)
    dataset, count, labels, bits = yardstick.dataset, job["images"], None, None
    if name not in BASELINES:
        tensors, _ = read_tensors(run.inputs["samples"])
        images, labels = tensors["images"], tensors.get("labels")
    else:
        baseline = Baseline.make({"method": name, "dataset": dataset})
        images, bits = baseline.draw(count), baseline.bits_per_dim(dataset.test.images)
    if len(images) != count:
        raise UserError(
            f"{run.inputs['samples']}: {len(images)} images; the configuration says {count}: delete it and run again"
        )
    run.phase("measuring")
    result: dict[str, object] = {}
    for suffix, binarized in (("", False), ("_binarized", True)) if dataset.levels else (("", False),):
        if name in REAL:
            found = yardstick.topline(count, REAL[name], binarized)
            result |= zip((f"fid{suffix}", f"fid{suffix}_low", f"fid{suffix}_high"), found, strict=True)
            continue
        ours = yardstick.statistics(images, binarized)
        for half, key in (("test", "fid"), ("train", "fid_train")):
            result[key + suffix] = frechet(ours, yardstick.of(half, binarized))
    result["diversity"] = yardstick.diversity(images) / yardstick.real_diversity()
    if not dataset.levels:
        result["sliced_wasserstein"] = sliced_wasserstein(images, dataset.test.images)
    if bits is not None:
        result["bits_per_dim"], result["standard_error"] = float(bits.mean()), float(bits.std() / len(bits) ** 0.5)
    if labels is not None:
        result["label_accuracy"] = float((yardstick.extractor.predict(images) == labels).double().mean())
    return "ok", {"images": count, "extractor": yardstick.extractor.hash} | result
