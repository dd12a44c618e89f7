"""A cascade of two networks: its law against the closed form of Gaussian data, what each of them sees, and a grid."""

from pathlib import Path

import pytest
import torch
from oracles import EVERY, randn
from project import ROOT
from safetensors.torch import load_file

from ddpm import figures, networks, rng, spot_checks
from ddpm.cascade import Cascade, Downsampled, augmented, downsampled
from ddpm.condition import NOTHING, Condition, LowResolution
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.denoiser import Denoiser
from ddpm.errors import UserError
from ddpm.exact import ExactDenoiser, Mixture
from ddpm.figures.images import Images
from ddpm.pipeline import config, records
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.samplers import Heun, Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels, Space
from ddpm.stages import cascade as stage
from ddpm.stages.cascade import condition_of
from ddpm.stages.sample import chain, load_denoiser
from ddpm.stages.train import Batches, build
from ddpm.tables.rows import collect

torch.set_num_threads(1)

Tensor = torch.Tensor
SHAPE, SMALL = (1, 2, 4), (1, 1, 2)
AXES = {"objective": ["x0"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}
UNET = {"method": "unet", "width": 8, "multipliers": [1]}
GRID = {
    "networks": {"small": UNET, "up": UNET | {"method": "super-resolution", "base": "small"}},
    "training": {"steps": 60, "batch": 32, "learning_rate": 1.0e-2, "warmup": 1},
    "sampling": {"images": 20, "batch": 12},
    "grid": [{"network": ["unet", "up"]} | AXES, {"network": ["up"]} | AXES | {"guidance": ["cfg-w1"]}],
}
SECOND, BASE = "x0/linear/unconditional/up/seed0", "x0/linear/unconditional/small@2/seed0"
CELL, GUIDED = "x0/linear/none/ddim/up/seed0", "x0/linear/cfg-w1/ddim/up/seed0"


def expanded(**overlay: object) -> Grid:
    """The small grid with an overlay."""
    read = config.merge(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"), GRID)
    return config.check(config.merge(read, overlay))


# ---- the law of the whole cascade ---------------------------------------------------------------------------

MEANS = torch.block_diag(torch.ones(1, 2), torch.ones(1, 2)).repeat(1, 2).double() / 4  # of 2 × 2 pixels


class Exact(Denoiser):
    """E[x0 | x_t, z_s] of x0 ~ N(mean, covariance), by Gaussian conditioning on both at once; or E[x0 | x_t] alone."""

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule, ignores: bool = False):
        super().__init__(None, None, schedule, clip=False)
        self.mean, self.covariance, self.ignores = mean, covariance, ignores

    def predict(self, x_t: Tensor, t: Tensor, condition: LowResolution) -> tuple[Tensor, None]:
        sigma = condition.noise[0].double()
        see = torch.cat([self.schedule.alpha(t) * torch.eye(8).double(), (1 - sigma**2).sqrt() * MEANS])
        noise = torch.cat([(self.schedule.sigma(t) ** 2).expand(8), (sigma**2).expand(2)])
        found = torch.cat([x_t.flatten(1), condition.image.flatten(1)], dim=1).double()
        if self.ignores:
            see, noise, found = see[:8], noise[:8], found[:, :8]
        gain = self.covariance @ see.T @ torch.linalg.inv(see @ self.covariance @ see.T + noise.diag())
        return (self.mean + (found - see @ self.mean) @ gain.T).reshape(x_t.shape).to(x_t.dtype), None


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("name", ["cosine", "karras"])
def test_exact_denoisers_give_the_exact_law(name: str, ignores: bool) -> None:
    """x and z_s are affine in the noises of both chains and of the augmentation; their joint mean and covariance are
    those of images and their noisy means. A network that ignores z_s has the law of x, but not the joint one.

    Only the solver's error, of second order in its 120 steps, and the start, from noise instead of α mean + σ ε at
    α = σ/164, keep them from being equal.
    """
    schedule, sampler, index = EVERY[name](), Heun(steps=120, spacing="karras"), torch.arange(60)
    root = randn(1, 8, 8)
    mean, covariance = randn(2, 8), 0.05 * root @ root.T + 0.05 * torch.eye(8).double()
    base = ExactDenoiser(Mixture(torch.ones(1), (MEANS @ mean)[None], (MEANS @ covariance @ MEANS.T)[None]), schedule)
    made = Cascade(Exact(mean, covariance, schedule, ignores), base, "small", SMALL, 0.3)
    condition = condition_of(made, sampler, index, NOTHING)
    *_, x = chain(made, sampler, "large", index, condition, SHAPE)
    assert made.evaluated == 60 * 2 * (2 * 120 - 1) and base.evaluated * 2 == made.evaluated
    # ---- as functions of their noise
    keys = rng.key("sampling", "small"), rng.key("augmentation", "small"), rng.key("sampling", "large")
    draws = [rng.normal(key, index, 0, of).flatten(1) for key, of in zip(keys, (SMALL, SMALL, SHAPE), strict=True)]
    noise = torch.cat([torch.ones(60, 1), *draws], dim=1).double()
    found = torch.cat([x.flatten(1), condition.image.flatten(1)], dim=1).double()
    fit = torch.linalg.lstsq(noise, found)
    torch.testing.assert_close(noise @ fit.solution, found, rtol=0, atol=2e-5)
    center, by = fit.solution[0], fit.solution[1:]
    # ---- the law
    sigma = schedule.sigma(torch.tensor(300.0, dtype=torch.float64))
    alpha = schedule.alpha(torch.tensor(300.0, dtype=torch.float64))
    see = torch.cat([torch.eye(8).double(), alpha * (alpha**2 + sigma**2).rsqrt() * MEANS])
    added = torch.cat([torch.zeros(8), (sigma**2 / (alpha**2 + sigma**2)).expand(2)])
    joint = see @ covariance @ see.T + added.diag()
    off = by.T @ by - joint
    torch.testing.assert_close(center, see @ mean, rtol=0, atol=2e-2)
    assert off[:8, :8].abs().max() < 5e-3 and off[8:, 8:].abs().max() < 5e-3
    assert joint[:8, 8:].abs().max() > 0.1
    assert (off[:8, 8:].abs().max() > 0.1) if ignores else (off[:8, 8:].abs().max() < 5e-3)


# ---- what each network sees ---------------------------------------------------------------------------------


def test_small_images_are_the_exact_means() -> None:
    """Of 2 × 3 blocks of images that are no squares, in their order, before any rounding; no noise without noise."""
    stored = torch.randint(0, 17, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    space = Downsampled((3, 2, 3), 17, 2)
    blocks = stored.double().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).mean(4) / 8 - 1
    torch.testing.assert_close(space.encode(stored).double(), blocks, rtol=0, atol=1e-6)
    assert Space.read(space.spec) == Pixels((3, 2, 3), 17) and space.clips
    told = augmented(EVERY["linear"](), blocks, blocks, torch.zeros((), dtype=torch.float64), Condition())
    assert torch.equal(told.image, blocks) and not told.noise.any()


@pytest.mark.parametrize("name", ["linear", "karras"])
def test_the_noise_of_the_small_image(name: str) -> None:
    """z_s/√(α² + σ²) and σ/√(α² + σ²), by hand, of images that have a level each; labels stay."""
    schedule, z, eps = EVERY[name](), randn(3, 3, 2, 2, 2), randn(4, 3, 2, 2, 2)
    s = torch.tensor([1.0, 400.0, 1000.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    told = augmented(schedule, z, eps, s, Condition(torch.tensor([2, 0, 1])))
    alpha, sigma = schedule.alpha(s), schedule.sigma(s)
    torch.testing.assert_close(told.image, (alpha * z + sigma * eps) / (alpha**2 + sigma**2).sqrt())
    torch.testing.assert_close(told.noise, (sigma / (alpha**2 + sigma**2).sqrt()).flatten())
    assert told.labels.tolist() == [2, 0, 1] and told.noise[0] < 0.02 and told.noise[2] > 0.99


def test_the_second_network_sees_all_that_it_is_told() -> None:
    """Every pixel of the small image where it lies, its noise, the label and x; without an image it says so."""
    torch.manual_seed(0)
    spec = {"method": "super-resolution", "width": 8, "multipliers": [1], "factor": 4}
    network = networks.build(spec, (2, 8, 12), 2, 3).eval().double()
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x, z, noise = (randn(i, *of).requires_grad_() for i, of in enumerate([(2, 2, 8, 12), (2, 2, 2, 3), (2,)]))
    log_snr, told = torch.tensor([-3.0, 1.0]).double(), LowResolution(torch.tensor([0, 2]), z, noise)
    output = network(x, log_snr, told)
    assert output.shape == (2, 4, 8, 12) and network.small == (2, 2, 3)
    for seen in torch.autograd.grad(output[0].square().sum(), (x, z, noise), retain_graph=True):
        assert (seen[0] != 0).all() and not seen[1].any()
    # What lies in the image's left third moves with the left pixel of the small one most.
    (near,) = torch.autograd.grad(output[0, :, :, :4].square().sum(), z)
    assert near[0, :, :, 0].abs().sum() > 2 * near[0, :, :, 2].abs().sum()
    for other in (network.null(told), LowResolution(torch.tensor([1, 1]), z, noise)):
        assert not torch.equal(network(x, log_snr, other), output)
    for nothing in (NOTHING, Condition(torch.tensor([0, 2])), LowResolution(torch.tensor([0, 2]))):
        with pytest.raises(ValueError, match="needs the low-resolution image"):
            network(x, log_snr, nothing)


def test_the_second_network_learns_from_noisy_means(finished: Layout) -> None:
    """Images, noise and times are those of any network; what is beside them are the means of the very images, with
    standard normal noise of its own, of levels that are uniform in t."""
    dataset, job = data.read(finished.output("data")), expanded().job("train", SECOND)[0]
    network, schedule = build(job, dataset), Schedule.make(job["schedule"])
    plain, pairs = (of(dataset, job, torch.device("cpu"), network) for of in (Batches, stage.Pairs))
    residues, levels, others = [], [], []
    for step in range(8):
        (x0, eps, u, _), (*same, told) = plain(step), pairs(step)
        assert all(map(torch.equal, (x0, eps, u), same)) and told.labels is None
        share = told.noise[:, None, None, None]
        residues.append((told.image - (1 - share**2).sqrt() * downsampled(x0, 2)) / share)
        levels.append(told.noise.double())
        others.append(downsampled(eps, 2))
    residue, level = torch.cat(residues), torch.cat(levels)
    assert float(residue.std()) == pytest.approx(1, abs=0.05) and abs(float(residue.mean())) < 0.05
    assert len(residue.unique(dim=0)) == len(residue) == 256
    assert abs(float((residue * torch.cat(others)).mean())) < 0.03
    s = schedule.time_at(level / (1 - level**2).sqrt()).sort().values / schedule.steps
    assert (s - torch.linspace(0, 1, 256).double()).abs().max() < 0.13


# ---- a grid with both ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Every job of the small grid but those of baselines."""
    layout, grid = Layout(tmp_path_factory.mktemp("cascade")), expanded()
    for of, name in grid.jobs:
        if of != "fidelity" or name in grid.runs:
            execute(of, *grid.job(of, name), layout)
    return layout


def test_names_and_jobs() -> None:
    """Each network is trained alone; others' jobs know nothing of a cascade, and what only sampling makes use of
    changes samples alone."""
    grid, alone = expanded(), expanded(grid=[{"network": ["unet"]} | AXES])
    for of, name in alone.jobs:
        assert alone.job(of, name) == grid.job(of, name)
    assert set(grid.parents("train", SECOND)) == set(grid.parents("train", BASE)) == {"data"}
    assert grid.parents("sample", CELL)["base_weights"] == ("train", BASE)
    assert grid.names["likelihood"] == ["x0/linear/unconditional/seed0"]
    assert grid.job("train", BASE)[0]["downsample"] == 2 and "downsample" not in grid.job("train", SECOND)[0]
    assert "cascade" in grid.pictures and "cascade" not in alone.pictures
    # What aggregates are told is enough to find it.
    assert Grid(grid.used).jobs == grid.jobs and grid.used["networks"].keys() == {"unet", "small", "up"}
    other = expanded(networks={"up": {"augmentation": 0.2}})
    changed = [job for job in grid.jobs if grid.job(*job) != other.job(*job)]
    assert changed == [("sample", CELL), ("sample", GUIDED)]
    # The same network on images of full size is another one.
    both = expanded(networks={"up": {"base": "unet"}}, grid=[{"network": ["unet", "up"]} | AXES])
    assert list(both.networks) == [f"x0/linear/unconditional/{n}seed0" for n in ("", "up/", "unet@2/")]


def test_training_of_both(finished: Layout) -> None:
    """The first network's x are small; the second one has learned to enlarge: an image of another misleads it."""
    assert records.read_record(finished.record("train", BASE))["result"]["space"]["shape"] == [1, 4, 4]
    dataset, denoiser = data.read(finished.output("data")), load_denoiser(finished.result("train", SECOND))
    x0, t = dataset.space.encode(dataset.test.images[:64]), torch.tensor(100.0, dtype=torch.float64)
    x_t, z, clean = randn(5, *x0.shape).float(), downsampled(x0, 2), torch.zeros((), dtype=torch.float64)
    errors = []
    for small in (z, z.roll(1, 0)):
        told = augmented(denoiser.schedule, small, torch.zeros_like(z), clean, NOTHING)
        errors.append(float((denoiser(x_t, t, told).x0 - x0).square().mean()))
    assert errors[0] < 0.85 * errors[1] and errors[0] < float(x0.var())


def test_samples_and_their_row(finished: Layout) -> None:
    """The chain of either network by hand, from one to the other; evaluations, parameters and images count twice."""
    grid, index, sampler = expanded(), torch.arange(12), Sampler.make(expanded().axis("sampler", "ddim"))
    base, second = (load_denoiser(finished.result("train", name)) for name in (BASE, SECOND))
    *_, z = chain(base, sampler, BASE, index, NOTHING, (1, 4, 4))
    eps, s = rng.normal(rng.key("augmentation", BASE), index, 0, (1, 4, 4)), torch.tensor(10.0, dtype=torch.float64)
    told = augmented(second.schedule, z, eps, s, NOTHING)
    *_, x = chain(second, sampler, SECOND, index, told, (1, 8, 8))
    images, space = load_file(finished.output("sample", CELL))["images"], data.read(finished.output("data")).space
    assert images.shape == (20, 1, 8, 8) and images.float().std() > 1
    assert (space.decode(x).float() - images[:12].float()).abs().max() <= 1  # bfloat16 in the one of them
    table = collect(Results(grid, finished)).set_index(["network", "guidance"])
    row, plain, guided = (table.loc[key] for key in (("up", "none"), ("unet", "none"), ("up", "cfg-w1")))
    trained = [records.read_record(finished.record("train", name))["result"] for name in (SECOND, BASE)]
    assert row["nfe"] == 2 * plain["nfe"] == 8 and guided["nfe"] == 16
    assert row["parameters"] == sum(of["parameters"] for of in trained)
    assert row["images_seen"] == 2 * plain["images_seen"] == 2 * 60 * 32
    assert row["status"] == "degenerate" or row["reason"].startswith("no bits/dim: a cascade's bound")
    assert row.isna()["nll_bits_per_dim"] and plain["nll_bits_per_dim"] > 0


def test_drawn_again_they_are_the_same(finished: Layout) -> None:
    """`ddpm verify` draws cascades again in other batches, and counts both networks' weights."""
    results = Results(expanded(), finished)
    for name in (CELL, GUIDED):
        assert list(spot_checks.redrawn(results, name, 0)) == []
    for name in (SECOND, BASE):
        assert list(spot_checks.trained(results, name)) == []


def test_another_sampling_seed_draws_other_noise_for_both(finished: Layout) -> None:
    """The first network's as well."""
    job = expanded().job("sample", CELL)[0]
    for again, name in ({}, BASE), ({"sampling_seed": 1}, f"{BASE}/sampling1"):
        found = stage.load(job | again, finished.parents("sample", CELL, job))
        assert isinstance(found, Cascade) and found.name == name


def test_the_figure(finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first network's small images to what is sampled."""
    drawn: list = []
    monkeypatch.setattr(figures, "scores", lambda *_: {"x0/linear/none/ddim/seed0": 0.0, CELL: 1.0})
    monkeypatch.setattr(figures, "table", lambda *arguments: drawn.extend(arguments))
    figures.cascade_figure(finished, expanded(), Images(data.read(finished.output("data"))), tmp_path / "cascade.png")
    _, strips, rows, columns, *_ = drawn
    images = load_file(finished.output("sample", CELL))["images"]
    assert len(strips) == len(rows) == 8 and len(strips[0]) == len(columns) == 8
    assert strips[0][0].shape == (1, 4, 4) and {of.shape for of in strips[0][1:]} == {(1, 8, 8)}
    last = torch.stack([strip[-1] for strip in strips])
    assert (last.float() - images[:8].float()).abs().max() <= 1


@pytest.mark.parametrize(("name", "step"), [(SECOND, "Pairs"), (BASE, "Batches")])
def test_the_same_bytes_after_a_kill(
    finished: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    """Training of either network that was stopped in the middle goes on to the same weights."""
    grid, layout, kind = expanded(), Layout(tmp_path), {"Pairs": stage.Pairs, "Batches": Batches}[step]
    execute("data", *grid.job("data"), layout)
    real, seen = kind.__call__, []

    def stopping(self: Batches, at: int) -> tuple:
        seen.append(at)
        if len(seen) == 30:
            raise KeyboardInterrupt
        return real(self, at)

    monkeypatch.setattr(kind, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        execute("train", *grid.job("train", name), layout, checkpoint_seconds=0)
    execute("train", *grid.job("train", name), layout, checkpoint_seconds=0)
    assert seen == [*range(30), *range(29, 60)]
    assert layout.output("train", name).read_bytes() == finished.output("train", name).read_bytes()


def test_averages_of_both(finished: Layout, tmp_path: Path) -> None:
    """With snapshots each is trained to the same bytes; lengths are of the network that a block or `base` names."""
    blocks = [{"network": ["up", "low"]} | AXES, {"network": ["up", "small"], "ema": [0.1]} | AXES]
    low = GRID["networks"]["up"] | {"base": "small-ema0.1"}
    grid = expanded(training={"snapshots": 4}, networks={"low": low}, grid=blocks)
    averaged = [SECOND.replace("up", "up-ema0.1"), BASE.replace("small", "small-ema0.1")]
    trained = {SECOND, BASE, SECOND.replace("up", "low"), SECOND.replace("up", "small")}
    assert set(grid.names["snapshots"]) == trained
    bases = {name: dict(grid.parents("sample", name)).get("base_weights") for name in grid.runs}
    assert list(bases.values()) == [("train", name) for name in (BASE, averaged[1], BASE)] + [None]
    layout = Layout(tmp_path)
    execute("data", *grid.job("data"), layout)
    for trained, average in zip((SECOND, BASE), averaged, strict=True):
        assert grid.parents("train", trained) == grid.parents("train", average) == {"snapshots": ("snapshots", trained)}
        for job in (("snapshots", trained), ("train", trained), ("train", average)):
            execute(job[0], *grid.job(*job), layout)
        assert layout.output("train", trained).read_bytes() == finished.output("train", trained).read_bytes()
        kept, found = load_file(layout.output("snapshots", trained)), load_file(layout.output("train", average))
        assert len(kept) == (1 + 2 * 4) * len(found)
        assert all((found[name] - kept[f"3.1.{name}"]).abs().max() < 1e-6 for name in found)
    results = [records.read_record(layout.record("train", name))["result"] for name in averaged]
    assert [result["space"]["shape"] for result in results] == [[1, 8, 8], [1, 4, 4]]


# ---- mistakes -----------------------------------------------------------------------------------------------

POINTS = {"data": {"name": "mixture", "seed": None}, "fidelity": {"extractor": "identity"}}
POINTS |= {"network": {"method": "mlp", "width": 8} | dict.fromkeys(("multipliers", "blocks", "attention"))}
POINTS |= {"networks": {"small": {"method": "mlp", "multipliers": None}}, "sampling": {"images": 899}}
POINTS |= {"guidances": {"cfg-w1": None}, "grid": [{"network": ["up"]} | AXES]}


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"networks": {"up": {"factor": 3}}}, "factor: 3; it must divide the images' height and width, 8 × 8"),
        ({"networks": {"up": {"factor": 1}}}, "factor: 1; it must be at least 2"),
        ({"networks": {"up": {"augmentation": 2.0}}}, "augmentation: 2.0; it must lie in 0 … 1"),
        (
            {"networks": {"up": {"base": "tiny"}}},
            "base: 'tiny' is not defined under networks; defined are unet, small, up",
        ),
        ({"networks": {"up": {"base": None}}}, "base: '' is not defined under networks; defined are unet, small, up"),
        ({"networks": {"up": {"base": "up"}}}, "base: 'up' enlarges images itself; it must be a network that does not"),
        (
            {"networks": {"small": {"space": "latent"}}},
            "base: 'small' works in latents; it must be a network of pixels",
        ),
        ({"networks": {"up": {"space": "latent"}}}, "space: 'latent'; 'super-resolution' takes grey levels: it must"),
        (
            {"networks": {"small": {"method": "dit", "patch": 8, "width": None, "multipliers": None}}},
            "base.patch: 8; it must divide the images' height and width, 4 × 4",
        ),
        (POINTS, "method: 'super-resolution' takes images, and data.name 'mixture' gives points: it must be mlp"),
    ],
)
def test_what_is_wrong_is_said(overlay: dict, said: str) -> None:
    """One message each."""
    with pytest.raises(ConfigError) as caught:
        expanded(**overlay)
    (message,) = caught.value.messages
    assert message.removeprefix("networks.up.").startswith(said)


def test_guidances_that_cannot_work_are_left_out() -> None:
    """A classifier of full images, and autoguidance; nor does a cascade guide another network."""
    guidances = {"guided": {"method": "classifier"}, "auto": {"method": "autoguidance", "guide_network": "up2"}}
    two = GRID["networks"] | {"up2": GRID["networks"]["up"]}
    block = {"network": ["up"]} | AXES
    grid = expanded(networks=two, guidances=guidances, grid=[block | {"guidance": ["none", *guidances]}])
    assert ["both networks of a cascade" in c.reason or "a cascade has two" in c.reason for c in grid.cells] == [
        False,
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="'up2' is of another space than networks of its blocks"):
        expanded(networks=two, guidances=guidances, grid=[block | {"network": ["unet"], "guidance": ["auto"]}])


def test_images_of_another_size() -> None:
    """Where the size is known once the images are read: one message."""
    images = torch.zeros(2, 1, 6, 9, dtype=torch.uint8)
    split = data.Split(images)
    with pytest.raises(UserError, match="factor of a cascade is 2; it must divide the height and width of images"):
        stage.divided(Data(split, split, Pixels((1, 6, 9)), 0), 2)
