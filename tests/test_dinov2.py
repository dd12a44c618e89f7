"""DINOv2 as a feature extractor: what it sees, and its weights from a file."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import digits, prepared  # noqa: F401 - fixtures

from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.metrics import extractors
from ddpm.metrics.evaluator import Evaluator

torch.set_num_threads(1)


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
