"""Diffusion in an autoencoder's latents: a grid with both spaces, and mistakes."""

import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ddpm import figures, latents, spot_checks
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.figures.images import Images
from ddpm.metrics.distances import frechet, statistics
from ddpm.pipeline import audit, config, records
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.spaces import Pixels
from ddpm.stages import autoencoder, fidelity
from ddpm.stages import sample as sampling
from ddpm.tables.rows import collect

torch.set_num_threads(1)

Tensor = torch.Tensor
ROOT = Path(__file__).parent.parent
AXES = {"objective": ["eps"], "schedule": ["linear"], "sampler": ["ddim"]}
SMALL = {
    "networks": {"latent": {"method": "unet", "width": 8, "multipliers": [1], "space": "latent"}},
    "training": {"steps": 3, "warmup": 1},
    "autoencoder": {"width": 8, "channels": 2, "factor": 2, "steps": 12, "batch": 16},
    "guidances": {"guided": {"method": "classifier", "weight": 1.0}},
    "guide": {"steps": 2, "batch": 8, "width": 8},
    "samplers": {"ddim": {"steps": 2}},
    "sampling": {"images": 20, "batch": 12},
    "likelihood": {"images": 4, "times": 2},
    "grid": [
        {"guidance": ["none"], "network": ["unet", "latent"]} | AXES,
        {"guidance": ["guided", "cfg-w1"], "network": ["latent"]} | AXES,
        {"guidance": ["none"], "network": ["latent"]} | AXES | {"objective": ["learned"], "sampler": ["ancestral"]},
    ],
}
PIXELS, LATENT = "eps/linear/unconditional/seed0", "eps/linear/unconditional/latent/seed0"
GUIDED = "eps/linear/guided/ddim/latent/seed0"


def expanded(**overlay: object) -> Grid:
    """The small grid with an overlay."""
    read = config.merge(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"), SMALL)
    return config.check(config.merge(read, overlay))


# ---- a grid with both spaces --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Every job of the small grid."""
    layout, grid = Layout(tmp_path_factory.mktemp("latent")), expanded()
    for stage, name in grid.jobs:
        execute(stage, *grid.job(stage, name), layout)
    return layout


def test_names_and_jobs_of_pixels_stay() -> None:
    """The network in latents stands beside that in pixels, whose jobs know nothing of it."""
    grid, alone = expanded(), expanded(grid=[{"guidance": ["none"]} | AXES])
    assert [stage for stage, _ in grid.jobs].count("autoencoder") == 1 and not alone.names["autoencoder"]
    for stage, name in alone.jobs:
        assert alone.job(stage, name) == grid.job(stage, name)
    assert "autoencoder" not in alone.job("table")[0]["config"] and "autoencoder" in grid.job("table")[0]["config"]
    assert grid.job("train", LATENT)[0]["autoencoder"]["factor"] == 2
    assert grid.parents("train", LATENT)["autoencoder"] == ("autoencoder", "")
    assert grid.names["likelihood"] == [PIXELS]
    assert grid.names["guide"] == ["linear/latent/seed0"]
    assert grid.baselines[:3] == ["real", "real-by-chance", "reconstructions"] and len(alone.baselines) == 5


def test_latents_have_unit_variance(finished: Layout) -> None:
    """Of all of the training split together; the record says the factor, the bounds and what networks see."""
    dataset = data.read(finished.output("data"), finished.output("autoencoder"))
    x = dataset.space.encode(dataset.train.images).double()
    found = records.read_record(finished.record("autoencoder"))["result"]
    assert float(x.var(correction=0)) == pytest.approx(1, abs=1e-5)
    assert found["scale"] == dataset.space.scale and found["shape"] == [2, 4, 4]
    assert (found["low"], found["high"]) == pytest.approx((float(x.min()), float(x.max())), rel=1e-5)
    assert dataset.deviation == pytest.approx(float(x.var(0).mean().sqrt()), rel=1e-5)
    test = dataset.test.images
    decoded = dataset.space.decode(dataset.space.encode(test))
    error = ((test.double() - decoded.double()) / 8).square().mean()
    assert found["test_error"] == pytest.approx(float(error), rel=1e-5)


def test_training_sees_the_latents(finished: Layout) -> None:
    """x0 of a batch is the latent of its image, whether all are encoded first or each batch by itself."""
    from ddpm.stages import train as training

    dataset, job = (
        data.read(finished.output("data"), finished.output("autoencoder")),
        expanded().job("train", LATENT)[0],
    )
    network = training.build(job, dataset)
    first = training.Batches(dataset, job, torch.device("cpu"), network)
    x0, *_ = first(5)
    torch.testing.assert_close(x0, dataset.space.encode(dataset.train.images[first._indices(5)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "RESIDENT", 1)
        torch.testing.assert_close(training.Batches(dataset, job, torch.device("cpu"), network)(5)[0], x0)


def test_samples_are_decoded_latents(finished: Layout) -> None:
    """A cell's chain in latents, unclipped, ends in images of the data, guided or not."""
    grid, name = expanded(), "eps/linear/none/ddim/latent/seed0"
    assert not sampling.load_denoiser(finished.result("train", LATENT)).clip
    space = latents.read(finished.output("autoencoder"), Pixels((1, 8, 8), 17))
    denoiser, sampler = (
        sampling.load_denoiser(finished.result("train", LATENT)),
        sampling.Sampler.make(grid.axis("sampler", "ddim")),
    )
    *_, x = sampling.chain(denoiser, sampler, LATENT, torch.arange(12), sampling.Condition(None), (2, 4, 4))
    images = load_file(finished.output("sample", name))["images"]
    assert images.shape == (20, 1, 8, 8) and images.dtype == torch.uint8
    assert (space.decode(x).float() - images[:12].float()).abs().max() <= 1  # bfloat16 in the one of them
    assert len(load_file(finished.output("sample", GUIDED))["images"]) == 20


def test_one_table_has_both(finished: Layout) -> None:
    """The row of reconstructions is the autoencoder's FID; rows in latents have no bits/dim, and say why."""
    table = collect(Results(expanded(), finished)).set_index(["objective", "guidance", "network"]).sort_index()
    row = table.loc[("eps", "none", "latent")]
    assert row["fid"] > 0 and math.isnan(row["nll_bits_per_dim"]) and row["status"] in ("ok", "degenerate")
    assert table.loc[("eps", "none", "unet"), "nll_bits_per_dim"] > 0
    trained = [records.read_record(finished.record(*job))["result"] for job in (("train", LATENT), ("autoencoder", ""))]
    assert row["parameters"] == sum(of["parameters"] for of in trained)
    assert row["images_seen"] == sum(of["images_seen"] for of in trained)
    told = [r for s, r in zip(table["status"], table["reason"], strict=True) if s == "ok" and not pd.isna(r)]
    assert all(r == "no bits/dim: a bound in latents is none of the images'" for r in told)
    # ---- by hand
    ceiling = table.loc[("test images, decoded from latents",)].iloc[0]
    files = finished.output("data"), finished.output("autoencoder")
    dataset, measure = (
        data.read(*files),
        fidelity.Evaluator(
            data.read(files[0]), {"extractor": "classifier", "weights": ""}, finished.output("classifier")
        ),
    )
    some = data.reference(dataset, "test", 20)
    decoded = dataset.space.decode(dataset.space.encode(some))
    assert decoded.shape == some.shape and not torch.equal(decoded, some)
    features = (statistics(measure.features(images)) for images in (decoded, dataset.test.images))
    assert ceiling["fid"] == pytest.approx(frechet(*features), rel=1e-6)
    assert ceiling["samples"] == 20 and math.isnan(ceiling["fid_over_topline"])


def test_its_numbers_are_computed_again(finished: Layout, tmp_path: Path) -> None:
    """`ddpm verify`: nothing else comes out; a forged error, a forged scale of the file, and a forged ceiling do not.
    The audit says whose rows are of which space."""
    results = Results(expanded(), finished)
    assert list(spot_checks.encoded(results)) == []
    assert list(spot_checks.recomputed(results, "fidelity", "reconstructions", Layout(tmp_path / "again"))) == []
    spaces = audit.differences(audit.facts(results))["space"]
    assert {value: len(rows) for value, rows in spaces.items()} == {"latents, 2 × 4 × 4": 4, "pixels, 1 × 8 × 8": 1}
    # ---- forged, with hashes that are right
    layout = Layout(tmp_path / "forged")
    shutil.copytree(finished.root, layout.root)

    def forge(stage: str, name: str, **numbers: object) -> None:
        record = records.read_record(layout.record(stage, name))
        record["result"] |= numbers
        record["outputs"] = {
            output: records.sha256(layout.record(stage, name).parent / output) for output in record["outputs"]
        }
        records.write_json(layout.record(stage, name), record | {"digest": records.digest(record)})

    forge("fidelity", "reconstructions", fid=0.01)
    (found,) = spot_checks.recomputed(
        Results(expanded(), layout), "fidelity", "reconstructions", Layout(tmp_path / "more")
    )
    assert found.text.startswith("result fid of reconstructions is 0.01; computed again: ")
    path = layout.output("autoencoder")
    tensors, about = records.read_tensors(path)
    about["measured"]["scale"] *= 1.01
    records.write_tensors(path, tensors, about)
    forge("autoencoder", "", test_error=0.5)
    said = [finding.text for finding in spot_checks.encoded(Results(expanded(), layout))]
    assert [text.split(" of ")[0] for text in said] == ["result scale", "result test_error"]


def test_samples_drawn_again_are_the_same(finished: Layout) -> None:
    """`ddpm verify` draws cells in latents again as well, in other batches."""
    results = Results(expanded(), finished)
    for name in ("eps/linear/none/ddim/latent/seed0", "learned/linear/none/ancestral/latent/seed0"):
        assert list(spot_checks.redrawn(results, name, 0)) == []


def test_the_picture_of_denoising_shows_images(
    finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the best cell is one in latents: x̂0 on the way is decoded, and the last column is what is sampled."""
    grid, name = expanded(), "eps/linear/none/ddim/latent/seed0"
    drawn: list = []
    monkeypatch.setattr(figures, "scores", lambda *_: {name: 0.0})
    monkeypatch.setattr(figures, "table", lambda *arguments: drawn.extend(arguments))
    renderer = Images(data.read(finished.output("data")))
    figures.denoising_figure(finished, grid, renderer, tmp_path / "denoising.png")
    strips, images = drawn[1], load_file(finished.output("sample", name))["images"]
    assert len(strips) == 8 and strips[0].shape == (3, 1, 8, 8) and strips[0].dtype == torch.uint8
    assert all(
        (strip[-1].float() - image.float()).abs().max() <= 1 for strip, image in zip(strips, images[:8], strict=True)
    )


def test_the_same_bytes_again_and_after_a_kill(
    finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run from nothing, and one that was stopped in the middle and goes on."""
    grid, expected = expanded(), [path.read_bytes() for path in finished.outputs("autoencoder")]
    real, seen = autoencoder.loss, []

    def stopping(*arguments: object) -> Tensor:
        seen.append(len(seen))
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    for stop in (False, True):
        layout = Layout(tmp_path / str(stop))
        execute("data", *grid.job("data"), layout)
        if stop:
            monkeypatch.setattr(autoencoder, "loss", stopping)
            with pytest.raises(KeyboardInterrupt):
                execute("autoencoder", *grid.job("autoencoder"), layout, checkpoint_seconds=0)
            assert layout.checkpoint("autoencoder", "").exists() and not layout.record("autoencoder").exists()
            assert len(seen) == 8
        execute("autoencoder", *grid.job("autoencoder"), layout, checkpoint_seconds=0)
        assert [path.read_bytes() for path in layout.outputs("autoencoder")] == expected
    assert len(seen) == 8 + 12 - 7


def test_every_step_has_images_and_noise_of_its_own(
    finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the training split, standard normal noise, the configured weight of the KL; the curve is the loss."""
    grid, layout, real, seen = expanded(), Layout(tmp_path), autoencoder.loss, []

    def watched(*arguments: object) -> Tensor:
        found = real(*arguments)
        seen.append((*arguments[1:], float(found.detach().mean())))
        return found

    monkeypatch.setattr(autoencoder, "loss", watched)
    execute("data", *grid.job("data"), layout)
    execute("autoencoder", *grid.job("autoencoder"), layout)
    x, eps = (torch.stack([step[i] for step in seen]) for i in (0, 1))
    known = data.read(layout.output("data")).space.encode(data.read(layout.output("data")).train.images)
    assert x.shape == (12, 16, 1, 8, 8) and eps.shape == (12, 16, 2, 4, 4)
    assert (torch.cdist(x.flatten(0, 1).flatten(1), known.flatten(1)).amin(1) < 1e-3).all()
    assert len(x.flatten(0, 1).unique(dim=0)) > 160 and len(eps.flatten(0, 1).unique(dim=0)) == 192
    assert float(eps.var()) == pytest.approx(1, abs=0.05) and {step[2] for step in seen} == {0.001}
    curve = pd.read_csv(layout.output("autoencoder", "", "loss"))
    assert curve["loss"].tolist() == pytest.approx([step[3] for step in seen], rel=1e-6)


def test_training_that_diverges_is_a_row(finished: Layout, tmp_path: Path) -> None:
    """An autoencoder without finite weights: its row and those in its latents are `diverged`."""
    layout, grid = Layout(tmp_path), expanded(autoencoder={"learning_rate": 1e30})
    jobs = [
        j for j in grid.jobs if j[0] in ("data", "autoencoder", "classifier") or j == ("fidelity", "reconstructions")
    ]
    name = "eps/linear/none/ddim/latent/seed0"
    for stage, of in [*jobs[:-1], ("train", LATENT), ("sample", name), ("fidelity", name), jobs[-1]]:
        execute(stage, *grid.job(stage, of), layout)
        if stage not in ("data", "classifier"):
            assert records.read_record(layout.record(stage, of))["status"] == "diverged", stage
    row = collect(Results(grid, layout)).iloc[2]
    assert row["status"] == "diverged" and row["reason"] == "autoencoder: training"


# ---- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"autoencoder": {"factor": 16}}, "autoencoder.factor: 16; it must divide the images' height and width, 8 × 8"),
        ({"autoencoder": None}, "the key 'autoencoder' is missing: networks.latent.space is latent"),
        ({"autoencoder": {"factor": 3}}, "autoencoder.factor: 3; it must be one of 2, 4, 8, 16"),
        (
            {"networks": {"latent": {"space": "wavelets"}}},
            "networks.latent.space: 'wavelets'; it must be pixels, the space of 'digits', or latent",
        ),
        (
            {"networks": {"latent": {"method": "dit", "patch": 8, "width": None, "multipliers": None}}},
            "networks.latent.patch: 8; it must divide the latents' height and width, 4 × 4",
        ),
        (
            {"guidances": {"guided": {"method": "autoguidance", "guide_network": "unet"}}},
            "guidances.guided.guide_network: 'unet' is of another space than networks of its blocks",
        ),
        (
            {"sampling": {"images": 899}, "data": {"name": "mixture", "seed": None}, "guidances": {"guided": None}}
            | {"network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None}}
            | {"networks": {"latent": {"method": "mlp", "multipliers": None}}, "fidelity": {"extractor": "identity"}}
            | {"grid": [{"guidance": ["none"], "network": ["mlp", "latent"]} | AXES]},
            "networks.latent.space: 'latent' takes images, and data.name 'mixture' gives points: it must be points",
        ),
    ],
)
def test_what_is_wrong_is_said(overlay: dict, said: str) -> None:
    """One message each."""
    with pytest.raises(ConfigError) as caught:
        expanded(**overlay)
    assert [message.startswith(said) for message in caught.value.messages] == [True], caught.value.messages


def test_an_autoencoder_of_other_data(finished: Layout) -> None:
    """Where its file lies beside other data: one message, and nothing is encoded."""
    with pytest.raises(
        UserError, match=r"weights.safetensors: an autoencoder of other data \(.*levels: 17; these are "
    ):
        latents.read(finished.output("autoencoder"), Pixels((1, 28, 28), 256))
    path = finished.output("train", LATENT)
    with pytest.raises(UserError, match="does not say what it encodes; delete it and run again"):
        latents.read(path, Pixels((1, 8, 8), 17))


def test_the_first_network_may_work_in_latents() -> None:
    """`space` stands at `network` as well, and `pixels` says what no key says."""
    grid = expanded(network={"space": "latent"}, networks=None, grid=[{"guidance": ["none"]} | AXES])
    assert list(grid.networks) == [PIXELS] and "autoencoder" in grid.job("train", PIXELS)[0]
    same = expanded(network={"space": "pixels"}, networks=None, grid=[{"guidance": ["none"]} | AXES])
    assert same.job("train", PIXELS) == expanded().job("train", PIXELS)
