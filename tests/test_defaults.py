"""What a schedule of α and σ alone gives by default, against the closed forms of those that have them."""

import math
from dataclasses import dataclass

import pytest
import torch
from oracles import ANY, EVERY, SCHEDULES, FlowMatching, GaussianDenoiser, randn, time

from ddpm import bound, calculus, probability_flow
from ddpm.condition import NOTHING
from ddpm.samplers import Ancestral, EulerMaruyama, EulerODE, Heun
from ddpm.schedules import VPSDE, Cosine, Geometric, Karras, Linear, Schedule, VariancePreserving

Tensor = torch.Tensor
NAMES = list(EVERY)
VE = ["geometric", "karras"]
TIMES = [0.3, 1.0, 1.5, 2.0, 17.25, 500.0, 500.5, 998.7, 1000.0]


@dataclass(frozen=True)
class Bare(Schedule):
    """α and σ of another schedule, and nothing else of it."""

    closed: Schedule | None = None

    def alpha(self, t: Tensor) -> Tensor:
        return self.closed.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.closed.sigma(t)


@dataclass(frozen=True)
class Quarter(VariancePreserving):
    """α = cos φ, σ = sin φ, φ = πt/2T (Salimans & Ho 2022): of the VP family, α(T) = 6e-17."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t / self.steps * torch.pi / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t / self.steps * torch.pi / 2)


def bare(name: str, steps: int = 1000) -> Bare:
    return Bare(steps=steps, closed=EVERY[name](steps=steps))


def times(name: str) -> Tensor:
    """`TIMES`, but those below which the tables of the discrete ones hold an infinite log SNR."""
    return torch.tensor([t for t in TIMES if t > 1 or name not in SCHEDULES], dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["slope", "drift", "diffusion"])
def test_derivatives(function: str, name: str) -> None:
    """At real times and, to the left, at the indices where the pieces of a table meet.

    They are exact but for the rounding of α and σ. σ² = 1 − ᾱ loses the digits of ᾱ to 1/β_1 = 1e4 roundings, 1e-12.
    """
    t = times(name)
    found, expected = (getattr(s, function)(t) for s in (bare(name), EVERY[name]()))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-18)
    many = getattr(bare(name), function)(t.reshape(-1, 1, 1, 1))
    assert torch.equal(many.flatten(), found) and not found.requires_grad
    with torch.no_grad():
        assert torch.equal(getattr(bare(name), function)(t), found)


def test_derivatives_of_flow_matching() -> None:
    """d log SNR/dt = −2/t − 2/(T − t), f = −1/(T − t), g² = 2t/T² + 2t²/(T² (T − t)); infinite where α = 0."""
    schedule, t = FlowMatching(), torch.tensor([0.5, 1, 400, 999, 999.999], dtype=torch.float64)
    torch.testing.assert_close(schedule.slope(t), -2 / t - 2 / (1000 - t), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.drift(t), -1 / (1000 - t), rtol=1e-9, atol=0)
    g2 = 2 * t / 1e6 + 2 * t**2 / (1e6 * (1000 - t))
    torch.testing.assert_close(schedule.diffusion(t), g2, rtol=1e-9, atol=0)
    end = time(1000)
    assert [float(f(end)) for f in (schedule.slope, schedule.drift, schedule.diffusion)] == [-math.inf] * 2 + [math.inf]
    assert float(schedule.log_snr(end)) == -math.inf and float(schedule.level(end)) == math.inf
    assert schedule.log_snr_for(end, torch.zeros(2, 1)).tolist() == [-30.0] * 2


def test_a_family_member_of_alpha_and_sigma() -> None:
    """VP's own f = ½ σ² d log SNR/dt stands on the default slope: −π/T / (2 tan φ) … for α = cos φ."""
    schedule, t = Quarter(), torch.tensor([1.0, 300.5, 990.0], dtype=torch.float64)
    angle, turn = t * torch.pi / 2000, torch.pi / 2000
    torch.testing.assert_close(schedule.slope(t), -2 * turn / (angle.sin() * angle.cos()), rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.drift(t), -turn * angle.tan(), rtol=1e-11, atol=0)
    assert float(schedule.start) == 996 and float(schedule.last) == 999 and float(schedule.prior_std) == 1


def test_what_torch_cannot_differentiate_is_refused() -> None:
    """A table that is looked up has no slope, a branch that is not finite spoils the other: both by name."""

    def table(t: Tensor) -> Tensor:
        return torch.linspace(1, 0.1, 11, dtype=torch.float64)[t.long()]

    with pytest.raises(ValueError, match=r"Own\.alpha: torch sees no dependence on t"):
        calculus.derivative(table, time(3, 4), "Own.alpha")
    with pytest.raises(ValueError, match=r"Own\.sigma: its derivative at t = 4 is NaN"):
        calculus.derivative(lambda t: torch.where(t < 5, t, (t - 5).sqrt()), time(8, 4), "Own.sigma")
    constant = calculus.derivative(torch.ones_like, time(3, 4), "Own.alpha")
    assert torch.equal(constant, torch.zeros(2, 1, 1, 1).double())
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert float(calculus.derivative(lambda t: weight.expand_as(t), time(3), "Own.alpha")) == 0
    with pytest.raises(ValueError, match=r"Linear\.alpha|Bare\.alpha"):
        bare("linear").slope(time(0.5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [21, 1000, 4000])
def test_time_at(name: str, steps: int) -> None:
    """Bisection finds the last digits that σ/α itself decides; T for larger levels, exactly; any shape and type.

    Below t = 1, where σ² = t σ_1² = 1 − ᾱ is known to one rounding of ᾱ ≈ 1, t is to 2⁻⁵²/σ_1².
    """
    closed, schedule = EVERY[name](steps=steps), bare(name, steps)
    t = torch.cat([torch.linspace(0, steps, 61), torch.tensor([1e-6, 0.2, 0.999, 1, 1.001])]).double()
    rounding = 2**-52 / float(closed.sigma(time(1))) ** 2
    torch.testing.assert_close(schedule.time_at(closed.level(t)), t, rtol=1e-10, atol=rounding)
    level = torch.logspace(-3, 2, 60, dtype=torch.float64).reshape(6, 10)
    torch.testing.assert_close(schedule.time_at(level), closed.time_at(level), rtol=1e-10, atol=0)
    top = float(closed.level(time(steps)))
    assert schedule.time_at(torch.tensor([1.001 * top, math.inf])).tolist() == [steps] * 2
    assert float(schedule.time_at(0)) == pytest.approx(0, abs=1e-12)
    assert schedule.time_at(torch.tensor(2, dtype=torch.float32)).dtype == torch.float64


def test_time_at_of_flow_matching() -> None:
    """σ/α = t/(T − t): t = T ς/(1 + ς), up to the infinite level of T."""
    schedule, level = FlowMatching(), torch.tensor([0, 1e-9, 0.3, 1, 164, 1e6, math.inf], dtype=torch.float64)
    expected = torch.cat([1000 * level[:-1] / (1 + level[:-1]), time(1000)[None]])
    torch.testing.assert_close(schedule.time_at(level), expected, rtol=1e-14, atol=1e-18)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [21, 1000])
def test_start_and_grid(name: str, steps: int) -> None:
    """`start` is VP's; VE's σ_max stays below the largest level here. The grid is VE's: linspace(start, 1, S), 0."""
    closed, schedule = EVERY[name](steps=steps), bare(name, steps)
    assert float(schedule.start) == float(closed.start) and float(schedule.last) == steps
    for count in (1, 2, 7, steps):
        expected = torch.cat([torch.linspace(float(closed.start), 1, count).double(), torch.zeros(1).double()])
        torch.testing.assert_close(schedule.grid(count), expected, rtol=1e-6, atol=0)
        if name in VE:
            assert torch.equal(schedule.grid(count), closed.grid(count))


def test_what_only_noise_is_left_at() -> None:
    """`lost` from α < e^−15 on: T of flow matching, 999.9999…; never on VE, whose α is 1 at any σ."""
    assert float(FlowMatching().last) == 999 and float(FlowMatching().start) == 993
    assert FlowMatching().lost(time(999, 999.9996, 999.9998, 1000)).flatten().tolist() == [False, False, True, True]
    assert float(Geometric(sigma_max=1e9).last) == float(Geometric(sigma_max=1e9).start) == 1000
    assert all(float(kind().last) == 1000 for kind in EVERY.values())
    hard = Linear(beta_last=0.9)
    assert float(hard.alpha(hard.last)) > math.exp(-15) > float(hard.alpha(hard.last + 1))
    for name in ("start", "last"):
        with pytest.raises(
            ValueError, match=r"steps: 2; x_t holds no data from t = 2 on, too soon to start there: raise steps"
        ):
            getattr(FlowMatching(steps=2), name)
        assert float(getattr(FlowMatching(steps=3), name)) == 2
    # α is small and not 0: as many steps as ever.
    assert float(VPSDE(steps=4, beta_max=1000.0).last) == float(VPSDE(steps=4, beta_max=1000.0).start) == 2


@pytest.mark.parametrize("name", list(ANY))
def test_prior(name: str) -> None:
    """σ(T) by default, which is VE's own and VP's but for 1 − σ_T = α_T²/2; where samplers start sooner, σ there."""
    schedule = Bare(closed=ANY[name]())
    end, most = time(1000), float(schedule.alpha(time(1000))) ** 2 if name not in VE else 1e-12
    assert float(schedule.prior_std) == pytest.approx(float(ANY[name]().prior_std), abs=most)
    assert float(schedule.noise_std(end)) == float(schedule.prior_std)
    assert float(schedule.noise_std(time(400))) == float(schedule.sigma(time(400)))
    square = schedule.alpha(time(400)) ** 2 + schedule.sigma(time(400)) ** 2
    assert float(ANY[name]().square(time(400))) == pytest.approx(float(square), rel=1e-14)
    assert Linear().noise_std(Linear().start) == Cosine().noise_std(Cosine().start) == 1
    assert Karras().noise_std(Karras().start) == 80


@pytest.mark.parametrize("name", ["linear", "cosine", "vp-sde"])
def test_samplers_and_densities_see_no_difference(name: str) -> None:
    """Whatever steps along given times, and the density: what their rounding leaves.

    Heun's angle, written for any α² + σ², is VP's where that is 1. ln p differs by that of the prior, N(0, σ_T²), whose
    variance is α_T² smaller: by less than α_T² (1 + x_T²) per dimension.
    """
    closed, schedule, x = EVERY[name](), Bare(closed=EVERY[name]()), randn(0, 4, 2)
    z = randn(5, 4, 2)
    for sampler in (Ancestral(), EulerMaruyama(), EulerODE(), Heun(), Heun(churn=20.0)):
        for t, s in ((990.0, 900.0), (500.0, 470.5), (3.0, 1.5)):
            one, two = (
                sampler.step(GaussianDenoiser(each, 0.3, 0.5), x, time(t), time(s), None, lambda: z)
                for each in (closed, schedule)
            )
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    probe = torch.ones_like(x)
    one, two = (
        probability_flow.log_density(GaussianDenoiser(each, 0.3, 0.5), x, time(30.25), NOTHING, probe, 1e-9, 1e-9)
        for each in (closed, schedule)
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6 + 40 * float(closed.alpha(time(1000))) ** 2)
    assert torch.allclose(bound.prior_term(closed, x), bound.prior_term(schedule, x), atol=1e-4)


@pytest.mark.parametrize("name", VE)
def test_heun_in_the_angle_is_of_second_order_on_any_schedule(name: str) -> None:
    """σ/α from 80 or 50 down to that of t = 1, with α = 1: the flow in the angle, at the order of EDM's coordinate."""
    errors = []
    for steps in (100, 200):
        denoiser = GaussianDenoiser(bare(name), 0.3, 0.5)
        x = denoiser.schedule.prior_std * randn(1, 5, 2)
        *_, x_1, _ = Heun(steps=steps).trajectory(denoiser, x, NOTHING, None)
        errors.append(float((denoiser.flow(x_1, time(1)) - denoiser.flow(x, time(1000))).abs().max()))
    assert errors[0] < 1e-3 and math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_vpsde_stays_its_equation() -> None:
    """The default slope of the continuous one, 1e-14 from its closed form however small t is."""
    t = torch.logspace(-6, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(bare("vp-sde").slope(t), VPSDE().slope(t), rtol=1e-12, atol=0)
