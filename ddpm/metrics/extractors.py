"""Feature extractors."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ddpm.errors import UserError
from ddpm.methods import Method
from ddpm.metrics.dinov2 import FromFile, weights_of
from ddpm.networks.classifier import Classifier
from ddpm.pipeline.records import read_tensors, sha256

Tensor = torch.Tensor


class ClassifierExtractor(FeatureExtractorBase):
    """torch-fidelity's interface to the trained classifier: uint8 images (B, C, H, W) → float64 features (B, D).

    Points, float32 (B, D), go through the same way.

    Features are divided by s = √(trace Σ_train / D), so that they have mean variance 1 on the training split:
    FID keeps its order and gets a scale that does not depend on the classifier's last layer.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: object):
        super().__init__(name, features_list)
        tensors, _ = read_tensors(Path(feature_extractor_weights_path))
        self.scale = float(tensors.pop("scale"))
        size = image_size(tensors.pop("side"))
        first, last = tensors["body.0.weight" if size else "body.1.weight"], tensors["head.weight"]
        self.shape = (first.shape[1], *size)
        self.dtype = torch.uint8 if size else torch.float32
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


def side(shape: tuple[int, ...]) -> Tensor:
    """Height and width of images of this shape as a file of weights has them, int64: (2,), a single number where both
    are equal, and 0 for points."""
    size = shape[1:] or (0,)
    return torch.tensor(size[0] if len(set(size)) == 1 else size)


def image_size(side: Tensor) -> tuple[int, ...]:
    """(H, W) from what `side` made of them; () for points."""
    return tuple(side.expand(2).tolist()) if side.any() else ()


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


def dinov2(weights: str) -> FeatureExtractorBase:
    """torch-fidelity's DINOv2, ViT-L/14 with 1024 features; `weights` is its state dict, or empty for torch.hub to
    download code and weights."""
    if weights:
        return FromFile(weights)
    try:
        return FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    except (OSError, RuntimeError, ImportError) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(
            f"fidelity.extractor: 'dinov2', and torch.hub could not load facebookresearch/dinov2 ({why}): on a machine "
            "that is offline, fidelity.weights must be dinov2_vitl14_pretrain.pth, or TORCH_HOME name a folder that it "
            "has been downloaded to before"
        ) from None


@dataclass(frozen=True, eq=False)
class Extractor(Method):
    """Base of the feature extractors, each loaded where it is first asked for something.

    Planning reads the class's attributes without importing it, so they are literals:

    wants:    what it needs of the data, see `ddpm.pipeline.measures`.
    counted:  how many features it has: a number, `coordinates` for one per coordinate of an image, or the key of the
              configuration that says so.
    batch:    how many images it takes at once.
    loads:    whether it has weights from elsewhere, for which `fidelity.weights` may name a file.
    """

    wants: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[int | str] = "coordinates"
    batch: ClassVar[int] = 512
    loads: ClassVar[bool] = False
    weights: str = ""
    device: str = "cpu"

    @property
    def hash(self) -> str:
        """What tells its values from those of others: two FIDs are comparable only if it is the same."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), uint8, or points (B, D) → features (B, D), on the device."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class TrainedClassifier(Extractor):
    """The layer below the logits of the classifier that the `classifier` stage trains; `weights` is its file."""

    method = "classifier"
    wants = ("classifier",)
    counted = "classifier.features"

    @cached_property
    def network(self) -> ClassifierExtractor:
        return ClassifierExtractor("ddpm-classifier", ["features", "logits"], self.weights).to(self.device)

    @property
    def hash(self) -> str:
        return sha256(self.weights)[:12]

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """log p(label | image) of every image up to a constant, float64 (B, classes)."""
        return self.network(images)[1]

    def predict(self, images: Tensor) -> Tensor:
        """The most likely label of every image, int64 (B,)."""
        return self.logits(images).argmax(1)


@dataclass(frozen=True, eq=False)
class Inception(Extractor):
    """torch-fidelity's Inception-v3 (Szegedy et al. 2016), with the weights of the field's FID."""

    method = "inception"
    wants = ("images",)
    counted = 2048
    batch = 64
    loads = True

    @cached_property
    def network(self) -> FeatureExtractorBase:
        return inception(self.weights).to(self.device).eval()

    @property
    def hash(self) -> str:
        return sha256(self.weights)[:12] if self.weights else self.network.get_name()

    def __call__(self, images: Tensor) -> Tensor:
        """Grey images become three equal channels."""
        return self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)[0]


@dataclass(frozen=True, eq=False)
class DINOv2(Extractor):
    """DINOv2's ViT-L/14 at 224 pixels (Oquab et al. 2023), by torch-fidelity: of all extractors the one whose distances
    agree best with what people see in photographs (Stein et al. 2023). torch.hub downloads 1.2 GB at first use, where
    `weights` names no file."""

    method = "dinov2"
    wants = ("images",)
    counted = 1024
    batch = 16
    loads = True

    @cached_property
    def network(self) -> FeatureExtractorBase:
        return dinov2(self.weights).to(self.device).eval()

    @cached_property
    def hash(self) -> str:
        # Of the weights themselves, so that it is the same wherever they come from.
        own = {name.removeprefix("model."): tensor for name, tensor in self.network.state_dict().items()}
        whole = hashlib.sha256()
        for name, tensor in sorted((weights_of(self.weights) if self.weights else own).items()):
            whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return f"dinov2-{whole.hexdigest()[:12]}"

    def __call__(self, images: Tensor) -> Tensor:
        """Grey images become three equal channels."""
        return self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)[0]


@dataclass(frozen=True, eq=False)
class Identity(Extractor):
    """No features: the coordinates themselves."""

    method = "identity"

    @property
    def hash(self) -> str:
        return "identity"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)
