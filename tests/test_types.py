"""Types and devices: schedules compute in float64 on the CPU whatever they are asked with, images keep their own.

The `meta` device stands for a GPU: its tensors have a device and a type, and no numbers.
"""

import pytest
import torch
from oracles import EVERY, time

from ddpm.objectives import Target
from ddpm.samplers import Sampler
from ddpm.schedules import Cosine, Linear, distinct, like

NAMES = list(EVERY)
META = torch.zeros(3, 1, 2, 2, device="meta")
TARGETS = ("x0", "eps", "score", "mu", "v", "F", "flow")


def test_coefficients_go_where_the_images_are() -> None:
    """One per image moves to the images' device and type; a single one stays a CPU scalar of that type."""
    one, many = torch.tensor(0.3, dtype=torch.float64), torch.full((3, 1, 1, 1), 0.3, dtype=torch.float64)
    for x in (META, META.double(), META.bfloat16(), torch.zeros(3, 1, 2, 2)):
        single, several = like(x, one, many)
        assert single.device.type == "cpu" and single.ndim == 0 and single.dtype == x.dtype
        assert several.device == x.device and several.dtype == x.dtype
    (column,) = like(META, many.reshape(3))
    assert column.device.type == "meta" and column.shape == (3,)


def test_the_condition_goes_where_the_images_are() -> None:
    for x in (META, META.bfloat16()):
        for t in (time(5), time(5, 7, 9)):
            found = Linear().log_snr_for(t, x)
            assert found.device.type == "meta" and found.dtype == x.dtype and found.shape == (3,)


@pytest.mark.parametrize("name", NAMES)
def test_times_of_any_type(name: str) -> None:
    """Integers and float32 times give what float64 times give."""
    schedule, exact = EVERY[name](), torch.tensor([1, 7, 500, 1000], dtype=torch.float64)
    functions = ("alpha", "sigma", "log_snr", "level", "slope", "drift", "diffusion")
    for kind in (torch.int64, torch.int32, torch.float32):
        for function in functions:
            found, expected = (getattr(schedule, function)(t) for t in (exact.to(kind), exact))
            assert found.dtype == torch.float64 and torch.equal(found, expected), (function, kind)
    assert schedule.alpha(500).dtype == torch.float64 and schedule.alpha(500) == schedule.alpha(time(500))
    s = exact - 1
    for part in (*schedule.posterior(exact, s), *schedule.transition(exact, s), *schedule.log_variances(exact, s)):
        assert part.dtype == torch.float64
    assert schedule.prior_std.dtype == schedule.start.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_levels_of_any_type(name: str) -> None:
    """`time_at` of a float32 or whole level is that of the same number in float64."""
    schedule, levels = EVERY[name](), torch.tensor([0.004, 0.3, 2.0, 17.0], dtype=torch.float32)
    found = schedule.time_at(levels)
    assert found.dtype == torch.float64 and torch.equal(found, schedule.time_at(levels.double()))
    assert torch.equal(schedule.time_at(torch.tensor([2, 17])), found[2:])
    assert float(schedule.time_at(2)) == float(found[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["ancestral", "plain-langevin", "ode-adaptive", "heun"])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras"])
def test_grids_are_float64(spacing: str, method: str, name: str) -> None:
    times = Sampler.make({"method": method, "steps": 7, "spacing": spacing}).times(EVERY[name]())
    assert times.dtype == torch.float64 and times.shape == (8,)
    assert distinct(torch.tensor([3, 2, 0])).dtype == torch.float64


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["linear", "karras"])
def test_coefficients_of_targets_are_float64(name: str, target: str) -> None:
    made, schedule = Target.make({"method": target}), EVERY[name]()
    for t in (time(5), time(5, 900)):
        parts = (*made.coefficients(schedule, t), made.simple_weight(schedule, t), made.input_scale(schedule, t))
        assert all(part.dtype == torch.float64 and part.shape == t.shape for part in (*parts, made.gain(schedule, t)))
    x = torch.zeros(2, 1, 2, 2)
    for found in (made.of(schedule, x, x, time(5, 900)), *made.invert(schedule, x, x, time(5, 900))):
        assert found.dtype == torch.float32


def test_ends_of_time_at() -> None:
    """Around t = 1, where the pieces meet, and at 0."""
    t = torch.tensor([0, 1e-9, 0.5, 1 - 1e-9, 1, 1 + 1e-9, 1.5], dtype=torch.float64)
    for name in NAMES:
        schedule = EVERY[name]()
        found = schedule.time_at(schedule.level(t))
        torch.testing.assert_close(found, t, rtol=1e-9, atol=1e-12)
        assert (found.diff() > 0).all()


def test_small_variance_of_short_chains() -> None:
    """β̃ of the step 2 → 1 is the floor at s = 0 wherever t is."""
    schedule = Cosine(steps=3)
    tilde = float(schedule.posterior(time(2), time(1))[2].log())
    assert float(schedule.log_variances(time(1), time(0))[0]) == tilde
    assert float(schedule.log_variances(time(3), time(0))[0]) == tilde
    assert float(schedule.log_variances(time(3), time(2))[0]) > tilde
