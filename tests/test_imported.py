"""A U-Net of diffusers as a network that is imported: the same outputs, the same samples, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from project import ROOT

from ddpm import networks
from ddpm.condition import NOTHING
from ddpm.errors import UserError
from ddpm.pipeline import config, machine, records
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.samplers import DDIM
from ddpm.schedules import Cosine, Linear
from ddpm.stages.sample import load_denoiser

WEIGHTS, STEPS = "diffusion_pytorch_model.safetensors", 1000
NAME = "eps/linear/unconditional/seed0"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small U-Net of 8 × 8 grey pixels with random weights."""
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    made = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    made.save_pretrained(folder)
    return folder


def expanded(folder: Path, **network: object) -> Grid:
    """Cells of the digits with this network; on this machine, as a run would check them."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")
    read["network"] = {"method": "diffusers", "path": str(folder)} | network
    read["schedules"]["linear"]["steps"] = STEPS
    read["grid"] = [
        {"objective": ["eps", "x0"], "schedule": ["linear"], "guidance": ["none", "cfg-w1"], "sampler": ["ddim"]}
    ]
    return config.check(read, *machine.checks(cluster=True))


@pytest.fixture(scope="module")
def layout(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The data, and the network as the job `train` leaves it."""
    layout, grid = Layout(tmp_path_factory.mktemp("results")), expanded(saved)
    execute("data", *grid.job("data"), layout)
    execute("train", *grid.job("train", NAME), layout)
    return layout


def test_the_job_only_reads(saved: Path, layout: Layout) -> None:
    """The record says whose weights they are; training's length has no part in it, other weights have."""
    record = records.read_record(layout.record("train", NAME), "train")
    digest = records.sha256(saved / WEIGHTS)
    assert record["result"]["imported"] == {"path": str(saved / WEIGHTS), "sha256": digest}
    assert record["inputs"]["network"] == digest and record["inputs"]["architecture"]
    assert (record["status"], record["result"]["steps"]) == ("ok", 0)
    grid = expanded(saved)
    grid.config["training"] |= {"steps": 7}
    assert Results(grid, layout).reasons("train", NAME) == []
    content = (saved / WEIGHTS).read_bytes()
    try:
        (saved / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [str(r) for r in Results(grid, layout).reasons("train", NAME)] == [
            "made from other network than lies there now"
        ]
    finally:
        (saved / WEIGHTS).write_bytes(content)
    assert Results(grid, layout).reasons("train", NAME) == []


def test_another_architecture_makes_other_weights(saved: Path, layout: Layout, tmp_path: Path) -> None:
    """It is read again wherever the weights are, so that what was made with the former one is no longer valid."""
    folder, again = tmp_path / "unet", Layout(tmp_path / "results")
    shutil.copytree(saved, folder)
    shutil.copytree(layout.root, again.root)
    grid, made = expanded(folder), []
    for flipped in (True, False):
        about = json.loads((folder / "config.json").read_text()) | {"flip_sin_to_cos": flipped}
        (folder / "config.json").write_text(json.dumps(about))
        execute("train", *grid.job("train", NAME), again)
        made.append(records.sha256(again.output("train", NAME)))
    assert made[0] != made[1]


def test_only_cells_that_it_can_serve_are_run(saved: Path) -> None:
    """It predicts ε without labels: other targets, and guidance by labels, stand in the table with their reason."""
    cells = {cell.name: cell.reason for cell in expanded(saved).cells}
    assert [name for name, reason in cells.items() if not reason] == ["eps/linear/none/ddim/seed0"]
    assert "predicts ε" in cells["x0/linear/none/ddim/seed0"] and "labels" in cells["eps/linear/cfg-w1/ddim/seed0"]


def test_outputs_are_diffusers(saved: Path, layout: Layout) -> None:
    """At every index of its own schedule the output of diffusers' network, to 1e-5; between two of them on another."""
    denoiser, theirs = load_denoiser(layout.result("train", NAME)), UNet2DModel.from_pretrained(saved).eval()
    x = torch.randn(STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, STEPS + 1, dtype=torch.float64).reshape(-1, 1, 1, 1)
    log_snr = Linear(steps=STEPS).log_snr_for(t, x)
    assert torch.equal(denoiser.network.index(log_snr), torch.arange(STEPS).float())
    with torch.no_grad():
        found, expected = denoiser.network(x, log_snr, NOTHING), theirs(x, torch.arange(STEPS)).sample
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    # Every log SNR in between, and beyond both ends.
    other = denoiser.network.index(Cosine(steps=STEPS).log_snr_for(t, x))
    assert (other.diff() >= 0).all() and other[0] == 0 and other[-1] == STEPS - 1 and (other % 1 > 0).any()
    middle = Linear(steps=STEPS).log_snr(torch.tensor([300.0, 301.0], dtype=torch.float64)).mean()
    assert denoiser.network.index(middle[None]).item() == pytest.approx(299.5, abs=1e-3)


def test_samples_are_diffusers(saved: Path, layout: Layout) -> None:
    """DDIM of 20 steps from the same noise: what diffusers' own pipeline makes, to 1e-5 of the grey levels' range."""
    scheduler = DDIMScheduler(STEPS, 1e-4, 0.02, "linear", clip_sample=True, timestep_spacing="trailing")
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(saved), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        4, torch.Generator().manual_seed(3), num_inference_steps=20, use_clipped_model_output=True, output_type="np"
    )
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    denoiser = load_denoiser(layout.result("train", NAME))
    with torch.no_grad():
        *_, last = DDIM(steps=20).trajectory(denoiser, x, NOTHING, lambda: torch.zeros_like(x))
    found = (last / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    expected = made.images
    assert abs(found - expected).max() < 1e-5 and expected.std() > 0.05


def refused(folder: Path, **network: object) -> str:
    with pytest.raises(ConfigError) as caught:
        expanded(folder, **network)
    (message,) = caught.value.messages
    return message


def test_what_cannot_be_imported_is_said(saved: Path, tmp_path: Path) -> None:
    """No folder, another architecture, pickled weights or none, another size: one line each before the first job."""
    assert refused(tmp_path / "none").startswith(f"network.path: {str(tmp_path / 'none')!r} does not exist")
    assert "is a file" in refused(saved / WEIGHTS)
    assert refused(tmp_path).endswith(f"holds no {WEIGHTS}")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert "holds only diffusion_pytorch_model.bin, a pickle" in refused(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes())
    assert "holds no config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is no description of a network" in refused(tmp_path)
    described = json.loads((saved / "config.json").read_text())
    for change, said in (
        (
            {"_class_name": "UNet2DConditionModel"},
            "holds a 'UNet2DConditionModel'; it must be diffusers' 'UNet2DModel'",
        ),
        ({"sample_size": 32}, "takes images of 1×32×32; these data have 1×8×8"),
        ({"in_channels": 3}, "takes images of 3×8×8 and has 1 channels of output; these data have 1×8×8"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(described | change))
        assert refused(tmp_path).endswith(said)


def test_weights_of_another_architecture_are_refused(saved: Path, layout: Layout, tmp_path: Path) -> None:
    """Tensors that are missing, or of another shape; a truncated file."""
    described = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"block_out_channels": [8, 24]}))
    (tmp_path / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes())
    job, code = expanded(tmp_path).job("train", NAME)
    with pytest.raises(UserError, match=r"not the weights of its config.json: \d+ tensors differ"):
        execute("train", job, code, layout)
    (tmp_path / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a valid file of tensors"):
        execute("train", job, code, layout)
    with pytest.raises(UserError, match="neither a variance nor labels"):
        networks.build({"method": "diffusers", "path": str(saved)}, (1, 8, 8), 2, 0)
