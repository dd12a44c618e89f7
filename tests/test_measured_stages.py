"""The classifier and the fidelity of a cell, computed by loops of one's own."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import math

import numpy as np
import pytest
import torch
from own_loops import CELL, Adam, Tensor, digits, grid, layout, seeded  # noqa: F401 - fixtures
from safetensors.torch import load_file
from torch.nn import functional as F

from ddpm import rng
from ddpm.networks.classifier import Classifier
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)


def test_the_classifier_is_an_own_loop(layout: Layout, digits: dict[str, Tensor]) -> None:
    """AdamW with one cycle of rates and momenta (Smith & Topin 2019) on bytes; its scale and its accuracy."""
    execute("classifier", *grid().job("classifier"), layout)
    stored = load_file(layout.output("classifier"))
    seeded("classifier", 0)
    network = Classifier((1, 8, 8), 10, 4, 16)
    images, tests = (((digits[f"{half}_images"] + 1) * 127.5).round().float() / 127.5 - 1 for half in ("train", "test"))
    labels, optimiser, step = digits["train_labels"], Adam(network, beta2=0.999, decay=0.01), 0
    total = 2 * 9
    for epoch in range(2):
        for index in rng.permutation(len(images), "classifier", 0, epoch).split(100):
            # Up from 1/25 of the rate over the first three tenths, then down to 1/250 000; the momentum the other way.
            peak = 0.3 * total - 1
            if step <= peak:
                part, start, end = step / peak, (0.01 / 25, 0.95), (0.01, 0.85)
            else:
                part, start, end = (step - peak) / (total - 1 - peak), (0.01, 0.85), (0.01 / 25e4, 0.95)
            rate, beta1 = (b + (a - b) * (1 + math.cos(math.pi * part)) / 2 for a, b in zip(start, end, strict=True))
            loss = F.cross_entropy(network(images[index]), labels[index])
            optimiser.step(list(torch.autograd.grad(loss, list(network.parameters()))), rate, beta1)
            step += 1
    assert step == total
    network.eval()
    for parameter, expected in network.state_dict().items():
        # Batch norm takes a bias away again: its gradient is rounding alone, and the running mean follows it.
        if parameter not in ("body.0.bias", "body.4.bias", "body.1.running_mean", "body.5.running_mean"):
            torch.testing.assert_close(stored[parameter], expected, rtol=1e-5, atol=1e-5, msg=parameter)
    network.load_state_dict({k: v for k, v in stored.items() if k not in ("scale", "side")})
    with torch.no_grad():
        features, right = network.features(images).double(), network(tests).argmax(1) == digits["test_labels"]
    scale = math.sqrt(np.trace(np.cov(features.numpy(), rowvar=False)) / 16)
    assert float(stored["scale"]) == pytest.approx(scale, rel=1e-4) and int(stored["side"]) == 8
    found = records.read_record(layout.record("classifier"))["result"]["test_accuracy"]
    assert found == pytest.approx(float(right.double().mean()), abs=3 / len(right))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖µ_a − µ_b‖² + tr Σ_a + tr Σ_b − 2 Σ √eig(Σ_a Σ_b), covariances over N − 1."""
    first, second = (np.cov(x, rowvar=False) for x in (a, b))
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * roots)


def within(features: np.ndarray, guessed: np.ndarray) -> float:
    """Σ ‖f − mean of its class‖²/(N − classes seen)."""
    classes = np.unique(guessed)
    squares = sum(((features[guessed == k] - features[guessed == k].mean(0)) ** 2).sum() for k in classes)
    return float(squares / (len(features) - len(classes)))


def test_fidelity_is_numpys(layout: Layout) -> None:
    """FID to both splits, plain and binarized, diversity and label accuracy of a cell, from files to record."""
    execute("classifier", *grid().job("classifier"), layout)
    name = "v/short/conditional/seed0"
    execute("train", *grid().job("train", name), layout)
    execute("sample", *grid().job("sample", CELL), layout)
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    result = records.read_record(layout.record("fidelity", CELL))["result"]

    stored, real, ours = (
        load_file(layout.output("classifier")),
        load_file(layout.output("data")),
        load_file(layout.output("sample", CELL)),
    )
    scale = float(stored.pop("scale"))
    stored.pop("side")
    network = Classifier((1, 8, 8), 10, 4, 16)
    network.load_state_dict(stored)
    network.eval()

    def measure(levels: Tensor, binarized: bool = False) -> tuple[np.ndarray, np.ndarray]:
        grey = np.rint(levels.numpy() * (255 / 16))
        grey = np.where(grey >= 128, 255.0, 0.0) if binarized else grey
        with torch.no_grad():
            features = network.features(torch.from_numpy(grey / 127.5 - 1).float())
            return features.double().numpy() / scale, network.head(features).argmax(1).numpy()

    for suffix, binarized in (("", False), ("_binarized", True)):
        features, _ = measure(ours["images"], binarized)
        for key, half in (("fid", "test"), ("fid_train", "train")):
            expected = distance(features, measure(real[f"{half}_images"], binarized)[0])
            assert result[key + suffix] == pytest.approx(expected, rel=1e-4), key + suffix
    (features, guessed), test = measure(ours["images"]), measure(real["test_images"])
    assert result["diversity"] == pytest.approx(within(features, guessed) / within(*test), rel=1e-5)
    assert result["label_accuracy"] == (guessed == ours["labels"].numpy()).mean()
    assert result["images"] == 50
