"""DiT: its positions in closed form, its formula against diffusers' on the same weights, its sizes, its mistakes."""

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from oracles import randn, stirred
from project import ROOT
from torch import nn
from torch.nn import functional as F

from ddpm import networks
from ddpm.condition import Condition
from ddpm.networks.dit import SIZES, DiT, positions
from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError

LOG_SNR, LABELS = torch.tensor([-3.0, 0.4, 7.5], dtype=torch.float64), torch.tensor([2, 0, 3])

pytestmark = pytest.mark.usefixtures("float64")


def small(heads: int = 1, classes: int = 3, side: int = 8) -> DiT:
    """2 × 2 pixels a token, width 16, two blocks of four heads, random weights."""
    made = stirred(DiT((3, side, side), heads, classes, patch=2, width=16, depth=2, attention_heads=4))
    made.position = positions(side // 2, side // 2, 16)
    return made


def test_positions_are_sines_of_column_and_row() -> None:
    """One place by hand, and a square grid as diffusers has it."""
    found = positions(3, 5, 8)
    column, row = 4, 2
    expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in (1, 0.01)]
    torch.testing.assert_close(found[row * 5 + column], torch.tensor(expected), rtol=1e-14, atol=1e-14)
    reference = get_2d_sincos_pos_embed(16, 4, base_size=4, output_type="pt").double()
    torch.testing.assert_close(positions(4, 4, 16), reference, rtol=1e-6, atol=1e-6)


class Given(nn.Module):
    """What diffusers' blocks ask for an embedding of time and label: one that is there."""

    def __init__(self, embedding: torch.Tensor):
        super().__init__()
        self.embedding = embedding

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        return self.embedding


def diffusers_dit(made: DiT, embedding: torch.Tensor) -> DiTTransformer2DModel:
    """diffusers' DiT with our weights, given the condition's embedding before its last SiLU."""
    theirs = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=4,
        in_channels=3,
        out_channels=made.last.out_features // 4,
        num_layers=len(made.blocks),
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_eps=1e-6,
    ).double()
    weights = {"pos_embed.proj": made.first, "proj_out_1": made.modulation, "proj_out_2": made.last}
    for i, block in enumerate(made.blocks):
        at = f"transformer_blocks.{i}."
        weights |= {f"{at}norm1.linear": block.modulation, f"{at}attn1.to_out.0": block.out}
        weights |= {f"{at}ff.net.0.proj": block.mlp[0], f"{at}ff.net.2": block.mlp[2]}
        for name, w, b in zip("qkv", block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True):
            theirs.get_submodule(f"{at}attn1.to_{name}").load_state_dict({"weight": w, "bias": b})
        theirs.transformer_blocks[i].norm1.emb = Given(embedding)
    for name, layer in weights.items():
        theirs.get_submodule(name).load_state_dict(layer.state_dict())
    theirs.pos_embed.pos_embed = made.position[None]
    return theirs.eval()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_formula_is_diffusers(heads: int) -> None:
    """The same output from the same weights, to 1e-10 of its size, with labels and without."""
    made, x = small(heads), randn(9, 3, 3, 8, 8)
    for condition in (Condition(LABELS), Condition()):
        angle = LOG_SNR[:, None] * made.condition.frequency
        null = torch.full((3,), 3)
        embedding = made.condition.layers(torch.cat([angle.sin(), angle.cos()], 1))
        embedding = embedding + made.condition.label(null if condition.labels is None else condition.labels)
        assert torch.equal(F.silu(embedding), made.condition(LOG_SNR, condition))
        found = made(x, LOG_SNR, condition)
        expected = diffusers_dit(made, embedding)(x, torch.zeros(3), torch.zeros(3, dtype=torch.int64)).sample
        assert found.shape == (3, 3 * heads, 8, 8) and expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 1e-10 * expected.abs().max()


def test_every_patch_is_put_where_it_was() -> None:
    """On a grid of 2 × 3 patches, without blocks, the last layer undoes the first: the image comes back."""
    made = DiT((2, 4, 6), patch=2, width=8, depth=0, attention_heads=1).requires_grad_(False)
    assert made.grid == (2, 3)
    made.position = torch.zeros(6, 8)
    channel, row, column = torch.meshgrid(*map(torch.arange, (2, 2, 2)), indexing="ij")
    made.first.weight.zero_()
    made.first.weight[torch.arange(8), channel.flatten(), row.flatten(), column.flatten()] = 1
    made.last.weight.copy_(torch.eye(8).unflatten(0, (2, 2, 2)).permute(1, 2, 0, 3).flatten(0, 2))
    x = randn(0, 1, 2, 4, 6)
    tokens = made.first(x).flatten(2).transpose(1, 2)
    normal = F.layer_norm(tokens, (8,), eps=1e-6)
    mean, scale = tokens.mean(2, keepdim=True), (tokens.var(2, keepdim=True, correction=0) + 1e-6).sqrt()
    back = (normal * scale + mean).unflatten(1, (2, 3)).unflatten(3, (2, 2, 2))  # channel, row, column
    torch.testing.assert_close(back.permute(0, 3, 1, 4, 2, 5).reshape(1, 2, 4, 6), x)
    expected = normal.unflatten(1, (2, 3)).unflatten(3, (2, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(1, 2, 4, 6)
    torch.testing.assert_close(made(x, LOG_SNR[:1]), expected)


def test_it_begins_as_nothing() -> None:
    """The output is 0 and every block is the identity (adaLN-Zero)."""
    torch.manual_seed(0)
    made = DiT((3, 8, 8), classes=3, width=16, depth=2, attention_heads=4)
    assert not made(randn(0, 3, 3, 8, 8), LOG_SNR, Condition(LABELS)).any()
    tokens, embedding = randn(1, 3, 16, 16), made.condition(LOG_SNR, Condition(LABELS))
    assert all(torch.equal(block(tokens, embedding), tokens) for block in made.blocks)
    assert 0.015 < made.condition.label.weight.std() < 0.025


@pytest.mark.parametrize(("size", "millions"), [("S", 33.0), ("B", 130.0), ("L", 458.0), ("XL", 675.0)])
def test_the_sizes_are_the_papers(size: str, millions: float) -> None:
    """Parameters on 32 × 32 × 4 latents with 1 000 classes (Peebles & Xie 2023, table 4), where the embedding of time
    has 256 features."""
    with torch.device("meta"):
        made = DiT((4, 32, 32), 2, 1000, size=size, patch=2)
    width, depth, _ = SIZES[size]
    count = sum(p.numel() for p in made.parameters()) + (256 - 64) * width
    assert len(made.blocks) == depth and count / 1e6 == pytest.approx(millions, rel=0.01)


def said(network: dict, **data: object) -> list[str]:
    """What a configuration with this network is told."""
    read = config.merge(config.read(ROOT / "config.yaml"), {"data": data} if data else {})
    try:
        config.check(read | {"network": {"method": "dit"} | network})
    except ConfigError as e:
        return e.messages
    return []


def test_mistakes_are_said_before_the_first_job() -> None:
    """Patches that do not fit, heads that do not share the width, and a size beside what it decides."""
    assert said({"size": "B", "patch": 4}) == said({"width": 32, "depth": 2, "attention_heads": 4}) == []
    assert said({"patch": 3}) == ["network.patch: 3; it must divide the images' height and width, 8 × 8"]
    assert said({"width": 36, "attention_heads": 8}) == [
        "network.width: 36; it must be a multiple of attention_heads, 8"
    ]
    assert said({"size": "S", "depth": 3})[0].startswith("network.depth: 3; nothing uses it with size 'S'")
    assert said({"size": "M"})[0].startswith("network.size: 'M'") and "multiple of 4" in said({"width": 30})[0]
    assert said({"patch": 8}, name="folder", path="x", size=20, labels=True) == [
        "network.patch: 8; it must divide the images' height and width, 20 × 20"
    ]
    with pytest.raises(ValueError, match="multiple of attention_heads"):
        networks.build({"method": "dit", "width": 36, "attention_heads": 8}, (1, 8, 8), 1, 0)
