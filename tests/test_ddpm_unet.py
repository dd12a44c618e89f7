"""The U-Net of Ho et al. 2020 against diffusers', its dropout, and the overlays of published sizes."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from ddpm import estimate, networks, rng
from ddpm.condition import NOTHING, Condition
from ddpm.networks.ddpm_unet import seeds
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
NAME = "eps/linear/unconditional/seed0"


def full(overlay: str, **changes: object) -> Grid:
    """The grid of an overlay, with changes."""
    read = config.read(ROOT / "config.yaml", ROOT / f"workflow/config/{overlay}.yaml")
    return config.check(config.merge(read, changes))


# ---- the network --------------------------------------------------------------------------------------------


class Told(nn.Module):
    """An embedding of the condition that is given."""

    def __init__(self, embedding: torch.Tensor):
        super().__init__()
        self.embedding = embedding

    def forward(self, log_snr: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.embedding


def layers(theirs: UNet2DModel) -> list[nn.Module]:
    """The layers of diffusers' network in the order in which they are computed, attention's as three of its own."""
    found: list[nn.Module] = [theirs.conv_in]

    def block(resnet: nn.Module, attention: nn.Module | None) -> None:
        found.extend([resnet.norm1, resnet.conv1, resnet.norm2, resnet.conv2, resnet.time_emb_proj])
        found.extend([resnet.conv_shortcut] if resnet.conv_shortcut else [])
        if attention:
            found.extend([attention.group_norm, nn.ModuleList([attention.to_q, attention.to_k, attention.to_v])])
            found.append(attention.to_out[0])

    for level in theirs.down_blocks:
        for i, resnet in enumerate(level.resnets):
            block(resnet, level.attentions[i] if hasattr(level, "attentions") else None)
    found.extend(level.downsamplers[0].conv for level in theirs.down_blocks if level.downsamplers)
    block(theirs.mid_block.resnets[0], theirs.mid_block.attentions[0])
    block(theirs.mid_block.resnets[1], None)
    for level in theirs.up_blocks:
        for i, resnet in enumerate(level.resnets):
            block(resnet, level.attentions[i] if hasattr(level, "attentions") else None)
    found.extend(level.upsamplers[0].conv for level in theirs.up_blocks if level.upsamplers)
    return [*found, theirs.conv_norm_out, theirs.conv_out]


def test_it_is_diffusers() -> None:
    """The same output from the same weights and embedding: of diffusers' `UNet2DModel` as google/ddpm-cifar10-32 is."""
    torch.manual_seed(0)
    theirs = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        attention_head_dim=None,
        norm_eps=1e-6,
    ).eval()
    spec = {"method": "ddpm-unet", "width": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention": [1]}
    ours = networks.build(spec, (3, 16, 16), 1, 0).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    embedding = nn.functional.silu(theirs.time_embedding(theirs.time_proj(t)))
    ours.condition = Told(embedding)
    own = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.GroupNorm)]
    for mine, other in zip(own, layers(theirs), strict=True):
        for name, parameter in mine.named_parameters():
            parts = other if isinstance(other, nn.ModuleList) else [other]
            parameter.data.copy_(torch.cat([getattr(part, name) for part in parts]).reshape(parameter.shape))
    with torch.no_grad():
        found, expected = ours(x, torch.zeros(2), NOTHING), theirs(x, t).sample
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max() and expected.std() > 0.1


def test_dropout_is_of_the_image() -> None:
    """The configured share, each value doubled in turn; the same for an image in every batch, other for every other
    image, step of noise and block; nothing of it outside training."""
    spec = {"method": "ddpm-unet", "width": 8, "multipliers": [1, 2], "attention": [], "dropout": 0.5}
    torch.manual_seed(0)
    network, x, level = networks.build(spec, (1, 8, 8), 1, 0), torch.randn(6, 1, 8, 8), torch.zeros(6)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    before = torch.random.get_rng_state()
    whole = network(x, level)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.equal(whole, network(x, level))
    torch.testing.assert_close(torch.cat([network(x[i : i + 2], level[:2]) for i in (0, 2, 4)]), whole)
    assert len(seeds(x).unique()) == 6 and not torch.equal(seeds(x), seeds(x + 1e-3))
    entered = []
    blocks = [network.down[0], network.down[1]]
    for block in blocks:
        block.conv2.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    network(x, level)
    network.eval()
    quiet = network(x, level)
    dropped, kept = entered[:2], entered[2:]
    assert not torch.equal(quiet, whole)
    assert float((dropped[0] == 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    on = dropped[0] != 0
    torch.testing.assert_close(dropped[0][on], 2 * kept[0][on])
    masks = [rng.uniform(rng.key("dropout"), seeds(x), block.number, (8, 8, 8)) >= 0.5 for block in blocks]
    assert torch.equal(masks[0], on) and 0.4 < float((masks[0] == masks[1]).double().mean()) < 0.6
    assert not torch.equal(on[0], on[1])


# ---- the overlays of published sizes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "shape", "millions"),
    [("cifar10", (3, 32, 32), 35.7), ("celeba", (3, 64, 64), 78.7), ("lsun", (3, 256, 256), 114)],
)
def test_the_published_sizes(overlay: str, shape: tuple[int, ...], millions: float) -> None:
    """Parameters of Ho et al. 2020 (CIFAR-10, 256 × 256) and of Song, Meng & Ermon 2021 (CelebA), to 1 %; the spacings
    of the latter's appendix D.2; a cell for each row of its table."""
    grid = full(overlay)
    with torch.device("meta"):
        network = networks.build(grid.job("train", NAME)[0]["network"], shape, 1, 0)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    jobs = {cell.sampler: grid.job("sample", name)[0]["sampler"] for name, cell in grid.runs.items()}
    spacing = "quadratic" if overlay == "cifar10" else "uniform"
    assert {job["spacing"] for name, job in jobs.items() if name != "ancestral"} == {spacing}
    published = config.load(ROOT / f"workflow/published/{'lsun' if overlay == 'lsun' else 'ddim-steps'}.yaml")
    for row in published["rows"]:
        wanted, steps = row["cell"]["sampler"], int(row["label"].rpartition("= ")[2])
        fitting = [job for job in jobs.values() if all(job.get(key) == value for key, value in wanted.items())]
        assert fitting, row["label"]
        for job in fitting:
            assert job["steps"] == steps and job["method"] == ("ancestral" if "σ̂" in row["label"] else "ddim")
            assert job["method"] == "ancestral" or f"η = {job['eta']:g}" in row["label"]


@pytest.mark.parametrize("overlay", ["cifar10", "celeba", "lsun"])
def test_one_step(overlay: str, tmp_path: Path) -> None:
    """A narrow network on made-up images, at most 64 × 64: one step of training, two of sampling."""
    layout = Layout(tmp_path)
    smaller = {"data": {"size": 64}} if overlay == "lsun" else {}
    grid = full(overlay, network={"width": 8}, training={"steps": 1, "batch": 2, "warmup": 0}, **smaller)
    estimate.made_up(grid, layout)
    cell = next(name for name, cell in grid.runs.items() if cell.sampler == "eta1.0-10")
    execute("train", *grid.job("train", NAME), layout)
    job, code = grid.job("sample", cell)
    short = {"sampler": job["sampler"] | {"steps": 2}, "sampling": {"images": 2, "batch": 2}}
    execute("sample", job | short, code, layout)
    trained, sampled = (records.read_record(layout.record(*of)) for of in (("train", NAME), ("sample", cell)))
    assert (trained["status"], trained["result"]["images_seen"]) == ("ok", 2)
    assert (sampled["status"], sampled["result"]["images"], sampled["result"]["nfe"]) == ("ok", 2, 2)
