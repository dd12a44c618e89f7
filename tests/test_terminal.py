"""Whether schedules end in noise, from their parameters alone and from the schedules themselves."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from oracles import EVERY, GaussianDenoiser, last, time

from ddpm import terminal
from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.samplers import DDIM
from ddpm.schedules import VPSDE, Cosine, Flow, Geometric, Karras, Linear, Schedule, ShiftedCosine, Sigmoid

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "schedule",
    [
        *(kind() for kind in EVERY.values()),
        Linear(steps=100),
        Linear(steps=2500, beta_first=3e-4, beta_last=0.004),
        Cosine(steps=50, offset=0.1),
        Cosine(beta_max=0.004),
        VPSDE(beta_min=0.3, beta_max=2.0),
        Geometric(sigma_max=7.0),
        Karras(sigma_max=0.9),
        Flow(),
        Sigmoid(temperature=0.2),
        ShiftedCosine(shift=0.1),
    ],
    ids=str,
)
def test_the_end_is_the_schedules_own(schedule: Schedule) -> None:
    """σ_T/α_T in plain numbers against the schedule's tables."""
    found = terminal.level(schedule.method, asdict(schedule))
    assert found == pytest.approx(float(schedule.level(time(schedule.steps))), rel=1e-9)


def test_ends_that_have_no_level() -> None:
    """β_T of 1 or more, an α_T that no float64 holds, a method that is not known here."""
    assert terminal.level("linear", {"steps": 10, "beta_first": 1e-4, "beta_last": 0.02}) == math.inf
    assert terminal.level("linear", {"steps": 2000, "beta_first": 1.9, "beta_last": 1.9}) == math.inf
    assert terminal.level("own", {"steps": 10}) is None
    assert terminal.mistake("own", {"steps": 10}, 1.0) == ""


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (
            "linear",
            {"beta_last": 0.002},
            "beta_last: 0.002; x_T is not noise but still shows the data: σ/α ends at 1.36",
        ),
        ("cosine", {"beta_max": 0.001}, "beta_max: 0.001; x_T is not noise"),
        ("vp-sde", {"beta_max": 1.0}, "beta_max: 1; x_T is not noise but still shows the data: σ/α ends at 0.856"),
        ("karras", {"sigma_max": 1.0}, "sigma_max: 1; x_T is not noise"),
        ("linear", {"steps": 20}, "steps: 20; β_T = beta_last · 1000/T = 1 must be below 1: T must be at least 21"),
        (
            "linear",
            {"steps": 40, "beta_last": 0.05},
            "β_T = beta_last · 1000/T = 1.25 must be below 1: T must be at least 51",
        ),
        ("linear", {"beta_last": 0.95}, "beta_last: 0.95; nothing of the data is left before T, not even in float64"),
    ],
)
def test_a_schedule_without_noise_is_refused(method: str, parameters: dict, message: str) -> None:
    """`ddpm check` names the key, the value and what would be right."""
    read = config.read(ROOT / "config.yaml")
    read["schedules"]["wrong"] = {"method": method} | parameters
    with pytest.raises(ConfigError) as raised:
        config.check(read)
    (found,) = raised.value.messages
    assert found.startswith("schedules.wrong.") and message in found
    if "still shows" in message:
        assert "must reach 1.5, 3 standard deviations of the data: raise" in found


@pytest.mark.parametrize(
    "schedule", [Linear(beta_last=0.9), Linear(steps=4000, beta_last=0.9), Cosine(beta_max=0.9999)]
)
def test_the_bound_of_what_is_not_refused_is_finite(schedule: Schedule) -> None:
    """Every step's transition, its variance and the posterior, however little of the data is left."""
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64)
    parts = [*schedule.transition(t, t - 1), *schedule.posterior(t, t - 1), *schedule.log_variances(t, t - 1)]
    assert all(part.isfinite().all() for part in parts)


def test_the_limit_is_three_standard_deviations() -> None:
    """Exactly three is enough; points of a standard deviation of 4 need more than images."""
    assert terminal.mistake("karras", {"sigma_max": 1.5}, 0.5) == "" and terminal.falls_short(3.0, 1.0) == ""
    assert "must reach 12, 3 standard" in terminal.mistake("karras", {"sigma_max": 11.9}, 4.0)
    read = config.merge(config.read(ROOT / "config.yaml"), {"data": {"name": "mixture"}, "network": {"method": "mlp"}})
    read["schedules"]["low"] = {"method": "geometric", "sigma_min": 0.1, "sigma_max": 11.0}
    with pytest.raises(ConfigError, match=r"schedules\.low\.sigma_max: 11; x_T is not noise"):
        config.check(read)


@pytest.mark.parametrize("k", [1.0, 3.0, 10.0])
def test_what_the_start_costs(k: float) -> None:
    """At σ_T = k c the flow of N(0, c²), started from N(0, σ_T²), ends with k²/(1 + k²) of the variance."""
    schedule, c = Geometric(steps=4000, sigma_min=1e-3, sigma_max=0.5 * k), 0.5
    x = torch.tensor([[[[1.0]]]], dtype=torch.float64)
    kept = float(last(DDIM(steps=4000), GaussianDenoiser(schedule, 0.0, c), schedule.prior_std * x)) ** 2 / c**2
    assert kept == pytest.approx(k**2 / (1 + k**2), rel=2e-3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"method": "linear", "beta_last": 0.001}, "schedule linear of {}: x_T is not noise .* raise its beta_last"),
        ({"method": "karras", "sigma_max": 1.0}, "schedule karras of {}: .* ends at 1 and must reach 1.62.* sigma_max"),
    ],
)
def test_training_measures_the_data(tmp_path: Path, schedule: dict, message: str) -> None:
    """A schedule of one's own is not known before: training asks it, and takes the data's own standard deviation."""
    layout, grid = Layout(tmp_path), config.check(config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"))
    execute("data", *grid.job("data"), layout)
    job, code = grid.job("train", "eps/linear/unconditional/seed0")
    with pytest.raises(UserError, match=message.format(job["name"])):
        execute("train", job | {"schedule": schedule}, code, layout)
    assert not layout.output("train", job["name"]).exists()
