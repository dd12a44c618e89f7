"""FID: the closed form, the extractor inside torch-fidelity, and refusals of what only looks like a FID."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from oracles import DIGITS, randn
from safetensors.torch import load_file
from torch.utils.data import Dataset
from torch_fidelity import registry

from ddpm import rng
from ddpm.baselines import Baseline
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.errors import UserError
from ddpm.metrics import distances, extractors, toplines
from ddpm.metrics.evaluator import Evaluator
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
CELL = "eps/linear/none/ddim/seed0"
FEATURES = 16


def grid(**overlay: object) -> Grid:
    """The tiny grid with 16 features."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    own = {"classifier": {"width": 4, "features": FEATURES, "epochs": 3}, "sampling": {"images": 60}}
    return config.check(config.merge(config.merge(read, own), overlay))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A results folder that holds the digits and the classifier; read only."""
    layout = Layout(tmp_path_factory.mktemp("prepared"))
    execute("data", *grid().job("data"), layout)
    execute("classifier", *grid().job("classifier"), layout)
    return layout


@pytest.fixture
def layout(prepared: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(prepared.root, tmp_path / "results")
    return Layout(tmp_path / "results")


@pytest.fixture(scope="module")
def digits(prepared: Layout) -> data.Data:
    return data.read(prepared.output("data"))


def evaluator(layout: Layout, extractor: str = "classifier", weights: str = "") -> Evaluator:
    """What the stage measures with."""
    return Evaluator(
        data.read(layout.output("data")), {"extractor": extractor, "weights": weights}, layout.output("classifier")
    )


@pytest.fixture(scope="module")
def measure(prepared: Layout) -> Evaluator:
    return evaluator(prepared)


# ---- the distance -----------------------------------------------------------------------------------------


def closed_form(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖µ_a − µ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), the root by scipy."""
    root = scipy.linalg.sqrtm(a["sigma"] @ b["sigma"]).real
    return float(((a["mu"] - b["mu"]) ** 2).sum() + np.trace(a["sigma"] + b["sigma"] - 2 * root))


@pytest.mark.parametrize("size", [2, 7, 40])
def test_frechet_is_the_closed_form(size: int) -> None:
    """Two correlated samples with different means, against scipy's matrix root."""
    generator = np.random.default_rng(size)
    sets = [
        generator.normal(size=(5 * size, size)) @ generator.normal(size=(size, size)) + shift for shift in (0.0, 0.3)
    ]
    a, b = (distances.statistics(torch.from_numpy(s)) for s in sets)
    assert distances.frechet(a, b) == pytest.approx(closed_form(a, b), rel=1e-8, abs=1e-8)
    assert distances.frechet(a, b) == pytest.approx(distances.frechet(b, a), rel=1e-8, abs=1e-8)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-5)


def test_frechet_of_gaussians_whose_covariances_commute() -> None:
    """With one basis for both, it is Σ (µ_a − µ_b)² + Σ (√λ_a − √λ_b)²."""
    generator = np.random.default_rng(1)
    basis, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    one, two = np.array([4.0, 1.0, 9.0, 0.25, 2.0, 1.0]), np.array([1.0, 1.0, 4.0, 2.25, 3.0, 0.01])
    shift = np.array([1.0, 0.0, -2.0, 0.5, 0.0, 0.0])
    a = {"mu": np.zeros(6), "sigma": basis * one @ basis.T}
    b = {"mu": basis @ shift, "sigma": basis * two @ basis.T}
    expected = (shift**2).sum() + ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    assert distances.frechet(a, b) == pytest.approx(expected, rel=1e-8)


def test_statistics_are_mean_and_unbiased_covariance() -> None:
    """Division by N − 1, features along the second axis, float64."""
    x = torch.tensor([[1.0, 0.0], [2.0, 4.0], [6.0, 2.0]], dtype=torch.float64)
    found = distances.statistics(x)
    assert found["mu"].tolist() == [3.0, 2.0]
    assert found["sigma"].tolist() == [[7.0, 1.0], [1.0, 4.0]]


@pytest.mark.parametrize(("count", "size"), [(8, 8), (3, 8), (1, 1)])
def test_too_few_images_are_refused(count: int, size: int) -> None:
    """A covariance of N ≤ D features has no full rank: the key, both numbers and what would be right."""
    with pytest.raises(UserError) as caught:
        distances.statistics(torch.randn(count, size, dtype=torch.float64))
    message = str(caught.value)
    assert "sampling.images" in message and f"{count} images" in message and f"{size} features" in message
    assert distances.statistics(torch.randn(size + 1, size, dtype=torch.float64))["mu"].shape == (size,)


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


# ---- DINOv2 -----------------------------------------------------------------------------------------------


class Patches(torch.nn.Module):
    """Stands for the transformer: the means of 1024 patches of all three channels, times a weight."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 224, 224) and x.dtype == torch.float32
        return self.weight * torch.nn.functional.interpolate(x.mean(1, keepdim=True), (32, 32), mode="area").flatten(1)


def test_dinov2_sees_224_pixels_of_three_channels(digits: data.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.hub gives is asked for images of ImageNet's mean and deviation; its hash is that of its weights."""
    asked = []
    monkeypatch.setattr(torch.hub, "load", lambda *of, **_: asked.append(of) or Patches())
    measured = Evaluator(digits, {"extractor": "dinov2", "weights": ""}, None)
    found = measured.features(torch.full((2, 1, 8, 8), 16, dtype=torch.uint8))
    assert asked == [("facebookresearch/dinov2", "dinov2_vitl14")]
    white = np.mean([(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))])
    assert found.shape == (2, 1024) and found.dtype == torch.float64
    torch.testing.assert_close(found, torch.full((2, 1024), white).double(), rtol=1e-5, atol=1e-5)
    upper = digits.test.images[:1].clone()
    upper[:, :, 4:] = 0
    rows = measured.features(upper)[0].reshape(32, 32)
    assert float(rows[18:].std()) < 1e-5 < float(rows[:14].std())
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Patches(2.0))
    other = Evaluator(digits, {"extractor": "dinov2", "weights": ""}, None).extractor.hash
    assert measured.extractor.hash.startswith("dinov2-") and other != measured.extractor.hash


def test_offline_dinov2_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, why, and where its download may lie."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", fail)
    with pytest.raises(UserError, match=r"fidelity.extractor: 'dinov2'.*no route to host.*TORCH_HOME"):
        extractors.dinov2("")


def attended(x: torch.Tensor, weights: dict[str, torch.Tensor], at: str, heads: int) -> torch.Tensor:
    """Attention and perceptron of one layer, with γ apart, head by head."""

    def linear(of: str, h: torch.Tensor) -> torch.Tensor:
        return h @ weights[f"{at}.{of}.weight"].T + weights[f"{at}.{of}.bias"]

    def norm(of: str) -> torch.Tensor:
        h = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return h * weights[f"{at}.{of}.weight"] + weights[f"{at}.{of}.bias"]

    q, k, v = linear("attn.qkv", norm("norm1")).chunk(3, dim=-1)
    found = [
        torch.softmax(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5, dim=-1) @ c
        for a, b, c in zip(*(of.chunk(heads, dim=-1) for of in (q, k, v)), strict=True)
    ]
    x = x + weights[f"{at}.ls1.gamma"] * linear("attn.proj", torch.cat(found, dim=-1))
    hidden = linear("mlp.fc1", norm("norm2"))
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + weights[f"{at}.ls2.gamma"] * linear("mlp.fc2", hidden)


def transformer(width: int = 128, depth: int = 2, side: int = 5) -> dict[str, torch.Tensor]:
    """Random weights, by DINOv2's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side**2, width), "mask_token": (1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "norm.weight": (width,)}
    for i in range(depth):
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"blocks.{i}.ls{n}.gamma": (width,) for n in (1, 2)}
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_dinov2_from_a_file(digits: data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transformer layer by layer; the weights' hash is that of the same weights from torch.hub; what is no such
    file is said in one line."""
    weights, path = transformer(), tmp_path / "dinov2.pth"
    torch.save(weights, path)
    measured = Evaluator(digits, {"extractor": "dinov2", "weights": str(path)}, None)
    images = digits.test.images[:2]
    found = measured.features(images)
    # ---- by hand
    network = measured.extractor.network
    seen = []
    network.model.patches.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    measured.features(images)
    x = torch.nn.functional.conv2d(seen[0], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 14)
    assert x.shape[2:] == (16, 16)
    places = weights["pos_embed"][:, 1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
    places = torch.nn.functional.interpolate(places, scale_factor=16.1 / 5, mode="bicubic").flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"] + weights["pos_embed"][:, :1], places], dim=1) + torch.nn.functional.pad(
        x.flatten(2).transpose(1, 2), (0, 0, 1, 0)
    )
    for i in range(2):
        x = attended(x, weights, f"blocks.{i}", 2)
    x = torch.nn.functional.layer_norm(x[:, 0], (128,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    torch.testing.assert_close(found, x.double(), rtol=1e-4, atol=1e-4)
    # ---- its hash
    hub = torch.nn.Module()
    for name, tensor in weights.items():
        hub.register_buffer(name.replace(".", "_"), tensor)
    hub.state_dict = lambda *_, **__: {f"model.{k}": t for k, t in reversed(weights.items())}  # type: ignore[method-assign]
    monkeypatch.setattr(extractors, "dinov2", lambda _: hub)
    other = Evaluator(digits, {"extractor": "dinov2", "weights": ""}, None).extractor
    assert other.hash == measured.extractor.hash and other.hash.startswith("dinov2-")
    # ---- what is not right
    monkeypatch.undo()
    torch.save({k: t for k, t in weights.items() if k != "norm.bias"}, path)
    for file, said in ((path, "it lacks 'norm.bias'"), (tmp_path / "none", "no such file")):
        with pytest.raises(UserError, match=said):
            extractors.dinov2(str(file))


# ---- references and the stage -----------------------------------------------------------------------------


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


# ---- points ------------------------------------------------------------------------------------------


def test_sliced_wasserstein() -> None:
    """Zero for one set in another order; a shift d costs the mean of |uᵀd|, 2‖d‖/π; sizes may differ."""
    x = randn(11, 300, 2)
    assert distances.sliced_wasserstein(x, x.flip(0)) == 0
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert distances.sliced_wasserstein(x, x + shift, 5000) == pytest.approx(2 * 5 / math.pi, rel=0.02)
    assert distances.sliced_wasserstein(x, x.repeat(2, 1)) == pytest.approx(0, abs=1e-12)
    assert distances.sliced_wasserstein(2 * x, 2 * x + 2 * shift) == pytest.approx(
        2 * distances.sliced_wasserstein(x, x + shift), rel=1e-12
    )


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
