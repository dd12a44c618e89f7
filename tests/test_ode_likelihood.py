"""Exact likelihood of the probability flow: dequantisation, units, and the stage."""

import math
from pathlib import Path

import pytest
import torch
from oracles import DIGITS, PLANE, GaussianDenoiser, log_normal, randn, time

from ddpm import rng
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.schedules import VPSDE, Geometric, Karras, Linear
from ddpm.spaces import Pixels
from ddpm.stages import likelihood, ode_likelihood

Tensor = torch.Tensor
ROOT = Path(__file__).parent.parent
KEY = rng.key("ode likelihood", 0)
SCHEDULES = [Linear(), VPSDE(), Geometric(sigma_max=20.0), Karras(sigma_max=40.0)]


def model_log_density(denoiser: GaussianDenoiser, x: Tensor) -> Tensor:
    """log p(x) of the flow at t = 1: the prior N(0, s²) pushed through the flow's affine map, per pixel.

    The flow keeps (x − α m)/√(α² c² + σ²) = k, and so stretches by the ratio of these roots.
    """
    schedule = denoiser.schedule

    def mean_and_root(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * denoiser.mean, (alpha**2 * denoiser.std**2 + sigma**2).sqrt()

    (m_1, r_1), (m_t, r_t) = mean_and_root(time(1)), mean_and_root(time(schedule.steps))
    return log_normal(m_t + r_t / r_1 * (x - m_1), 0.0, schedule.prior_std**2) + (r_t / r_1).log()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_continuous_data(schedule) -> None:
    """A space without bins: −log2 p per dimension, nothing added to the data."""
    denoiser, x0 = GaussianDenoiser(schedule, 0.3, 0.5), 0.3 + 0.5 * randn(0, 6, 1, 2, 2)
    found = ode_likelihood.ode(denoiser, x0, torch.arange(6), KEY, PLANE, 1, 1e-8, 1e-8)
    expected = -model_log_density(denoiser, x0).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_close_to_the_data(schedule) -> None:
    """Within 1e-3 nats per dimension of the data's own density, where prior and smallest level allow: m = 0."""
    denoiser, x0 = GaussianDenoiser(schedule, 0.0, 0.9), 0.9 * randn(0, 200, 1, 2, 2)
    found = ode_likelihood.ode(denoiser, x0, torch.arange(200), KEY, PLANE, 1, 1e-7, 1e-7) * math.log(2)
    expected = -log_normal(x0, 0.0, torch.tensor(0.81)).flatten(1).mean(1)
    assert abs(float(found.mean() - expected.mean())) < 1e-3


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantisation(levels: int) -> None:
    """Grey levels are spread over bins of width 2/(levels − 1); −log2 p/D − log2 width bounds the discrete bits/dim."""
    schedule = Linear()
    denoiser, index = GaussianDenoiser(schedule, 0.0, 0.6), torch.arange(7, 12)
    width = 2 / (levels - 1)
    grey = torch.randint(levels, (5, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double()
    found = ode_likelihood.ode(denoiser, grey * width - 1, index, KEY, Pixels((1, 2, 2), levels), 1, 1e-8, 1e-8)
    u = rng.uniform(KEY, index, 0, (1, 2, 2))
    assert ((u > 0) & (u < 1)).all()
    spread = (grey + u - 0.5) * width - 1
    expected = -model_log_density(denoiser, spread).flatten(1).mean(1) / math.log(2) - math.log2(width)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_uniform_data_cost_log2_levels() -> None:
    """A density that is flat over the data costs −log2(density) − log2(width), whatever the level."""
    levels = 17
    denoiser = GaussianDenoiser(Linear(), 0.0, 30.0)
    found = ode_likelihood.ode(
        denoiser, torch.zeros(2, 1, 2, 2).double(), torch.arange(2), KEY, Pixels((1, 2, 2), levels), 1, 1e-8, 1e-8
    )
    density = float(model_log_density(denoiser, torch.zeros(1).double()))
    torch.testing.assert_close(
        found, torch.full((2,), -density / math.log(2) - math.log2(2 / 16)).double(), atol=1e-3, rtol=0
    )


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Its dequantisation and probe are its own; the solver's tolerance is all that a batch shares."""
    denoiser, x0 = GaussianDenoiser(Linear(), 0.1, 0.5), randn(1, 6, 1, 2, 2).clamp(-1, 1)
    whole = ode_likelihood.ode(denoiser, x0, torch.arange(6), KEY, DIGITS, 2, 1e-8, 1e-8)
    part = ode_likelihood.ode(denoiser, x0[4:], torch.arange(4, 6), KEY, DIGITS, 2, 1e-8, 1e-8)
    torch.testing.assert_close(whole[4:], part, rtol=0, atol=1e-6)


class Correlated(GaussianDenoiser):
    """Two pixels with covariance [[1, r], [r, 1]]: x̂0 = C α (α² C + σ² I)^−1 x, which mixes them."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        c = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
        gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(2, dtype=torch.float64))
        return (x_t.flatten(1) @ gain.T).reshape(x_t.shape), None


def test_more_probes_average_to_the_density_of_correlated_pixels() -> None:
    """One probe errs by the off-diagonal terms, the mean over images and probes does not."""
    schedule, n = VPSDE(), 400
    denoiser = Correlated(schedule, 0.0, 1.0)
    c = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    x0 = (randn(3, n, 2) @ torch.linalg.cholesky(c).T).reshape(n, 1, 1, 2)
    exact = -torch.distributions.MultivariateNormal(torch.zeros(2).double(), c).log_prob(x0.flatten(1)) / (
        2 * math.log(2)
    )
    one = ode_likelihood.ode(denoiser, x0, torch.arange(n), KEY, PLANE, 1, 1e-5, 1e-5)
    four = ode_likelihood.ode(denoiser, x0, torch.arange(n), KEY, PLANE, 4, 1e-5, 1e-5)
    spread = [float((v - exact).std()) for v in (one, four)]
    assert 1.7 < spread[0] / spread[1] < 2.3  # √4
    assert abs(float((four - exact).mean())) < 4 * spread[1] / n**0.5


# ---- the stage ----------------------------------------------------------------------------------------------

NETWORK = "eps/linear/unconditional/seed0"


def tiny(**overlay: object) -> Grid:
    base = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    return config.check(
        config.merge(base, {"ode_likelihood": {"images": 10, "batch": 4, "rtol": 1e-3, "atol": 1e-3}} | overlay)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tree with data and one network."""
    layout, grid = Layout(tmp_path_factory.mktemp("ode")), tiny()
    for stage, name in grid.needed("train", NETWORK):
        execute(stage, *grid.job(stage, name), layout)
    return layout


def test_the_record(trained: Layout) -> None:
    """Mean and standard error over the first test images, by the same function; NFE and the smallest level."""
    grid = tiny()
    execute("ode_likelihood", *grid.job("ode_likelihood", NETWORK), trained)
    found = records.read_record(trained.record("ode_likelihood", NETWORK))["result"]
    dataset = data.read(trained.output("data"))
    denoiser = likelihood.load_denoiser(trained.result("train", NETWORK))
    denoiser.clip = False
    x0 = dataset.space.encode(likelihood.reference(dataset, "test", 10))
    parts = [ode_likelihood.ode(denoiser, x0[i], i, KEY, DIGITS, 1, 1e-3, 1e-3) for i in torch.arange(10).split(4)]
    bits = torch.cat(parts)
    assert found["bits_per_dim"] == pytest.approx(float(bits.mean()), rel=1e-12)
    assert found["standard_error"] == pytest.approx(float(bits.std()) / math.sqrt(10), rel=1e-12)
    assert found["images"] == 10 and found["nfe"] == round(denoiser.evaluated / 10, 1)
    assert found["level"] == pytest.approx(float(Linear(steps=100).level(time(1))))


def test_it_goes_on_from_a_checkpoint(trained: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after every batch, it ends with the same numbers."""
    grid, whole = tiny(), ode_likelihood.ode
    execute("ode_likelihood", *grid.job("ode_likelihood", NETWORK), trained)
    expected = records.read_record(trained.record("ode_likelihood", NETWORK))["result"]
    calls = []

    def interrupted(*arguments: object) -> Tensor:
        calls.append(arguments)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(ode_likelihood, "ode", interrupted)
    for _ in range(3):
        try:
            execute("ode_likelihood", *grid.job("ode_likelihood", NETWORK), trained, checkpoint_seconds=0)
        except KeyboardInterrupt:
            continue
    assert len(calls) == 5
    assert records.read_record(trained.record("ode_likelihood", NETWORK))["result"] == expected
    assert not trained.checkpoint("ode_likelihood", NETWORK).exists()


def test_no_images_no_job() -> None:
    """`images: 0` measures nothing; otherwise the unconditional networks are measured."""
    assert tiny(ode_likelihood={"images": 0}).names["ode_likelihood"] == []
    assert tiny().names["ode_likelihood"] == tiny().names["likelihood"] != []
