"""Feature extractors."""

from pathlib import Path

import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm.errors import UserError
from ddpm.networks.classifier import Classifier
from ddpm.pipeline.records import read_tensors, sha256

Tensor = torch.Tensor


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
