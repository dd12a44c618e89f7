"""Classifier guidance against Bayes' rule, the classifier of noisy images, and both in the graph's stages."""

import math
from pathlib import Path

import pytest
import torch
from oracles import PLANE, SCHEDULES, ClassDenoiser, GaussianDenoiser, MixtureDenoiser, randn, time
from torch.nn import functional as F

from ddpm.condition import NOTHING, Condition
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.guidance import ClassifierFree, ClassifierGuidance
from ddpm.networks.classifier import NoisyClassifier
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.samplers import DDIM, Ancestral
from ddpm.schedules import Karras, Linear
from ddpm.spot_checks import redrawn
from ddpm.stages import guide
from ddpm.stages import sample as sampling

Tensor = torch.Tensor
WEIGHTS, MEANS, STDS = (0.3, 0.5, 0.2), (-0.6, 0.1, 0.8), (0.2, 0.4, 0.3)
ROOT = Path(__file__).parent.parent


def mixture(schedule, v: float | None = None) -> MixtureDenoiser:
    return MixtureDenoiser(schedule, WEIGHTS, MEANS, STDS, v)


def bayes(schedule):
    """log p(y | x_t) = log w_y N(x_t; α m_y, …) − log Σ_k …, for images of one pixel."""
    denoiser = mixture(schedule)

    def log_probability(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        joint = denoiser._log_joint(x_t, t).flatten(0, -2)
        return joint.log_softmax(-1).gather(1, y[:, None]).flatten()

    return log_probability


@pytest.mark.parametrize("schedule", [Linear(), SCHEDULES["cosine"](), Karras(sigma_max=10.0)])
@pytest.mark.parametrize("t", [1, 30, 500, 999])
def test_with_w_1_the_exact_classifier_gives_the_conditional_denoiser(schedule, t: int) -> None:
    """001, eq. 4.24: ∇ log q(x_t) + ∇ log q(y | x_t) = ∇ log q(x_t | y), so x̂0 becomes E[x0 | x_t, y]."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    x_t = schedule.noisy(randn(0, 6, 1, 1, 1), randn(1, 6, 1, 1, 1), time(t))
    guided = ClassifierGuidance(weight=1.0)(mixture(schedule), bayes(schedule))
    found = guided(x_t, time(t), Condition(y)).x0
    for i, k in enumerate(y.tolist()):
        exact = GaussianDenoiser(schedule, MEANS[k], STDS[k])(x_t[i : i + 1], time(t)).x0
        torch.testing.assert_close(found[i : i + 1], exact, rtol=1e-7, atol=1e-9)


def test_algorithm_4() -> None:
    """001, algorithm 4, line 3: ε̂ = ε − w √(1 − ᾱ) ∇ log p(y | x_t), at one time and at one per image; a learned
    variance stays."""
    schedule, y = Linear(), torch.tensor([2, 0, 1])
    x_t, classifier = randn(2, 3, 1, 1, 1), bayes(schedule)
    for t in (time(400), time(10, 400, 900)):
        x = x_t.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(x, t, y).sum(), x)
        plain = mixture(schedule)(x_t, t)
        found = ClassifierGuidance(weight=2.5)(mixture(schedule, v=0.3), classifier)(x_t, t, Condition(y))
        assert found.v is not None and (found.v == 0.3).all()
        expected = plain.eps - 2.5 * schedule.sigma(t) * gradient
        torch.testing.assert_close(found.eps, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [DDIM(steps=200), Ancestral(steps=200)])
def test_guided_samples_are_the_classs(sampler) -> None:
    """With w = 1 and the exact classifier every sampler draws from the class: its mean and variance."""
    schedule, k, n = Linear(), 2, 4000
    denoiser = ClassifierGuidance(weight=1.0)(mixture(schedule), bayes(schedule))
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    *_, x = sampler.trajectory(denoiser, draw(), Condition(torch.full((n,), k)), draw)
    own = GaussianDenoiser(schedule, MEANS[k], STDS[k])
    generator = torch.Generator().manual_seed(0)
    *_, expected = sampler.trajectory(own, draw(), NOTHING, draw)
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-8)
    assert denoiser.evaluated == 2 * 200 * n


def test_no_weight_is_no_guidance() -> None:
    """w = 0: the unconditional model, one evaluation per call, and the classifier is not asked."""

    def never(*_: object) -> Tensor:
        raise AssertionError

    x_t, y = randn(3, 2, 1, 1, 1), torch.tensor([0, 1])
    guided = ClassifierGuidance(weight=0.0)(mixture(Linear()), never)
    assert torch.equal(guided(x_t, time(300), Condition(y)).x0, mixture(Linear())(x_t, time(300)).x0)
    assert guided.evaluated == 2


def test_it_differs_from_classifier_free_guidance_by_convention_only() -> None:
    """With exact parts, classifier guidance of weight 1 + w is classifier-free guidance of weight w."""
    schedule, y = Linear(), torch.tensor([0, 1, 2])
    x_t = randn(4, 3, 1, 1, 1)
    by_classifier = ClassifierGuidance(weight=3.0)(mixture(schedule), bayes(schedule))(x_t, time(300), Condition(y)).x0
    free = ClassifierFree(weight=2.0)(ClassDenoiser(schedule, WEIGHTS, MEANS, STDS))(x_t, time(300), Condition(y)).x0
    torch.testing.assert_close(by_classifier, free, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("condition", "classifier"), [(NOTHING, bayes(Linear())), (Condition(torch.tensor([0])), None)]
)
def test_what_it_needs_is_named(condition, classifier) -> None:
    """Labels and a classifier."""
    with pytest.raises(ValueError, match="needs labels, and a classifier of noisy images"):
        ClassifierGuidance()(mixture(Linear()), classifier)(randn(0, 1, 1, 1, 1), time(300), condition)


# ---- the classifier of noisy images -------------------------------------------------------------------------


def test_the_network_sees_scaled_images_and_the_noise_level() -> None:
    """x_t/√(α² + σ²) and log SNR(t), one per image or one for all."""
    seen = []
    schedule = Karras(steps=100)

    def network(x: Tensor, log_snr: Tensor) -> Tensor:
        seen.append((x, log_snr))
        return torch.zeros(len(x), 10)

    x_t = randn(5, 2, 1, 8, 8)
    guide.logits(network, schedule, x_t, time(7, 60))
    guide.logits(network, schedule, x_t, time(60))
    for row, t in ((0, 7), (1, 60)):
        sigma = float(schedule.sigma(time(t)))
        torch.testing.assert_close(seen[0][0][row], x_t[row] / math.sqrt(1 + sigma**2))
        assert float(seen[0][1][row]) == pytest.approx(-2 * math.log(sigma))
    torch.testing.assert_close(seen[1][1], seen[0][1][1:].expand(2))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 4, 4)])
def test_the_network_uses_every_weight(shape: tuple[int, int, int]) -> None:
    """Every parameter gets a gradient, on images down to 4×4."""
    torch.manual_seed(0)
    network = NoisyClassifier(shape, 10, width=16)
    F.cross_entropy(network(torch.randn(4, *shape), torch.randn(4)), torch.arange(4)).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


# ---- the stages ---------------------------------------------------------------------------------------------

OVERLAY = {
    "guidances": {"guided": {"method": "classifier", "weight": 3.0}},
    "grid": [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["guided"], "sampler": ["ddim"]}],
    "guide": {"steps": 150, "width": 16},
}
CELL = "eps/linear/guided/ddim/seed0"


def tiny(**overlay: object) -> Grid:
    base = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    return config.check(config.merge(config.merge(base, OVERLAY), overlay))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tree with data, a guide and an (unconditional) network."""
    layout, grid = Layout(tmp_path_factory.mktemp("guide")), tiny()
    for stage, name in grid.needed("sample", CELL):
        if stage != "sample":
            execute(stage, *grid.job(stage, name), layout)
    return layout


def test_the_graph_of_a_guided_cell() -> None:
    """An unconditional network, and one guide per schedule and seed, whatever the weight."""
    grid = tiny(
        guidances={"more": {"method": "classifier", "weight": 9.0}},
        seeds=[0, 1],
        grid=[
            {"objective": ["eps"], "schedule": ["linear"], "guidance": ["guided", "more", "none"], "sampler": ["ddim"]}
        ],
    )
    assert list(grid.networks) == ["eps/linear/unconditional/seed0", "eps/linear/unconditional/seed1"]
    assert list(grid.guides) == ["linear/seed0", "linear/seed1"]
    assert [grid.is_guided(grid.runs[f"eps/linear/{g}/ddim/seed0"]) for g in ("guided", "more", "none")] == [1, 1, 0]
    assert grid.names["likelihood"] == list(grid.networks) and tiny().names["likelihood"] == []
    assert grid.needed("sample", "eps/linear/more/ddim/seed1")[-2:] == [
        ("guide", "linear/seed1"),
        ("sample", "eps/linear/more/ddim/seed1"),
    ]
    assert grid.job("sample", CELL)[0]["guide"] == "linear/seed0"
    assert "guide" not in grid.job("sample", "eps/linear/none/ddim/seed0")[0]


def test_the_guide_learns_what_noise_leaves(trained: Layout) -> None:
    """Test accuracy falls from that of a classifier of clean digits to that of guessing, at t = T."""
    found = records.read_record(trained.record("guide", "linear/seed0"))["result"]["accuracy_by_time"]
    assert list(found) == ["0.0", "0.25", "0.5", "0.75", "1.0"]
    assert found["0.0"] > 0.8 and found["0.0"] > found["0.5"] > found["1.0"] and 0.05 < found["1.0"] < 0.2


def test_the_loaded_guide_is_a_probability(trained: Layout) -> None:
    """Σ_y p(y | x_t) = 1, and its gradient reaches x_t."""
    classifier = guide.load(trained.result("guide", "linear/seed0"), "cpu")
    dataset = data.read(trained.output("data"))
    x = dataset.space.encode(dataset.test.images[:3]).requires_grad_()
    total = sum(classifier(x, time(20), torch.full((3,), k)).exp() for k in range(10))
    torch.testing.assert_close(total, torch.ones(3))
    (gradient,) = torch.autograd.grad(classifier(x, time(20), torch.arange(3)).sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_guided_cell(trained: Layout) -> None:
    """Its labels are drawn as for a conditional network, its record names the guide's file, its NFE counts both."""
    grid = tiny()
    execute("sample", *grid.job("sample", CELL), trained)
    record = records.read_record(trained.record("sample", CELL))
    tensors, _ = records.read_tensors(trained.output("sample", CELL))
    assert record["result"]["nfe"] == 2 * 4
    assert record["inputs"]["guide"] == records.sha256(trained.output("guide", "linear/seed0"))
    expected = sampling.draw_labels(data.read(trained.output("data")), "eps/linear/unconditional/seed0", 40)
    assert torch.equal(tensors["labels"], expected)
    files = [trained.output("train", "eps/linear/unconditional/seed0"), trained.output("guide", "linear/seed0")]
    counted, training = Results(grid, trained).trained(grid.runs[CELL]), grid.config["training"]
    assert counted["parameters"] == sum(t.numel() for file in files for t in records.read_tensors(file)[0].values())
    own = grid.config["guide"]
    assert counted["images_seen"] == training["steps"] * training["batch"] + own["steps"] * own["batch"]


def test_the_same_guide_twice(trained: Layout, tmp_path: Path) -> None:
    """Same seed, same bytes; another seed, other weights."""
    layout = Layout(tmp_path)
    records.write_json(layout.output("data").parent / "x", {})
    layout.output("data").write_bytes(trained.output("data").read_bytes())
    for seed in (0, 1):
        grid = tiny(seeds=[seed], guide={"steps": 150, "width": 16})
        execute("guide", *grid.job("guide", f"linear/seed{seed}"), layout)
    same = trained.output("guide", "linear/seed0").read_bytes()
    assert (
        layout.output("guide", "linear/seed0").read_bytes()
        == same
        != layout.output("guide", "linear/seed1").read_bytes()
    )


def test_points_have_no_guide(tmp_path: Path) -> None:
    """A guide takes images; other data are refused with what would be right."""
    layout = Layout(tmp_path)
    points = {f"{half}_images": torch.zeros(8, 2) for half in ("train", "test")}
    points |= {f"{half}_labels": torch.zeros(8, dtype=torch.int64) for half in ("train", "test")}
    records.write_tensors(layout.output("data"), points, {"space": PLANE.spec, "classes": 2})
    with pytest.raises(UserError, match="classifier guidance takes images"):
        execute("guide", *tiny().job("guide", "linear/seed0"), layout)


def test_labels_that_play_no_part_are_not_stored(tmp_path: Path) -> None:
    """w = −1 of classifier-free guidance: nobody asked for a label, so that there is no accuracy to measure."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")
    read["guidances"]["free"] = {"method": "cfg", "weight": -1.0}
    axes = {"objective": ["eps"], "schedule": ["linear"], "sampler": ["ddim"]}
    read["grid"] = [axes | {"guidance": ["free", "cfg-w0"]}]
    grid, layout, stored = config.check(read), Layout(tmp_path), {}
    for cell in grid.runs.values():
        for stage, name in grid.needed("sample", cell.name):
            if not layout.record(stage, name).exists():
                execute(stage, *grid.job(stage, name), layout)
        stored[cell.guidance] = "labels" in records.read_tensors(layout.output("sample", cell.name))[0]
        assert not [*redrawn(Results(grid, layout), cell.name, 0)]
    assert stored == {"free": False, "cfg-w0": True}
