"""The stage that measures samples and baselines: its references, its numbers by hand, and what it refuses."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import math

import numpy as np
import pytest
import torch
from measuring import CELL, FEATURES, digits, grid, layout, measure, prepared  # noqa: F401 - fixtures
from safetensors.torch import load_file

from ddpm import rng
from ddpm.baselines import Baseline
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.errors import UserError
from ddpm.metrics import distances, intervals, toplines
from ddpm.metrics.evaluator import Evaluator
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.stages.sample import draw_labels

torch.set_num_threads(1)


@pytest.mark.parametrize("half", ["train", "test"])
def test_references_are_taken_in_a_seeded_order(digits: data.Data, half: str) -> None:
    """All images of the half once, not in their own order, the same at every call; a part is its beginning."""
    images = getattr(digits, half).images
    order = rng.permutation(len(images), "reference", half)
    found = reference(digits, half)
    assert torch.equal(found, images[order])
    assert not torch.equal(found, images)
    assert sorted(order.tolist()) == list(range(len(images)))
    assert torch.equal(reference(digits, half), found)
    assert torch.equal(reference(digits, half, 60), found[:60])
    other = {"train": "test", "test": "train"}[half]
    assert not torch.equal(rng.permutation(898, "reference", half), rng.permutation(898, "reference", other))


def test_more_reference_images_than_there_are_are_refused(digits: data.Data) -> None:
    """An exact N, or a message with both numbers."""
    with pytest.raises(UserError, match=r"899.*train.*898"):
        reference(digits, "train", 899)


def by_hand(measure: Evaluator, digits: data.Data, images: torch.Tensor) -> dict[str, float]:
    """What the stage must find for these images."""
    found = {}
    for suffix, binarized in (("", False), ("_binarized", True)):
        ours = distances.statistics(measure.features(images, binarized))
        for name, half in (("fid", digits.test), ("fid_train", digits.train)):
            real = distances.statistics(measure.features(half.images, binarized))
            found[name + suffix] = distances.frechet(ours, real)
    return found


@pytest.mark.parametrize("name", ["real", "real-by-chance"])
@pytest.mark.parametrize("count", [60, 898])
def test_the_real_rows_compare_training_images_with_the_test_half(
    layout: Layout, digits: data.Data, measure: Evaluator, name: str, count: int
) -> None:
    """N fresh training images, with classes in proportion or by chance; there is nothing to measure against their own
    half; and where N is the whole half and its classes stay, FID is that half's."""
    job, code = grid(sampling={"images": count}).job("fidelity", name)
    execute("fidelity", job, code, layout)
    found = records.read_record(layout.record("fidelity", name))["result"]
    for suffix, binarized in (("", False), ("_binarized", True)):
        train, test = (measure.features(half.images, binarized) for half in (digits.train, digits.test))
        expected = toplines.topline(
            train, digits.train.labels, distances.statistics(test), count, name == "real-by-chance"
        )
        keys = (f"fid{suffix}", f"fid{suffix}_low", f"fid{suffix}_high")
        assert tuple(found[k] for k in keys) == pytest.approx(expected, rel=1e-9)
        if name == "real" and count == 898:
            assert found[f"fid{suffix}"] == pytest.approx(by_hand(measure, digits, digits.train.images)[keys[0]])
    assert found["images"] == count
    assert "fid_train" not in found and "fid_train_binarized" not in found


def test_real_rows_refuse_too_few_images(layout: Layout) -> None:
    """As every row does: N above the number of features."""
    job, code = grid().job("fidelity", "real")
    with pytest.raises(UserError, match=f"{FEATURES} images for {FEATURES} features"):
        execute("fidelity", job | {"images": FEATURES}, code, layout)


def test_the_noise_row_is_uniform_over_the_grey_levels(layout: Layout, digits: data.Data, measure: Evaluator) -> None:
    """Far from the data, and the same at every run."""
    for _ in range(2):
        execute("fidelity", *grid().job("fidelity", "noise"), layout)
        found = records.read_record(layout.record("fidelity", "noise"))["result"]
        uniform = rng.uniform(rng.key("noise row"), torch.arange(60), 0, (1, 8, 8))
        images = (uniform * 17).floor().to(torch.uint8)
        assert images.unique().tolist() == list(range(17))
        for key, value in by_hand(measure, digits, images).items():
            assert found[key] == pytest.approx(value, rel=1e-9)
    execute("fidelity", *grid().job("fidelity", "real"), layout)
    assert found["fid"] > 2 * records.read_record(layout.record("fidelity", "real"))["result"]["fid"]


def sampled(layout: Layout, images: torch.Tensor, labels: torch.Tensor | None = None, status: str = "ok") -> None:
    """Put images where a cell's samples belong."""
    tensors = {"images": images} | ({} if labels is None else {"labels": labels})
    records.write_tensors(layout.output("sample", CELL), tensors)
    recorder = records.Recorder("sample", {}, "0" * 16, {})
    recorder.finish(layout.record("sample", CELL), [layout.output("sample", CELL)], status)


def test_a_cells_samples_are_measured_against_both_halves(
    layout: Layout, digits: data.Data, measure: Evaluator
) -> None:
    """FIDs as by hand, and how often the classifier agrees with the label that was asked for."""
    images, labels = digits.test.images[100:160], digits.test.labels[100:160].clone()
    labels[:30] = (labels[:30] + 1) % 10
    sampled(layout, images, labels)
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    found = records.read_record(layout.record("fidelity", CELL))["result"]
    for key, value in by_hand(measure, digits, images).items():
        assert found[key] == pytest.approx(value, rel=1e-9)
    assert found["label_accuracy"] == float((measure.predict(images) == labels).double().mean())
    assert found["extractor"] == records.sha256(layout.output("classifier"))[:12]


@pytest.mark.parametrize("stratified", [False, True])
def test_a_cells_interval_is_of_its_samples(
    layout: Layout, digits: data.Data, measure: Evaluator, stratified: bool
) -> None:
    """Of their influences on the FID to the test split, within classes where these come in the training split's
    proportions."""
    images, labels = digits.test.images[100:160], draw_labels(digits, "a", 60)
    if not stratified:
        labels[labels == 0] = 1
    sampled(layout, images, labels)
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    found = records.read_record(layout.record("fidelity", CELL))["result"]
    for key, binarized in (("fid", False), ("fid_binarized", True)):
        real = distances.statistics(measure.features(digits.test.images, binarized))
        influence = intervals.influences(measure.features(images, binarized), real)
        of = intervals.variance(influence, labels if stratified else None)
        low, high = intervals.interval(found[key], of)
        assert (found[f"{key}_low"], found[f"{key}_high"]) == pytest.approx((low, high), rel=1e-9)
        assert abs(of / intervals.variance(influence, None if stratified else labels) - 1) > 1e-6


def test_diversity_is_the_variance_within_predicted_classes(
    layout: Layout, digits: data.Data, measure: Evaluator
) -> None:
    """Σ ‖f − mean of its class‖²/(N − classes), as a multiple of the test split's."""

    def within(images: torch.Tensor) -> float:
        features, labels = measure.features(images).numpy(), measure.predict(images).numpy()
        groups = [features[labels == k] for k in np.unique(labels)]
        return sum(((g - g.mean(0)) ** 2).sum() for g in groups) / (len(features) - len(groups))

    images = digits.test.images[100:160]
    sampled(layout, images)
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    found = records.read_record(layout.record("fidelity", CELL))["result"]["diversity"]
    assert found == pytest.approx(within(images) / within(digits.test.images), rel=1e-9)


def test_samples_without_labels_have_no_label_accuracy(layout: Layout, digits: data.Data) -> None:
    """An unconditional cell was asked for no label."""
    sampled(layout, digits.test.images[:60])
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    assert "label_accuracy" not in records.read_record(layout.record("fidelity", CELL))["result"]


@pytest.mark.parametrize("baseline", ["histogram", "class-histogram"])
def test_a_baseline_has_its_exact_bits(layout: Layout, digits: data.Data, baseline: str) -> None:
    """−log2 p/D of the whole test split: its mean, and its standard deviation over √N; of real data there is none."""
    execute("fidelity", *grid().job("fidelity", baseline), layout)
    record = records.read_record(layout.record("fidelity", baseline))
    bits = Baseline.named(baseline)(digits).bits_per_dim(digits.test.images).numpy()
    assert record["status"] == "ok" and record["result"]["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-12)
    assert record["result"]["standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(899), rel=1e-12)
    execute("fidelity", *grid().job("fidelity", "real"), layout)
    real = records.read_record(layout.record("fidelity", "real"))["result"]
    assert not {"bits_per_dim", "standard_error"} & real.keys()


def test_of_diverged_samples_nothing_is_measured(layout: Layout, digits: data.Data) -> None:
    """The record has their status, and no number."""
    sampled(layout, digits.test.images[:0], status="diverged")
    execute("fidelity", *grid().job("fidelity", CELL), layout)
    record = records.read_record(layout.record("fidelity", CELL))
    assert (record["status"], record["result"]) == ("diverged", {})


def test_another_extractor_is_another_measure(layout: Layout, digits: data.Data) -> None:
    """In one process: a classifier that was trained again otherwise gives its own numbers and its own hash."""
    sampled(layout, digits.test.images[:60])
    found = []
    for seed in (0, 1):
        execute("classifier", *grid(classifier={"seed": seed}).job("classifier"), layout)
        execute("fidelity", *grid().job("fidelity", CELL), layout)
        found.append(records.read_record(layout.record("fidelity", CELL))["result"])
    one, other = found
    assert one["extractor"] != other["extractor"] == records.sha256(layout.output("classifier"))[:12]
    assert one["fid"] != other["fid"]


@pytest.mark.parametrize("count", [59, 61])
def test_another_number_of_samples_is_refused(layout: Layout, digits: data.Data, count: int) -> None:
    """N is exact: the file, its number and the configured one."""
    sampled(layout, digits.test.images[:count])
    with pytest.raises(UserError) as caught:
        execute("fidelity", *grid().job("fidelity", CELL), layout)
    message = str(caught.value)
    assert str(layout.output("sample", CELL)) in message and f"{count} images" in message and "60" in message
    assert not layout.record("fidelity", CELL).exists()


@pytest.mark.parametrize("torn", ["samples", "classifier"])
def test_a_torn_input_is_named(layout: Layout, digits: data.Data, torn: str) -> None:
    """A file of tensors that ends too early: one message with its path."""
    sampled(layout, digits.test.images[:60])
    path = layout.output("sample", CELL) if torn == "samples" else layout.output("classifier")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        execute("fidelity", *grid().job("fidelity", CELL), layout)
    assert str(path) in str(caught.value)


def test_the_weights_are_plain_tensors(prepared: Layout) -> None:
    """No pickle: everything that the extractor needs stands in the safetensors file."""
    tensors = load_file(prepared.output("classifier"))
    assert int(tensors["side"]) == 8 and float(tensors["scale"]) > 0
