"""The contract of data sets, spaces, metrics, extractors and baselines: as test_contract.py, of all that there are."""

import json
import math
import os
import socket
from contextlib import chdir
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from contract import FILES, every, small
from oracles import randn

from ddpm.baselines import Baseline
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data, Dataset, Split
from ddpm.errors import UserError
from ddpm.extensions import load
from ddpm.metrics.evaluator import Evaluator
from ddpm.metrics.metric import Metric, Samples
from ddpm.pipeline import measures
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import write_tensors
from ddpm.pipeline.registry import known
from ddpm.pipeline.run import execute
from ddpm.spaces import Space

Tensor = torch.Tensor


# ---- data and spaces --------------------------------------------------------------------------------------


@cache
def loaded(name: str) -> tuple[Split, Split]:
    """Both splits; skipped where they are not on this machine."""

    def offline(*_: object) -> None:
        raise OSError("tests are offline")

    with TemporaryDirectory() as empty, chdir(empty), pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", offline)
        try:
            return Dataset.make(small("dataset", name, 300)).load()
        except UserError as e:
            if os.environ.get("DDPM_REQUIRE_DATA") and name == "mnist":
                raise
            pytest.skip(str(e))


def rows(images: Tensor) -> set[bytes]:
    return {image.tobytes() for image in images.numpy()}


@every("dataset")
def test_dataset(dataset: str) -> None:
    """Splits as declared, with nothing in common; the same bytes twice; they go through their space and back."""
    made, splits = Dataset.make(small("dataset", dataset, 300)), loaded(dataset)
    space = Space.fit(made.space, splits[0].images)
    for half, split, again in zip(("train", "test"), splits, made.load(), strict=True):
        images, labels = split.images, split.labels
        assert images.dtype == (torch.uint8 if space.images else torch.float32)
        assert images.shape[1:] == (made.shape or images.shape[1:]) == space.shape
        assert len(images) == (getattr(made, half) or len(images))
        assert torch.equal(images, again.images)
        assert (labels is None) == (made.classes == 0)
        if labels is not None:
            assert labels.dtype == torch.int64 and torch.equal(labels, again.labels) and len(labels) == len(images)
            assert set(labels.tolist()) == set(range(made.classes))
        x = space.encode(images)
        assert x.dtype == torch.float32 and x.isfinite().all()
        assert torch.equal(space.decode(x), images) and space.decode(x).dtype == images.dtype
        density = made.log_density(images)
        assert density is None or (density.dtype == torch.float64 and density.shape == (len(images),))
        assert density is None or density.isfinite().all()
    train, test = (rows(split.images) for split in splits)
    assert len(train & test) <= 0.01 * len(test) and len(train) > 0.9 * len(splits[0].images)
    assert 0.5 < float(space.encode(splits[0].images).var(0).mean().sqrt()) / made.std < 2


SPACES = known("space", FILES)


@pytest.mark.parametrize("space", SPACES)
def test_space(space: str) -> None:
    """What is stored survives; x is inside of its bounds; JSON rebuilds it; log p is that of a law."""
    stored = torch.arange(256).reshape(-1, 1, 2, 2).to(torch.uint8)
    stored = stored if SPACES[space].attributes["images"] else randn(0, 64, 3).float()
    for file in SPACES[space].modules:
        load(file)
    made = Space.fit({"method": space}, stored)
    assert Space.read(json.loads(json.dumps(made.spec))) == made and made.shape == stored.shape[1:]
    x, (low, high) = made.encode(stored), made.bounds
    assert torch.equal(made.decode(x), stored) and made.decode(x).dtype == stored.dtype
    assert x.dtype == torch.float32 and (x >= low).all() and (x <= high).all()
    assert torch.isclose(x.amin(0), low).any() and torch.isclose(x.amax(0), high).any()
    u = torch.rand(64, *made.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = made.uniform(u)
    assert noise.dtype == stored.dtype and (made.encode(noise) >= low).all() and (made.encode(noise) <= high).all()
    if made.clips:
        assert torch.equal(made.decode(x + 100), made.decode(high.expand_as(x)))
        assert torch.equal(made.decode(x - 100), made.decode(low.expand_as(x)))
    if made.images:
        assert made.to_images(stored).dtype == torch.uint8 and made.to_images(stored).max() == 255
    # The sum over all bins, or the integral over x, of p(x | mean, std).
    for mean, log_std in product((-1.5, -0.2, 0.999), (-6.0, -2.0, 0.5)):
        reach = torch.linspace(mean - 9 * math.exp(log_std), mean + 9 * math.exp(log_std), 2001, dtype=torch.float64)
        places = made.encode(torch.arange(made.levels)).double() if made.discrete else reach
        p = made.log_prob(places, torch.tensor(mean).double(), torch.tensor(log_std).double()).exp()
        total = float(p.sum()) if made.discrete else float(torch.trapezoid(p, reach))
        assert total == pytest.approx(1, abs=1e-4)  # x is float32
    assert (made.uniform_bits is not None) == made.discrete


# ---- metrics ----------------------------------------------------------------------------------------------

METRICS, EXTRACTORS, COUNT = measures.metrics(FILES), measures.extractors(FILES), 200
SETTINGS = {"width": 4, "features": 16, "epochs": 12, "batch": 32, "learning_rate": 1e-2, "seed": 0}


@cache
def evaluators(dataset: str, folder: Path) -> dict[str, Evaluator]:
    """By extractor: all that these data can have, of which COUNT images are enough."""
    made = Dataset.make(small("dataset", dataset, 300))
    train, test = (Split(s.images[:300], None if s.labels is None else s.labels[:300]) for s in loaded(dataset))
    dataset_ = Data(train, test, Space.fit(made.space, train.images), made.classes)
    there, layout = measures.given({"space": made.space, "classes": made.classes, "modules": FILES}), Layout(folder)
    path, classifier = layout.output("data"), None
    tensors = {
        f"{half}_{part}": getattr(split, part)
        for half, split in (("train", train), ("test", test))
        for part in ("images", "labels")
        if getattr(split, part) is not None
    }
    write_tensors(path, tensors, {"space": dataset_.space.spec, "classes": made.classes})
    assert torch.equal(data.read(path).test.images, test.images)
    if "classifier" in there:
        execute("classifier", {"data": {}, "classifier": SETTINGS, "threads": 1}, "", layout)
        classifier = layout.output("classifier")
    found = {}
    for name in measures.possible(EXTRACTORS, there):
        spec = {"extractor": name, "weights": "", "modules": FILES}
        if measures.features({"fidelity": spec, "classifier": SETTINGS}, dataset_.shape) < COUNT:
            found[name] = Evaluator(dataset_, spec, classifier)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


def number(
    metric: str, evaluator: Evaluator, images: Tensor, labels: Tensor | None, topline: str | None = None
) -> float:
    """The metric's own, of which all are finite; of real images as a topline inside of its interval."""
    made = Metric.make({"method": metric, "modules": FILES})
    found = made.compute(evaluator, Samples(images, labels, topline))
    assert found.keys() >= {metric} and all(np.isfinite(value) for value in found.values())
    if METRICS[metric]["topline"] and topline:
        assert found[f"{metric}_low"] < found[metric] < found[f"{metric}_high"]
    return found[metric]


@pytest.mark.parametrize("metric", METRICS)
@every("dataset")
def test_metric(dataset: str, metric: str, folder: Path) -> None:
    """Finite for real images, noise, one image again and again, and training images, of which one at least is worse
    than the test split is, in the direction that the metric states; whatever the samples' order; the same twice."""
    found = evaluators(dataset, folder / dataset)
    some = next(iter(found.values()))
    there = measures.given({"space": some.dataset.space.spec, "classes": some.dataset.classes, "modules": FILES})
    if metric not in measures.possible(METRICS, there):
        pytest.skip(f"it wants {METRICS[metric]['wants']}")
    for evaluator in found.values():
        test, space = evaluator.dataset.test, evaluator.dataset.space
        images, labels = test.images[:COUNT], None if test.labels is None else test.labels[:COUNT]
        real = number(metric, evaluator, images, labels)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
        shuffled = number(metric, evaluator, images[order], None if labels is None else labels[order])
        assert shuffled == pytest.approx(real, rel=1e-6, abs=1e-6)
        assert number(metric, evaluator, images, labels) == real
        u = torch.rand(COUNT, *space.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        worse = {"noise": space.uniform(u), "one image": images[:1].expand_as(images).contiguous()}
        worse["copies"] = evaluator.dataset.train.images[:COUNT]
        others = {name: number(metric, evaluator, bad, labels) for name, bad in worse.items()}
        sign = {"↓": 1, "↑": -1}[METRICS[metric]["direction"]]
        assert any(sign * other > sign * real for other in others.values()), (real, others)
        if space.images and metric.startswith(("fid", "kid")):  # of points, mean and covariance say little
            assert all(others[name] > real for name in ("noise", "one image")), (real, others)
        if METRICS[metric]["topline"]:
            number(metric, evaluator, images, labels, topline="by chance")


@pytest.mark.parametrize("extractor", EXTRACTORS)
@every("dataset")
def test_extractor(dataset: str, extractor: str, folder: Path) -> None:
    """As many finite features as planning counts, for every image by itself."""
    found = evaluators(dataset, folder / dataset)
    if extractor not in found:
        pytest.skip("not of these data, or of more features than there are images here")
    evaluator = found[extractor]
    images = evaluator.dataset.test.images[:20]
    features = evaluator.features(images)
    expected = measures.features({"fidelity": evaluator.spec, "classifier": SETTINGS}, evaluator.dataset.shape)
    assert features.shape == (20, expected) and features.dtype == torch.float64 and features.isfinite().all()
    torch.testing.assert_close(evaluator.features(images[7:8]), features[7:8], rtol=1e-5, atol=1e-5)
    assert evaluator.extractor.hash


@pytest.mark.parametrize("baseline", measures.baselines())
@every("dataset")
def test_baseline(dataset: str, baseline: str, folder: Path) -> None:
    """Images as the data are stored, the same at every call; bits/dim, where there are any, of every test image."""
    of = next(iter(evaluators(dataset, folder / dataset).values())).dataset
    there = measures.given({"space": of.space.spec, "classes": of.classes, "modules": FILES})
    if baseline not in measures.possible(measures.baselines(), there):
        pytest.skip("not of these data")
    made = Baseline.named(baseline)(of)
    images = made.draw(30)
    assert images.dtype == of.test.images.dtype and images.shape == (30, *of.shape)
    assert torch.equal(images, Baseline.named(baseline)(of).draw(30))
    assert torch.equal(of.space.decode(of.space.encode(images)), images)
    bits = made.bits_per_dim(of.test.images)
    assert bits is None or (bits.shape == (len(of.test.images),) and bits.isfinite().all() and (bits > 0).all())
