"""The networks' formulas against plain re-statements in numpy: every layer, by the names of its weights, in float64."""

import math

import numpy as np
import pytest
import torch
from oracles import randn, stirred
from torch import nn

from ddpm import networks
from ddpm.condition import NOTHING, Condition
from ddpm.networks.classifier import Classifier, NoisyClassifier
from ddpm.networks.embedding import ConditionEmbedding
from ddpm.networks.mlp import MLP
from ddpm.networks.mlp import Block as PerceptronBlock
from ddpm.networks.unet import Attention, ResidualBlock, UNet

Array = np.ndarray
LOG_SNR = torch.tensor([-3.0, 0.4, 7.5], dtype=torch.float64)

pytestmark = pytest.mark.usefixtures("float64")


class Weights:
    """A network's weights in numpy; remembers which were asked for."""

    def __init__(self, network: nn.Module):
        self.values = {name: value.numpy() for name, value in network.state_dict().items()}
        self.used: set[str] = set()

    def __call__(self, name: str) -> Array:
        self.used.add(name)
        return self.values[name]

    def unused(self) -> set[str]:
        return self.values.keys() - self.used - {n for n in self.values if n.endswith("num_batches_tracked")}


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0)


def linear(w: Weights, name: str, x: Array) -> Array:
    return np.einsum("oi,bi->bo", w(f"{name}.weight"), x) + w(f"{name}.bias")


def convolve(w: Weights, name: str, x: Array, stride: int = 1) -> Array:
    """y[o, i, j] = b[o] + Σ_{c, u, v} W[o, c, u, v] x[c, s i + u − p, s j + v − p], 0 outside; kernels of 2p + 1."""
    kernel = w(f"{name}.weight")
    size, p = kernel.shape[-1], kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    height, width = (-(-n // stride) for n in x.shape[2:])
    found = np.zeros((len(x), len(kernel), height, width))
    for i in range(height):
        for j in range(width):
            window = padded[:, :, stride * i : stride * i + size, stride * j : stride * j + size]
            found[:, :, i, j] = np.einsum("ocuv,bcuv->bo", kernel, window)
    return found + w(f"{name}.bias")[:, None, None]


def group_norm(w: Weights, name: str, x: Array, groups: int) -> Array:
    """Zero mean and unit variance over each group of channels and all pixels, ε = 1e-5; then a scale and an offset."""
    parts = []
    for part in np.split(x, groups, axis=1):
        mean, var = part.mean(axis=(1, 2, 3), keepdims=True), part.var(axis=(1, 2, 3), keepdims=True)
        parts.append((part - mean) / np.sqrt(var + 1e-5))
    return np.concatenate(parts, axis=1) * w(f"{name}.weight")[:, None, None] + w(f"{name}.bias")[:, None, None]


def layer_norm(x: Array) -> Array:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def condition(w: Weights, log_snr: Array, labels: list[int] | None) -> Array:
    """silu(W₂ silu(W₁ [sin ω λ, cos ω λ] + b₁) + b₂ + label), 32 ω in geometric progression from 1/8 to 16."""
    omega = 0.125 * 128 ** (np.arange(32) / 31)
    angle = log_snr[:, None] * omega
    h = silu(linear(w, "condition.layers.0", np.concatenate([np.sin(angle), np.cos(angle)], axis=1)))
    h = linear(w, "condition.layers.2", h)
    return silu(h if labels is None else h + w("condition.label.weight")[labels])


# ---- the U-Net --------------------------------------------------------------------------------------------


def groups(channels: int) -> int:
    return channels // 16 if channels % 16 == 0 else 1


def residual(w: Weights, name: str, x: Array, c: Array) -> Array:
    out = len(w(f"{name}.conv1.bias"))
    h = convolve(w, f"{name}.conv1", silu(group_norm(w, f"{name}.norm1", x, groups(x.shape[1]))))
    both = linear(w, f"{name}.condition", c)
    scale, shift = both[:, :out, None, None], both[:, out:, None, None]
    h = group_norm(w, f"{name}.norm2", h, groups(out)) * (1 + scale) + shift
    straight = x if x.shape[1] == out else convolve(w, f"{name}.skip", x)
    return straight + convolve(w, f"{name}.conv2", silu(h))


def attention(w: Weights, name: str, x: Array) -> Array:
    """x + W_o [Σ_n softmax_n(q_m · k_n/√d) v_n] + b_o in four heads of d channels; W_qkv gives q, then k, then v."""
    b, c, height, width = x.shape
    mixed = convolve(w, f"{name}.qkv", group_norm(w, f"{name}.norm", x, groups(c))).reshape(b, 3 * c, -1)
    q, k, v = mixed[:, :c], mixed[:, c : 2 * c], mixed[:, 2 * c :]
    found, size = np.zeros((b, c, height * width)), c // 4
    for image in range(b):
        for head in range(4):
            own = slice(head * size, (head + 1) * size)
            logits = q[image, own].T @ k[image, own] / math.sqrt(size)
            weight = np.exp(logits - logits.max(axis=1, keepdims=True))
            weight /= weight.sum(axis=1, keepdims=True)
            found[image, own] = (weight @ v[image, own].T).T
    return x + convolve(w, f"{name}.out", found.reshape(b, c, height, width))


def unet(w: Weights, x: Array, log_snr: Array, labels: list[int] | None, depth: int, blocks: int, attend: set) -> Array:
    """Down with `blocks` blocks per resolution, one block in the middle, up with the skip connections beside it."""
    c = condition(w, log_snr, labels)

    def block(name: str, h: Array, level: int) -> Array:
        h = residual(w, f"{name}.residual", h, c)
        return attention(w, f"{name}.attention", h) if level in attend else h

    h, names, skips = convolve(w, "first", x), ["resolutions" + ".inner" * level for level in range(depth)], []
    for level, name in enumerate(names):
        for i in range(blocks):
            h = block(f"{name}.before.{i}", h, level)
        skips.append(h)
        h = convolve(w, f"{name}.shrink", h, stride=2) if level < depth - 1 else block(f"{name}.inner", h, level)
    for level, name in reversed(list(enumerate(names))):
        skip = skips[level]
        if level < depth - 1:
            fours, grown = convolve(w, f"{name}.grow.0", h), np.zeros_like(skip)
            for row, column in np.ndindex(*skip.shape[2:]):  # channel 4 c + 2 i + j is pixel (i, j) of channel c
                inside = 2 * (row % 2) + column % 2
                grown[:, :, row, column] = fours[:, inside::4, row // 2, column // 2]
            h = grown
        h = np.concatenate([h, skip], axis=1)
        for i in range(blocks):
            h = block(f"{name}.after.{i}", h, level)
    return convolve(w, "last", silu(group_norm(w, "norm", h, groups(h.shape[1]))))


UNETS = {
    "the default": ((1, 8, 8), 1, 0, {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": ()}),
    "all of it, on odd sizes": (
        (2, 7, 5),
        2,
        3,
        {"width": 16, "multipliers": (1, 2, 3), "blocks": 2, "attention": (0, 2)},
    ),
    "one resolution of 12": (
        (1, 4, 4),
        1,
        2,
        {"width": 12, "multipliers": (1,), "blocks": 1, "attention": [0]},
    ),
    "no block on the way": ((1, 4, 6), 2, 0, {"width": 8, "multipliers": (2, 1), "blocks": 1, "attention": (1,)}),
}


@pytest.mark.parametrize("case", UNETS)
def test_the_unet_is_its_formula(case: str) -> None:
    """Skips, conditioning, attention, up- and downsampling, norms: all weights used, by their names."""
    shape, heads, classes, spec = UNETS[case]
    network = stirred(networks.build({"method": "unet"} | spec, shape, heads, classes)).eval()
    w, x = Weights(network), randn(1, 3, *shape)
    y = torch.tensor([classes - 1, classes, 0]) if classes else None
    labels = None if y is None else y.tolist()
    depth, blocks, attend = len(spec["multipliers"]), spec["blocks"], set(spec["attention"])
    expected = unet(w, x.numpy(), LOG_SNR.numpy(), labels, depth, blocks, attend)
    assert w.unused() == set()
    found = network(x, LOG_SNR, Condition(y))
    assert found.shape == (3, heads * shape[0], *shape[1:])
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-8, atol=1e-10)


def test_the_parts_of_the_unet() -> None:
    """A residual block that changes the number of channels, and attention, each alone."""
    block, c, x = stirred(ResidualBlock(16, 32, 5)), randn(2, 2, 5), randn(3, 2, 16, 4, 3)
    w = Weights(nn.ModuleDict({"part": block}))
    found = block(x, c).detach().numpy()
    np.testing.assert_allclose(found, residual(w, "part", x.numpy(), c.numpy()), rtol=1e-9, atol=1e-11)
    part = stirred(Attention(16))
    found = part(x).detach().numpy()
    expected = attention(Weights(nn.ModuleDict({"part": part})), "part", x.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


# ---- the perceptron ---------------------------------------------------------------------------------------


def perceptron(w: Weights, x: Array, log_snr: Array, labels: list[int] | None, depth: int) -> Array:
    c = condition(w, log_snr, labels)
    h = linear(w, "first", x.reshape(len(x), -1))
    for i in range(depth):
        both = linear(w, f"blocks.{i}.condition", c)
        scale, shift = np.split(both, 2, axis=1)
        inner = linear(w, f"blocks.{i}.inner", layer_norm(h) * (1 + scale) + shift)
        h = h + linear(w, f"blocks.{i}.outer", silu(inner))
    return linear(w, "last", layer_norm(h) * w("norm.weight") + w("norm.bias"))


@pytest.mark.parametrize(
    ("shape", "heads", "classes", "depth"), [((2,), 1, 0, 3), ((2,), 2, 4, 2), ((1, 3, 2), 2, 3, 1), ((3,), 1, 2, 0)]
)
def test_the_perceptron_is_its_formula(shape: tuple[int, ...], heads: int, classes: int, depth: int) -> None:
    """Points and small images, with and without labels; heads stand one after the other along the channels."""
    network = stirred(networks.build({"method": "mlp", "width": 12, "depth": depth}, shape, heads, classes))
    w, x = Weights(network), randn(4, 3, *shape)
    y = torch.tensor([classes, 1, 0]) if classes else None
    expected = perceptron(w, x.numpy(), LOG_SNR.numpy(), None if y is None else y.tolist(), depth)
    assert w.unused() == set()
    found = network(x, LOG_SNR, Condition(y))
    assert found.shape == (3, heads * shape[0], *shape[1:])
    np.testing.assert_allclose(found.detach().numpy().reshape(3, -1), expected, rtol=1e-9, atol=1e-11)


# ---- conditioning, of both --------------------------------------------------------------------------------

BOTH = {
    "unet": lambda classes: UNet((1, 8, 8), 1, classes, width=16),
    "mlp": lambda classes: MLP((1, 8, 8), 1, classes, width=16),
}


@pytest.mark.parametrize("method", BOTH)
def test_the_output_depends_on_noise_level_and_label(method: str) -> None:
    """Another log SNR or label, another output; no label is the null label; without classes labels are ignored."""
    network, x, none = stirred(BOTH[method](3)), randn(5, 3, 1, 8, 8), Condition(torch.tensor([3, 3, 3]))

    def apart(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool(((a - b).flatten(1).abs().amax(1) > 1e-3).all())

    plain = network(x, LOG_SNR, NOTHING)
    assert torch.equal(network(x, LOG_SNR, none), plain) and torch.equal(network(x, LOG_SNR), plain)
    assert apart(network(x, LOG_SNR + 0.1, NOTHING), plain)
    answers = [plain] + [network(x, LOG_SNR, Condition(torch.full((3,), k))) for k in range(3)]
    assert all(apart(a, b) for i, a in enumerate(answers) for b in answers[:i])
    without = stirred(BOTH[method](0))
    assert torch.equal(without(x, LOG_SNR, none), without(x, LOG_SNR, NOTHING))
    assert "condition.label.weight" not in without.state_dict() and without.classes == 0 and network.classes == 3


def test_the_condition_is_its_formula() -> None:
    """Alone, at noise levels far outside of the usual."""
    network, log_snr = stirred(ConditionEmbedding(7, classes=2)), torch.tensor([-40.0, -1e-3, 25.0])
    w = Weights(nn.ModuleDict({"condition": network}))
    for y, labels in ((torch.tensor([1, 2, 0]), [1, 2, 0]), (None, [2, 2, 2])):
        found = network(log_snr, Condition(y)).detach().numpy()
        np.testing.assert_allclose(found, condition(w, log_snr.numpy(), labels), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", BOTH)
def test_a_new_network_answers_zero(method: str) -> None:
    """The last layer starts at zero, and so does the last one of every residual branch."""
    network, x = BOTH[method](2), randn(6, 3, 1, 8, 8)
    assert not network(x, LOG_SNR, Condition(torch.tensor([0, 1, 2]))).any()
    h, c = randn(7, 3, 16, 4, 4), randn(8, 3, 64)
    assert torch.equal(ResidualBlock(16, 16, 64)(h, c), h) and torch.equal(Attention(16)(h), h)
    assert torch.equal(PerceptronBlock(64)(c, c), c)


@pytest.mark.parametrize(("method", "spec"), [("unet", {"width": 16}), ("mlp", {"width": 16, "depth": 1})])
def test_build(method: str, spec: dict) -> None:
    """The class by its name with the given parameters, in channels-last memory; the description is left as it was."""
    given = {"method": method} | spec
    network = networks.build(given, (1, 8, 8), 2, 5)
    assert type(network).method == method and network.classes == 5 and given == {"method": method} | spec
    assert network(randn(0, 3, 1, 8, 8), LOG_SNR, NOTHING).shape == (3, 2, 8, 8)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)


# ---- the classifiers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 4, 5), (1, 3, 3)])
def test_the_noisy_classifier_is_its_formula(shape: tuple[int, int, int]) -> None:
    """A convolution halves the image as long as 2 pixels are left; norm, scale and shift by log SNR; mean; linear."""
    network = stirred(NoisyClassifier(shape, 5, width=16))
    w, x = Weights(network), randn(9, 3, *shape)
    c, h = condition(w, LOG_SNR.numpy(), None), x.numpy()
    for i in range(3):
        h = convolve(w, f"convolutions.{i}", h, stride=2 if min(shape[1:]) // 2 ** (i + 1) >= 2 else 1)
        scale, shift = np.split(linear(w, f"shifts.{i}", c)[:, :, None, None], 2, axis=1)
        h = silu(group_norm(w, f"norms.{i}", h, h.shape[1] // 16) * (1 + scale) + shift)
    expected = linear(w, "head", h.mean(axis=(2, 3)))
    assert w.unused() == set() and h.shape[1] == 64
    np.testing.assert_allclose(network(x, LOG_SNR).detach().numpy(), expected, rtol=1e-9, atol=1e-11)


def pool(x: Array) -> Array:
    """The largest of every 2 × 2 pixels; an odd row or column is left out."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    return np.max([x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)], axis=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("shape", "halvings"), [((1, 8, 8), 2), ((2, 28, 28), 3), ((1, 4, 7), 1), ((3,), 0)])
def test_the_classifier_is_its_formula(shape: tuple[int, ...], halvings: int, training: bool) -> None:
    """Convolution, batch norm (running statistics, or the batch's while training), ReLU, pooling; then two layers."""
    network = stirred(Classifier(shape, 4, width=6, features=9)).train(training)
    w, x = Weights(network), randn(10, 5, *shape)
    h = x.numpy()
    for i in range(halvings):
        h = convolve(w, f"body.{4 * i}", h)
        mean, var = (w(f"body.{4 * i + 1}.running_{of}") for of in ("mean", "var"))
        if training:
            mean, var = h.mean(axis=(0, 2, 3)), h.var(axis=(0, 2, 3))
        h = (h - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
        h = h * w(f"body.{4 * i + 1}.weight")[:, None, None] + w(f"body.{4 * i + 1}.bias")[:, None, None]
        h = pool(relu(h))
    features = relu(linear(w, f"body.{4 * halvings + 1}", h.reshape(5, -1)))
    expected = linear(w, "head", features)
    assert w.unused() == set()
    found = network.features(x).detach().numpy()
    np.testing.assert_allclose(found, features, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-11)
