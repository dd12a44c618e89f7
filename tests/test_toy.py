"""Points in the plane: their laws, their distances and the toy grid end to end."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import PLANE, independent
from PIL import Image
from test_pipeline import ROOT, copy_project

from ddpm import figures, rng
from ddpm.condition import NOTHING
from ddpm.datasets import dataset as data
from ddpm.datasets import points
from ddpm.exact import ExactDenoiser
from ddpm.figures import plane
from ddpm.figures.points import Clouds, density_of
from ddpm.metrics import distances
from ddpm.pipeline import checks, config, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.samplers import Sampler
from ddpm.schedules import Geometric, Schedule
from ddpm.spaces import Space
from ddpm.stages import sample as sampling

torch.set_num_threads(1)

TOY = config.read(ROOT / "config.yaml", ROOT / "workflow/config/toy.yaml")
POINTS = [points.GaussianMixture, points.Ring, points.Moons, points.Circles, points.Spiral, points.Checkerboard]


# ---- data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POINTS)
def test_points_come_from_their_seed(kind: type[points.Points]) -> None:
    """Float32 (N, 2) with labels 0 … classes − 1; more points begin with the same ones; halves and seeds differ."""
    train, test = kind(train=500, test=400).load()
    more, _ = kind(train=900, test=2).load()
    assert train.images.shape == (500, 2) and test.images.shape == (400, 2)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert torch.equal(more.images[:500], train.images) and torch.equal(more.labels[:500], train.labels)
    assert sorted(set(train.labels.tolist())) == list(range(kind().classes))
    assert not torch.equal(train.images[:400], test.images)
    assert not torch.equal(kind(seed=1, train=500).load()[0].images, train.images)


# Mean, and covariance xx, yy, xy of every law, by hand. A moon's x and y are r (cos πu − ½) and r (sin πu − ¼).
ARC = 25 * np.array([0.5 + 0.25, 0.5 - 0.5 * 2 / math.pi + 0.0625]) + 0.16
SQUARES = [(2 * i + r % 2 - 1.5, r - 1.5) for r in range(4) for i in range(2)]
MOMENTS = {
    points.GaussianMixture: ([3, 3], [17, 17, 16]),
    points.Ring: ([0, 0], [18.25, 18.25, 0]),
    points.Moons: ([0, 0], [*ARC, 25 * (-0.5 * 2 / math.pi + 0.125)]),
    points.Circles: ([0, 0], [11.34, 11.34, 0]),
    points.Checkerboard: ([0, 0], [12, 12, 9 * sum(x * y for x, y in SQUARES) / 8]),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_moments_of_the_laws(kind: type[points.Points]) -> None:
    """Mean and covariance of 200 000 points, within five standard errors."""
    count = 200_000
    x = kind(train=count, test=2).load()[0].images.double()
    mean, expected = MOMENTS[kind]
    assert (x.mean(0) - torch.tensor(mean)).abs().max() < 5 * x.std(0).max() / math.sqrt(count)
    d = x - x.mean(0)
    products = torch.stack([d[:, 0] ** 2, d[:, 1] ** 2, d[:, 0] * d[:, 1]], 1)
    errors = products.std(0) / math.sqrt(count)
    assert ((products.mean(0) - torch.tensor(expected)).abs() < 5 * errors).all()


def test_shapes_of_the_laws() -> None:
    """Squares of one colour only; radii and angles along the arms; two circles; labels where they belong."""
    board, _ = points.Checkerboard(train=5000).load()
    x, y = (board.images.double() / 3 + 2).floor().unbind(1)
    assert ((x + y) % 2 == 0).all() and x.min() == y.min() == 0 and x.max() == y.max() == 3
    assert torch.equal(board.labels, (2 * y + x // 2).long())
    spiral, _ = points.Spiral(train=5000, spread=0.0).load()
    radius = spiral.images.double().norm(dim=1) / 8
    angle = 2 * math.pi * (1.25 * radius + spiral.labels / 2)
    torch.testing.assert_close(spiral.images.double(), points.polar(8 * radius, angle), rtol=0, atol=1e-4)
    assert float(radius.mean()) == pytest.approx(0.5, abs=0.02)
    circles, _ = points.Circles(train=5000, spread=0.0).load()
    torch.testing.assert_close(circles.images.norm(dim=1), torch.where(circles.labels == 1, 3.0, 6.0))
    moons, _ = points.Moons(train=5000, spread=0.0).load()
    upper = moons.images[moons.labels == 0] / 5 - torch.tensor([-0.5, -0.25])
    assert float((upper.norm(dim=1) - 1).abs().max()) < 1e-5 and float(upper[:, 1].min()) > -1e-5
    flipped = -moons.images[moons.labels == 1] / 5 - torch.tensor([-0.5, -0.25])
    assert float((flipped.norm(dim=1) - 1).abs().max()) < 1e-5 and float(flipped[:, 1].min()) > -1e-5


def test_stored_points_are_exact(tmp_path: Path) -> None:
    """Continuous data are neither scaled nor rounded; the record holds the test split's bits/dim under its own law."""
    layout, spec = Layout(tmp_path), {"name": "ring", "train": 30, "test": 50, "radius": 2.0}
    execute("data", {"data": spec}, "0" * 16, layout)
    found, (train, test) = data.read(layout.output("data")), points.Ring(train=30, test=50, radius=2.0).load()
    assert torch.equal(found.train.images, train.images) and torch.equal(found.test.images, test.images)
    low, high = train.images.amin(0), train.images.amax(0)
    assert found.space == Space.fit({"method": "points"}, train.images) and (found.classes, found.shape) == (8, (2,))
    assert torch.equal(found.space.bounds[0], low) and torch.equal(found.space.bounds[1], high)
    far = 1e3 * test.images
    assert torch.equal(found.space.encode(far), far) and torch.equal(found.space.decode(far), far)
    bits = -independent(points.Ring(radius=2.0).density()).log_prob(test.images.double()).mean() / (2 * math.log(2))
    record = records.read_record(layout.record("data"))
    assert record["result"]["test_bits_per_dim"] == pytest.approx(float(bits), rel=1e-12)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weights": [0.5, 0.4]}, "weights: [0.5, 0.4] sum to 0.9; it must be 1"),
        ({"weights": [1.0]}, "weights: 1 weights, 2 means, 2 spreads; it must be one of each"),
        ({"spreads": [1.0, 0.0]}, "spreads: 0.0; it must be at least 1e-06"),
        ({"means": [[1.0], [2.0]]}, "means: [[1.0], [2.0]] is of type list; it must be a list of [float, float]"),
    ],
)
def test_impossible_mixtures(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError) as e:
        data.Dataset.make({"method": "mixture"} | parameters)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": {"mlp": {"method": "unet", "depth": None}}}, "networks.mlp.method: 'unet' takes images"),
        ({"fidelity": {"extractor": "inception"}}, "fidelity.extractor: 'inception' takes images"),
        ({"guidances": {"none": {"method": "classifier"}}}, "guidances.none.method: the guide of 'classifier' takes"),
        ({"data": {"means": [[1, 2], "far"]}}, "data.means: [[1, 2], 'far']"),
    ],
)
def test_what_wants_images_is_refused(change: dict, message: str) -> None:
    with pytest.raises(checks.ConfigError) as e:
        config.check(config.merge(TOY, change))
    (found,) = e.value.messages
    assert message in found


# ---- distances --------------------------------------------------------------------------------------------


def test_frechet_distance_of_coordinates(tmp_path: Path) -> None:
    """‖µ − µ′‖² + tr(Σ + Σ′ − 2 (Σ Σ′)^½) of the points themselves, and no binarized twin."""
    layout = Layout(tmp_path)
    execute("data", {"data": {"name": "ring"}}, "0" * 16, layout)
    settings = TOY["classifier"] | {"epochs": 1}
    execute("classifier", {"classifier": settings, "threads": 1}, "0" * 16, layout)
    accuracy = records.read_record(layout.record("classifier"))["result"]["test_accuracy"]
    assert accuracy > 0.95
    job = {"images": 2000, "fidelity": {"extractor": "identity", "weights": ""}, "threads": 1}
    job |= {"metrics": config.check(TOY).metrics, "needs": ["classifier"]}
    for name in ("real", "noise"):
        execute("fidelity", job | {"name": name}, "0" * 16, layout)
    real, noise = (records.read_record(layout.record("fidelity", n))["result"] for n in ("real", "noise"))
    both = data.read(layout.output("data"))
    box = torch.lerp(
        both.train.images.amin(0),
        both.train.images.amax(0),
        rng.uniform(rng.key("noise row"), torch.arange(2000), 0, (2,)).float(),
    )
    ours, theirs = box.double(), both.test.images.double()
    (a, b), difference = (x.T.cov() for x in (ours, theirs)), ours.mean(0) - theirs.mean(0)
    roots = torch.linalg.eigvals(a @ b).sqrt().real.sum()
    expected = difference.square().sum() + a.trace() + b.trace() - 2 * roots
    assert noise["fid"] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    assert 0 < real["fid_low"] < real["fid"] < real["fid_high"] < noise["fid"]
    some = data.stratified(both.train, 2000, "real row")
    assert real["sliced_wasserstein"] == distances.sliced_wasserstein(some, both.test.images)
    assert "fid_binarized" not in real and real["extractor"] == noise["extractor"] == "identity"
    assert noise["sliced_wasserstein"] > 5 * real["sliced_wasserstein"]


# ---- the toy grid -----------------------------------------------------------------------------------------

CELLS = config.check(TOY).runs.values()
PAIRS = sorted({(c.schedule, c.sampler) for c in CELLS})


@pytest.mark.parametrize(("schedule", "sampler"), PAIRS)
def test_samplers_of_the_grid_on_the_exact_denoiser(schedule: str, sampler: str) -> None:
    """Every sampler of toy.yaml, with its own steps, finds the shares within 0.03 and widths within a tenth.

    Plain Langevin dynamics does not (001, figure 3.2): it keeps to the modes that its points start near.
    """
    checked, law = config.check(TOY), points.GaussianMixture().density()
    denoiser = ExactDenoiser(law, Schedule.make(checked.axis("schedule", schedule)))
    walk = sampling.chain(
        denoiser, Sampler.make(checked.axis("sampler", sampler)), "toy", torch.arange(2000), NOTHING, (2,)
    )
    *_, x = walk
    nearest = law.responsibilities(x).argmax(1)
    share = float((nearest == 0).double().mean())
    if sampler == "plain-langevin":
        assert 0.4 < share < 0.65
    else:
        assert share == pytest.approx(0.8, abs=0.03)
    assert float(x[nearest == 0].std(0).mean()) == pytest.approx(1, abs=0.1)
    assert float((x[nearest == 0].mean(0) - 5).abs().max()) < 0.15


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny toy grid, finished."""
    folder = copy_project(tmp_path_factory.mktemp("toy"))
    shutil.copy(ROOT / "tests/tiny-toy.yaml", folder / "tests")
    files = ["workflow/config/toy.yaml", "tests/tiny-toy.yaml"]
    run = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", *files]
    found = subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder / "results/tiny-toy"


def test_table_of_points(tree: Path) -> None:
    """Exact bits/dim stand in the row of real data; what only images have is empty; VP refuses annealed Langevin."""
    table = pd.read_csv(tree / "table.csv", keep_default_na=False, na_values=[""])
    assert list(table["objective"]) == [
        "real data",
        "real data, classes by chance",
        "noise",
        "eps",
        "eps",
        "score",
        "score",
    ]
    assert list(table["status"]) == ["ok", "ok", "ok", "degenerate", "n/a", "degenerate", "degenerate"]
    assert "VE" in table.loc[4, "reason"]
    test = points.GaussianMixture(test=300).load()[1].images.double()
    exact = -independent(points.GaussianMixture().density()).log_prob(test).mean() / (2 * math.log(2))
    assert table.loc[0, "nll_bits_per_dim"] == pytest.approx(float(exact), abs=1e-4)
    done = table.loc[[3, 5, 6]]
    assert done[["nll_bits_per_dim", "nll_ode_bits_per_dim", "sliced_wasserstein", "diversity"]].notna().all(axis=None)
    assert table["fid_binarized"].isna().all() and set(table["extractor"].dropna()) == {"identity"}
    real = table.index[:2]  # of proportional classes, and of classes by chance
    assert table["sliced_wasserstein"].idxmin() in real and table["fid"].idxmin() in real
    assert list(done["nfe"]) == [10, 4, 8]
    checked, layout = config.check(config.merge(TOY, config.read(ROOT / "tests/tiny-toy.yaml"))), Layout(tree)
    for (_, row), cell in zip(done.iterrows(), checked.runs.values(), strict=True):
        found = records.read_record(layout.record("ode_likelihood", checked.network(cell).name))["result"]
        assert row["nll_ode_bits_per_dim"] == pytest.approx(found["bits_per_dim"], abs=5.1e-5)
        assert row["nll_ode_standard_error"] == pytest.approx(found["standard_error"], abs=5.1e-5)


def test_samples_are_points_outside_of_any_range(tree: Path) -> None:
    """Float32, exactly as the sampler left them: neither rounded nor clipped to [−1, 1]."""
    layout = Layout(tree)
    name = "eps/vp-sde/none/euler-maruyama/seed0"
    stored = records.read_tensors(layout.output("sample", name))[0]["images"]
    assert stored.dtype == torch.float32 and stored.shape == (300, 2)
    denoiser = sampling.load_denoiser(layout.result("train", "eps/vp-sde/unconditional/seed0"))
    assert not denoiser.clip
    job = records.read_record(layout.record("sample", name))["job"]
    walk = sampling.chain(denoiser, Sampler.make(job["sampler"]), job["network"], torch.arange(300), NOTHING, (2,))
    assert torch.equal([*walk][-1], stored)
    assert float(stored.abs().max()) > 1


def test_figures_of_points(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is there, and the documents' own come out the same bytes a second time."""
    found = {p.stem for p in (tree / "figures").glob("*.png")}
    usual = {"comparison", "samples", "denoising", "bound", "schedules", "forward", "training"}
    assert found == {*usual, "scores", "langevin", "trajectories"}
    for path in tree.rglob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200 and len(np.unique(pixels)) > 50, path
    checked = config.check(config.merge(TOY, config.read(ROOT / "tests/tiny-toy.yaml")))
    layout = Layout(tree)
    renderer = Clouds(data.read(layout.output("data")), checked.job("data")[0]["data"])
    samples = {name: figures.samples_of(layout, cell) for name, cell in checked.runs.items()}
    plane.scores_figure(layout, checked, renderer, tmp_path / "scores.png")
    plane.langevin_figure(layout, checked, renderer, samples, tmp_path / "langevin.png")
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes() == (tree / "figures" / path.name).read_bytes()


@pytest.mark.parametrize("t", [1, 200, 900])
def test_the_score_that_is_drawn(t: int) -> None:
    """Of an exact denoiser it is ∇ log p(x_t), here by differentiating the density, to float32."""
    denoiser = ExactDenoiser(points.GaussianMixture().density(), Geometric(sigma_min=0.1, sigma_max=50.0))
    at = torch.tensor(float(t), dtype=torch.float64)
    x = (5 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    (expected,) = torch.autograd.grad(denoiser.log_density(x, at).sum(), x)
    found = plane.estimated_score(denoiser, x.detach(), at)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_law_without_a_closed_form_is_estimated() -> None:
    """A kernel estimate has the mean of its points, is wider by its kernels alone, and is high where points are."""
    half = points.Moons(train=1500, test=2).load()[0]
    both = data.Data(half, half, PLANE, 2)
    law, exact = density_of(both, {"name": "moons"})
    assert not exact and len(law.weights) == 1000
    torch.testing.assert_close(law.weights @ law.means, half.images[:1000].double().mean(0))
    inside = law.log_density(half.images[1000:]).mean()
    assert inside > law.log_density(half.images[1000:].flip(1)).mean() + 2
    of_mixture, exact = density_of(data.Data(half, half, PLANE, 2), {"name": "mixture"})
    assert exact and torch.equal(of_mixture.means, points.GaussianMixture().density().means)
