"""FID and binarized FID through torch-fidelity, with a classifier of the same data as feature extractor.

For points in the plane the features may be the coordinates themselves, and a second distance sees shapes.
Two FIDs are comparable only if extractor and number of images agree: the extractor's hash stands in every
record, N is exact, and the rows of real data give the scale (`ddpm.toplines`).
"""

import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from tqdm import tqdm

from ddpm import data, noise, toplines
from ddpm.baselines import Baseline
from ddpm.data import Split, reference
from ddpm.errors import UserError
from ddpm.grid import BASELINES, canonical
from ddpm.layout import Layout
from ddpm.networks.classifier import Classifier
from ddpm.provenance import Recorder, read_record, read_tensors, sha256, write_tensors

Tensor = torch.Tensor
# The rows of real images → whether their classes come by chance.
REAL = {"real": False, "real-by-chance": True}


class ClassifierExtractor(FeatureExtractorBase):
    """torch-fidelity's interface to the trained classifier: uint8 images (B, C, H, W) → float64 features (B, D).

    Points, float32 (B, D), go through the same way.

    Features are divided by s = √(trace Σ_train / D), so that they have mean variance 1 on the training half:
    FID keeps its order and gets a scale that does not depend on the classifier's last layer.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: object):
        super().__init__(name, features_list)
        tensors, _ = read_tensors(Path(feature_extractor_weights_path))
        self.scale = float(tensors.pop("scale"))
        side = int(tensors.pop("side"))
        first, last = tensors["body.0.weight" if side else "body.1.weight"], tensors["head.weight"]
        self.shape = (first.shape[1], side, side) if side else (first.shape[1],)
        self.dtype = torch.uint8 if side else torch.float32
        self.network = Classifier(self.shape, last.shape[0], width=first.shape[0], features=last.shape[1])
        self.network.load_state_dict(tensors)
        self.eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.dtype != self.dtype or tuple(images.shape[1:]) != self.shape:
            kind = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"images of {images.dtype} {tuple(images.shape[1:])}; the extractor takes {kind} {self.shape}"
            )
        features = self.network.features(centred(images))
        found = {"features": features.double() / self.scale, "logits": self.network.head(features).double()}
        return tuple(found[name] for name in self.features_list)


def grey(images: Tensor, levels: int) -> Tensor:
    """Grey levels 0 … levels − 1 → 0 … 255, uint8, rounded; points (levels = 0) stay as they are."""
    return (images.double() * (255 / (levels - 1))).round().to(torch.uint8) if levels else images


def centred(images: Tensor) -> Tensor:
    """What the classifier is given: 0 … 255 → [−1, 1]; points stay as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def binarize(images: Tensor) -> Tensor:
    """Threshold 0.5 of 0 … 255: x ≥ 128 becomes 255, all else 0; uint8."""
    return (images >= 128).to(torch.uint8) * 255


def inception(weights: str) -> FeatureExtractorBase:
    """torch-fidelity's Inception-v3, 2048 features; `weights` is its state dict, or empty to download it."""
    if weights:
        if not Path(weights).is_file():
            raise UserError(
                f"fidelity.weights: {weights}: no such file; it must be torch-fidelity's Inception state dict"
            )
        try:
            torch.load(weights, weights_only=True)
        except Exception as e:
            why = (str(e) or type(e).__name__).splitlines()[0]
            raise UserError(f"fidelity.weights: {weights}: is no plain state dict of tensors ({why})") from None
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights or None)
    except RuntimeError as e:
        raise UserError(f"fidelity.weights: {weights}: not Inception's weights: {str(e).splitlines()[0]}") from None
    except OSError as e:
        raise UserError(
            f"fidelity.weights: '', and Inception's weights could not be downloaded ({e}): "
            "set it to the file pt_inception-2015-12-05-6726825d.pth, or extractor to classifier."
        ) from None


class Extractor:
    """The extractor of a configuration: images as grey levels → features (N, D), float64, and class logits."""

    def __init__(self, spec: dict, weights: Path, levels: int, device: str = "cpu"):
        self.levels, self.device, self.is_inception = levels, device, spec["extractor"] == "inception"
        self.classifier = ClassifierExtractor("ddpm-classifier", ["features", "logits"], str(weights)).to(device)
        if spec["extractor"] == "identity":
            self.network, self.hash = lambda images: (images.flatten(1),), "identity"
            return
        self.network = inception(spec["weights"]).to(device).eval() if self.is_inception else self.classifier
        file = spec["weights"] if self.is_inception else weights
        self.hash = sha256(file)[:12] if file else self.network.get_name()

    @torch.no_grad()
    def __call__(self, images: Tensor, binarized: bool = False) -> Tensor:
        found = []
        for batch in images.split(64 if self.is_inception else 512):
            batch = grey(batch, self.levels).to(self.device)
            batch = binarize(batch) if binarized else batch
            if self.is_inception:
                batch = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch
            found.append(self.network(batch)[0].double().cpu())
        return torch.cat(found)

    def predict(self, images: Tensor) -> Tensor:
        """The classifier's label of every image, int64 (N,)."""
        return torch.cat(
            [self.classifier(grey(b, self.levels).to(self.device))[1].argmax(1).cpu() for b in images.split(512)]
        )


def enough(n: int, d: int) -> None:
    """Refuse a covariance of d features that n images cannot give."""
    if n <= d:
        raise UserError(f"sampling.images: {n} images for {d} features; FID needs more images than features")


def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance as torch-fidelity wants them; refuses what would only look like a FID."""
    enough(*features.shape)
    return fid_features_to_statistics(features)


def frechet(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """‖µ_a − µ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½) (Heusel et al. 2017), by torch-fidelity."""
    return fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]


def within_classes(features: Tensor, labels: Tensor) -> float:
    """Σ ‖f − mean of its class‖²/(N − classes): the variance of features (N, D) within the classes `labels` (N,)."""
    _, label = labels.unique(return_inverse=True)
    count = torch.bincount(label)
    means = torch.zeros(len(count), features.shape[1], dtype=features.dtype).index_add(0, label, features)
    error = features - (means / count[:, None])[label]
    return float(error.square().sum()) / max(1, len(features) - len(count))


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """The mean distance by which the points a (N, D) must be moved to become b (M, D), as seen from random directions.

    1/L Σ_l W₁(a u_l, b u_l) with unit vectors u_l, in units of the data (Rabin et al. 2011). Zero for equal sets alone,
    where the Fréchet distance compares no more than mean and covariance.
    """
    u = noise.normal(noise.key("directions"), torch.arange(directions), 0, tuple(a.shape[1:]), torch.float64)
    u = u / u.norm(dim=1, keepdim=True)
    pairs = zip((a.double() @ u.T).T.numpy(), (b.double() @ u.T).T.numpy(), strict=True)
    return float(np.mean([wasserstein_distance(x, y) for x, y in pairs]))


def train_classifier(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `classifier` stage: the feature extractor, trained on the training half."""
    torch.set_num_threads(job["threads"])
    recorder = Recorder("classifier", job, code, layout.inputs("classifier"))
    dataset, settings = data.read(layout.data), job["classifier"]
    torch.manual_seed(noise.key("classifier", settings["seed"]) & (2**63 - 1))
    network = Classifier(dataset.shape, dataset.classes, settings["width"], settings["features"])

    def inputs(half: Split) -> Tensor:
        return centred(grey(half.images, dataset.levels))

    images, labels = inputs(dataset.train), dataset.train.labels
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings["learning_rate"], fused=True)
    recorder.phase("training")
    steps = settings["epochs"] * -(-len(images) // settings["batch"])
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings["learning_rate"], total_steps=steps)
    for epoch in tqdm(range(settings["epochs"]), desc="classifier", unit="epoch"):
        for index in noise.permutation(len(images), "classifier", settings["seed"], epoch).split(settings["batch"]):
            loss = nn.functional.cross_entropy(network(images[index]), labels[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            rate.step()
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.features(b) for b in images.split(512)]).double()
        guessed = torch.cat([network(b).argmax(1) for b in inputs(dataset.test).split(512)])
    tensors = network.state_dict() | {
        "scale": (features.var(0).mean()).sqrt(),
        "side": torch.tensor(dataset.shape[1] if dataset.levels else 0),
    }
    write_tensors(layout.classifier, tensors)
    accuracy = (guessed == dataset.test.labels).double().mean()
    recorder.finish(layout.record("classifier"), [layout.classifier], test_accuracy=round(float(accuracy), 6))


class Yardstick:
    """What every cell is measured with: the data, the extractor, and the statistics of the real halves."""

    def __init__(self, layout: Layout, spec: dict, device: str):
        self.dataset = data.read(layout.data)
        self.extractor = Extractor(spec, layout.classifier, self.dataset.levels, device)

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


def evaluate(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `fidelity` stage of one cell, or of a baseline.

    FID against the whole test half (`fid`) and the whole training half (`fid_train`), and both binarized (of points,
    which have no binary form, the sliced Wasserstein distance to the test half instead); the variance of the features
    within classes, as a multiple of the test half's (`diversity`); the share of conditional images that the classifier
    gives the label that was asked for (`label_accuracy`). Of a baseline whose law is known, also its −log2 p/D of the
    whole test half (`bits_per_dim`, exact, with its standard error over images).
    """
    torch.set_num_threads(job["threads"])
    name = job["name"]
    recorder, out = (
        Recorder("fidelity", job, code, layout.inputs("fidelity", name), device),
        layout.record("fidelity", name),
    )
    if name not in BASELINES:
        status = read_record(layout.record("sample", name))["status"]
        if status != "ok":
            recorder.finish(out, [], status)
            return
    hashes = tuple(recorder.record["inputs"][of] for of in ("data", "extractor"))
    yardstick = _yardstick(layout, hashes, canonical(job["fidelity"]), device)
    dataset, count, labels, bits = yardstick.dataset, job["images"], None, None
    if name not in BASELINES:
        tensors, _ = read_tensors(layout.samples(name))
        images, labels = tensors["images"], tensors.get("labels")
    else:
        baseline = Baseline.make({"method": name, "dataset": dataset})
        images, bits = baseline.draw(count), baseline.bits_per_dim(dataset.test.images)
    if len(images) != count:
        raise UserError(
            f"{layout.samples(name)}: {len(images)} images; the configuration says {count}: delete it and run again"
        )
    recorder.phase("measuring")
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
    recorder.finish(out, [], "ok", images=count, extractor=yardstick.extractor.hash, **result)
