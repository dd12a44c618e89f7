"""What images become features by: the classifier, Inception, and what torch-fidelity is given."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_fidelity
from measuring import FEATURES, digits, evaluator, grid, layout, measure, prepared  # noqa: F401 - fixtures
from oracles import DIGITS
from project import ROOT
from torch.utils.data import Dataset
from torch_fidelity import registry

from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.metrics import distances, extractors
from ddpm.metrics.evaluator import Evaluator
from ddpm.pipeline import config, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute

torch.set_num_threads(1)


# ---- thresholds -------------------------------------------------------------------------------------------


def test_binarising_splits_at_128() -> None:
    """127 becomes 0, 128 becomes 255; of 17 levels the middle one is white."""
    images = torch.tensor([0, 1, 127, 128, 129, 255], dtype=torch.uint8)
    assert extractors.binarize(images).tolist() == [0, 0, 0, 255, 255, 255]
    assert extractors.binarize(images).dtype == torch.uint8
    levels = torch.arange(17, dtype=torch.uint8)
    assert extractors.binarize(DIGITS.to_images(levels)).tolist() == [0] * 8 + [255] * 9


# ---- the extractor ----------------------------------------------------------------------------------------


class Images(Dataset):
    """Bare uint8 tensors, as torch-fidelity wants them."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


@pytest.fixture
def registered() -> Iterator[str]:
    """The extractor under a name that torch-fidelity knows."""
    name = "ddpm-classifier"
    torch_fidelity.register_feature_extractor(name, extractors.ClassifierExtractor)
    yield name
    registry.FEATURE_EXTRACTORS_REGISTRY.pop(name)


@pytest.mark.parametrize("binarized", [False, True])
def test_torch_fidelity_finds_the_same_fid(
    prepared: Layout, digits: data.Data, measure: Evaluator, registered: str, binarized: bool
) -> None:
    """The whole of torch-fidelity with the registered extractor, against our path."""
    ours, theirs = digits.train.images[:200], digits.test.images[:150]
    fid = distances.frechet(*(distances.statistics(measure.features(i, binarized)) for i in (ours, theirs)))

    def images(half: torch.Tensor) -> Images:
        grey = DIGITS.to_images(half)
        return Images(extractors.binarize(grey) if binarized else grey)

    found = torch_fidelity.calculate_metrics(
        input1=images(ours),
        input2=images(theirs),
        fid=True,
        isc=True,
        feature_extractor=registered,
        feature_extractor_weights_path=str(prepared.output("classifier")),
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        batch_size=64,
        isc_splits=2,
    )
    assert fid > 0.01
    assert found["frechet_inception_distance"] == pytest.approx(fid, rel=1e-6, abs=1e-6)
    assert 1 <= found["inception_score_mean"] <= 10


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(4, 1, 8, 8), "float32"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (torch.zeros(4, 1, 16, 16, dtype=torch.uint8), r"\(1, 16, 16\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"\(8, 8\)"),
    ],
    ids=["float", "int64", "colour", "size", "no channel"],
)
def test_images_of_another_kind_are_refused(measure: Evaluator, images: torch.Tensor, said: str) -> None:
    """Wrong type or shape: what was found, and uint8 (1, 8, 8) as what would be right."""
    with pytest.raises(ValueError, match=said + r".*uint8 \(1, 8, 8\)"):
        measure.classifier.network(images)


def test_features_have_mean_variance_one_on_the_training_half(measure: Evaluator, digits: data.Data) -> None:
    """The scale of FID does not depend on the classifier's last layer."""
    features = measure.features(digits.train.images)
    assert features.dtype == torch.float64 and features.shape == (898, FEATURES)
    assert float(features.var(0).mean()) == pytest.approx(1, rel=1e-5)


def test_features_do_not_depend_on_the_batch(measure: Evaluator, digits: data.Data) -> None:
    """An image's features are its own, whatever else is in the batch: normalisation is the trained one."""
    images = digits.test.images
    assert torch.allclose(measure.features(images)[600:610], measure.features(images[600:610]), rtol=1e-5, atol=1e-6)


def test_the_classifier_learns(layout: Layout, digits: data.Data) -> None:
    """Three epochs of a tiny network are better than guessing (0.1), and its accuracy is the recorded one."""
    record = records.read_record(layout.record("classifier"))
    accuracy = float((evaluator(layout).predict(digits.test.images) == digits.test.labels).double().mean())
    assert record["result"]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert accuracy > 0.3


def test_training_the_classifier_again_gives_the_same_bytes(layout: Layout, prepared: Layout) -> None:
    """Same seed, same bytes; another seed gives another extractor."""
    job, code = grid().job("classifier")
    execute("classifier", job, code, layout)
    assert layout.output("classifier").read_bytes() == prepared.output("classifier").read_bytes()
    execute("classifier", grid(classifier={"seed": 1}).job("classifier")[0], code, layout)
    assert layout.output("classifier").read_bytes() != prepared.output("classifier").read_bytes()


# ---- Inception --------------------------------------------------------------------------------------------


def test_missing_inception_weights_are_named(prepared: Layout, digits: data.Data, tmp_path: Path) -> None:
    """The key, the path and what must lie there."""
    path = str(tmp_path / "nowhere.pth")
    with pytest.raises(UserError) as caught:
        evaluator(prepared, "inception", path).features(digits.test.images[:2])
    message = str(caught.value)
    assert "fidelity.weights" in message and path in message and "Inception" in message
    assert len(message.splitlines()) <= 3


def test_other_weights_in_the_same_file(tmp_path: Path) -> None:
    """Count by their content: what was measured with the former ones runs again."""
    file = tmp_path / "weights.pth"
    read = config.read(ROOT / "config.yaml", ROOT / "workflow/config/mnist.yaml")  # more images than features
    grid = config.check(config.merge(read, {"fidelity": {"extractor": "inception", "weights": str(file)}}))
    cell, found = next(iter(grid.runs)), []
    for content in (None, b"one", b"two"):
        if content:
            file.write_bytes(content)
        found.append(Results(grid, Layout(tmp_path / "results")).inputs("fidelity", cell).get("weights"))
    assert found == [None, *(hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))]
    assert Layout(tmp_path).inputs("fidelity", cell, grid.job("fidelity", cell)[0])["weights"] == file


@pytest.mark.parametrize("content", ["text", "torn", "another network"])
def test_wrong_inception_weights_are_named(tmp_path: Path, content: str) -> None:
    """A file that is no state dict, or that of another network."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    if content != "another network":
        path.write_bytes(b"not weights" if content == "text" else path.read_bytes()[:500])
    with pytest.raises(UserError) as caught:
        extractors.inception(str(path))
    assert "fidelity.weights" in str(caught.value) and str(path) in str(caught.value)


def test_offline_inception_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights given and no network: the key to set, and the file that it wants."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(extractors.FeatureExtractorInceptionV3, "__init__", fail)
    with pytest.raises(UserError) as caught:
        extractors.inception("")
    message = str(caught.value)
    assert "no route to host" in message and "fidelity.weights" in message and "pt_inception" in message


# ---- what torch-fidelity is given and asks for ------------------------------------------------------------


class Recorded(torch.nn.Module):
    """Stands for torch-fidelity's Inception: keeps how it was made and what it was given; three features per image."""

    def __init__(self, *given: object):
        super().__init__()
        self.given, self.batches = given, []

    def get_name(self) -> str:
        return self.given[0]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.batches.append((tuple(images.shape), images.dtype))
        flat = images.float().flatten(1)
        return (torch.stack([flat.sum(1), flat.amax(1), images[:, -1].float().flatten(1).sum(1)], dim=1),)


@pytest.mark.parametrize("known", [False, True])
def test_inception_is_asked_for_2048_features_of_grey_images(
    prepared: Layout, digits: data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Its name, layer and file; three equal channels, 64 images at once, 0 … 255, binarized where asked for."""
    monkeypatch.setattr(extractors, "FeatureExtractorInceptionV3", Recorded)
    weights = str(tmp_path / "inception.pth") if known else ""
    if known:
        torch.save({"a": torch.zeros(3)}, weights)
    measure = evaluator(prepared, "inception", weights)
    network = measure.extractor.network
    assert network.given == ("inception-v3-compat", ["2048"], weights or None)
    assert not network.training
    assert measure.extractor.hash == (records.sha256(weights)[:12] if known else "inception-v3-compat")
    images = digits.test.images[:130]
    found, binary = measure.features(images), measure.features(images, True)
    assert network.batches == 2 * [((n, 3, 8, 8), torch.uint8) for n in (64, 64, 2)]
    assert found.shape == (130, 3) and found.dtype == torch.float64
    exact = (images.double() * 255 / 16).round()
    assert torch.equal(found[:, 0], 3 * exact.flatten(1).sum(1)) and torch.equal(found[:, 2] * 3, found[:, 0])
    assert torch.equal(binary[:, 0], 3 * 255 * (exact >= 128).double().flatten(1).sum(1))
    # The classifier still gives the labels.
    assert torch.equal(measure.predict(images), evaluator(prepared).predict(images))


def test_what_is_said_of_inceptions_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole messages: no such file, no tensors, another network's, none to be had."""
    path = tmp_path / "inception.pth"

    def said(weights: str) -> str:
        with pytest.raises(UserError) as caught:
            extractors.inception(weights)
        return str(caught.value)

    assert said(str(path)) == (
        f"fidelity.weights: {path}: no such file; it must be torch-fidelity's Inception state dict"
    )
    path.write_bytes(b"not weights")
    assert said(str(path)).startswith(f"fidelity.weights: {path}: is no plain state dict of tensors (")
    torch.save({"a": torch.zeros(3)}, path)
    assert said(str(path)).startswith(f"fidelity.weights: {path}: not Inception's weights: ")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(extractors, "FeatureExtractorInceptionV3", fail)
    assert said("") == (
        "fidelity.weights: '', and Inception's weights could not be downloaded (no route to host): "
        "set it to the file pt_inception-2015-12-05-6726825d.pth, or extractor to classifier."
    )


def test_the_layers_that_torch_fidelity_takes(measure: Evaluator) -> None:
    """The Inception score is of logits, every other metric of features; the classifier stays uncompiled."""
    layer = measure.classifier.network.get_default_feature_layer_for_metric
    assert (layer("isc"), layer("fid"), layer("kid")) == ("logits", "features", "features")
    assert measure.classifier.network.can_be_compiled() is False
