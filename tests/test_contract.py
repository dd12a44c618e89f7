"""The contract of every kind of method, asked of all that the registry knows: a new one is tested without a line here.

`DDPM_METHODS=my_methods.py pytest tests/test_contract.py -k NAME` asks it of a method in a file of one's own.
"""

import math
from functools import cache, partial
from itertools import product

import pytest
import torch
from contract import FILES, KNOWN, column, every, small
from oracles import randn
from project import ROOT

from ddpm import networks
from ddpm.condition import NOTHING, Condition
from ddpm.datasets.dataset import Dataset
from ddpm.denoiser import Denoiser
from ddpm.guidance import Guidance
from ddpm.networks.network import Network
from ddpm.objectives import Objective, Target
from ddpm.parameters import unmet
from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError, incompatibility
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels, Points, Space
from ddpm.stages.sample import chain
from ddpm.times import Times

Tensor = torch.Tensor
IMAGES, PLANE = Pixels((1, 4, 4), 17), Points((2,), (-1.0, -1.0), (1.0, 1.0))
CLASSES = 3


# ---- schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 1000])
@every("schedule")
def test_schedule(schedule: str, steps: int) -> None:
    """α and σ are finite from 0 to T, σ/α rises from 0, and all that follows from them is what it says."""
    made = Schedule.make(small("schedule", schedule, steps=steps))
    ends = torch.tensor([0, 1, steps / 2, steps], dtype=torch.float64)
    for t in (ends, ends.reshape(-1, 1, 1, 1)):
        alpha, sigma = made.alpha(t), made.sigma(t)
        assert alpha.dtype == sigma.dtype == torch.float64 and alpha.shape == sigma.shape == t.shape
        assert alpha.isfinite().all() and sigma.isfinite().all()
        torch.testing.assert_close(made.square(t), alpha**2 + sigma**2, rtol=1e-12, atol=0)
        torch.testing.assert_close(made.time_at(made.level(t)), t, rtol=1e-7, atol=1e-12)
    assert made.alpha(ends[0]) == 1 and made.sigma(ends[0]) == 0
    assert made.level(torch.linspace(0, steps, 4 * steps + 1, dtype=torch.float64)).diff().min() > 0
    assert float(made.time_at(torch.tensor(math.inf))) == steps
    told = made.log_snr_for(column(ends[1:], torch.zeros(3, 1, 1, 1)), torch.zeros(3, 1, 4, 4))
    assert told.dtype == torch.float32 and told.shape == (3,) and told.diff().max() < 0
    # Slope, f and g² are those of α and σ, to the left of t.
    t = torch.tensor([2, steps / 2, float(made.last)], dtype=torch.float64)
    h = 1e-5
    log_alpha, log_snr = ((f(t) - f(t - h)) / h for f in (lambda t: made.alpha(t).log(), lambda t: made.log_snr(t)))
    torch.testing.assert_close(made.slope(t), log_snr, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(made.drift(t), log_alpha, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(made.diffusion(t), -(made.sigma(t) ** 2) * made.slope(t), rtol=1e-9, atol=0)
    assert 0 < float(made.noise_std(made.start)) < math.inf and 2 <= float(made.start) <= steps
    for count in (1, 2, 7, steps // 2):
        grid = made.grid(count)
        assert len(grid) == count + 1 and grid[-1] == 0 and (grid.diff() < 0).all() and grid[0] <= steps
    below = torch.arange(1, steps + 1, dtype=torch.float64)
    smaller, larger = made.log_variances(below, below - 1)
    assert smaller.isfinite().all() and larger.isfinite().all() and (smaller[1:] <= larger[1:] + 1e-12).all()
    a, b, variance = made.posterior(below, below - 1)
    assert (variance >= 0).all() and a.isfinite().all() and b.isfinite().all()


# ---- objectives -------------------------------------------------------------------------------------------


@every("target", "schedule")
def test_target(target: str, schedule: str) -> None:
    """x0 and ε from x_t and the target; at T, where a target may say nothing of x0, x̂0 = 0."""
    made, steps = Schedule.make(small("schedule", schedule, steps=50)), 50
    asked = Target.make(small("target", target))
    t, x0, eps = column([1, steps / 2, steps], randn(0, 3, 1, 2, 2)), randn(0, 3, 1, 2, 2), randn(1, 3, 1, 2, 2)
    x_t = made.noisy(x0, eps, t)
    found = asked.invert(made, asked.of(made, x0, eps, t), x_t, t)
    torch.testing.assert_close(found[0], torch.where(asked.blind(made, t), 0.0, x0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], eps, rtol=0, atol=1e-9)
    assert not asked.blind(made, t)[:2].any()
    for value in (asked.input_scale(made, t), asked.simple_weight(made, t), *asked.coefficients(made, t)):
        assert value.dtype == torch.float64 and value.shape == t.shape and value.isfinite().all()


PARTS = ("target", "weighting", "variance", "matching")


def objectives() -> list[dict]:
    """All that can be composed, at the parameters' defaults."""
    found = []
    for parts in product(*(KNOWN[part] for part in PARTS)):
        names = dict(zip(PARTS, parts, strict=True))
        sources = {part: KNOWN[part][name] for part, name in names.items()}
        if not list(unmet(names, {part: source.attributes.get("needs") or {} for part, source in sources.items()})):
            found.append(names | {"modules": [file for source in sources.values() for file in source.modules]})
    return found


def loss_of(
    objective: Objective, schedule: Schedule, space: Space, weight: Tensor, x0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """The loss of every image under a network of one weight."""

    def answer(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        output = weight * x + column(log_snr, x).to(x.dtype) / 100
        return torch.cat([output, output.tanh()], dim=1) if objective.variance.heads == 2 else output

    return objective.loss(answer, schedule, x0, eps, t, NOTHING, space, lambda: torch.ones_like(x0))


@pytest.mark.parametrize("spec", objectives(), ids=lambda spec: "-".join(spec[part] for part in PARTS))
def test_objective(spec: dict) -> None:
    """At both ends of every schedule: one finite loss per image, whatever its batch, and a finite gradient."""
    objective = Objective.make(spec)
    for schedule, space in product(KNOWN["schedule"], (IMAGES, PLANE)):
        made = Schedule.make(small("schedule", schedule, steps=50))
        x0, eps = randn(0, 4, *space.shape).float().clamp(-1, 1), randn(1, 4, *space.shape).float()
        t, weight = column([1, 2, 49, 50], x0), torch.tensor(0.3, requires_grad=True)
        losses = partial(loss_of, objective, made, space, weight)
        together = losses(x0, eps, t)
        assert together.shape == (4,) and together.dtype == torch.float32 and together.isfinite().all(), schedule
        weights = objective.weight(made, t)
        assert weights.dtype == torch.float64 and weights.isfinite().all() and (weights >= 0).all(), schedule
        (gradient,) = torch.autograd.grad(together.sum(), weight)
        assert gradient.isfinite() and gradient != 0, schedule
        for image in (0, 3):
            one = slice(image, image + 1)
            torch.testing.assert_close(losses(x0[one], eps[one], t[one]), together[one], rtol=1e-5, atol=1e-9)


@every("times", "schedule")
def test_times(times: str, schedule: str) -> None:
    """Times in [1, T], positive weights of mean 1, before and after losses were learnt; a checkpoint holds it all."""
    made = Schedule.make(small("schedule", schedule, steps=50))
    u = torch.cat([torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), (torch.arange(20000).double() + 0.5) / 20000])
    draws, other = (Times.make(small("times", times)).on(made) for _ in range(2))
    for length in (0, 1000):
        at = torch.arange(length).double() % 50 + 1
        draws.learn(at, 1 + at.float())
        other.load({name: tensor.clone() for name, tensor in draws.state().items()})
        t, weight = draws.draw(u)
        assert t.dtype == weight.dtype == torch.float64 and t.shape == weight.shape == u.shape
        assert t.min() >= 1 and t.max() <= 50 and (weight > 0).all() and weight.isfinite().all()
        assert float(weight[2:].mean()) == pytest.approx(1, rel=1e-2)
        assert torch.equal(torch.stack(other.draw(u)), torch.stack((t, weight)))


# ---- samplers ---------------------------------------------------------------------------------------------


class Counting:
    """A network of every shape and head, the same to the bit in every batch, which counts the images it is given: of
    x̂0 = 0.3 x + y/4 and ε̂ = 0.8 x − y/4 it answers the target. And a classifier of noisy images."""

    classes, null = CLASSES, Network.null

    def __init__(self, objective: Objective, schedule: Schedule):
        self.objective, self.schedule, self.images, self.t = objective, schedule, 0, torch.zeros(())

    def __call__(self, x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
        assert x.dtype == log_snr.dtype == torch.float32 and log_snr.shape == (len(x),)
        assert x.isfinite().all() and log_snr.isfinite().all()
        self.images += len(x)
        label = 0.0 if condition.labels is None else column(condition.labels / 4, x).float()
        output = self.objective.target.of(self.schedule, 0.3 * x + label, 0.8 * x - label, self.t)
        return torch.cat([output, (0.2 * x).clamp(-1, 1)], 1) if self.objective.variance.heads == 2 else output

    def classify(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.images += len(x_t)
        return (x_t * column(y, x_t)).flatten(1).sum(1)


class Telling(Denoiser):
    """Tells such a network the time too."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        self.network.t = t
        return super().predict(x_t, t, condition)


def drawn(values: dict, space: Space, index: list[int], labels: Tensor | None) -> tuple[list[Tensor], int]:
    """x after every step of the images of this index, and the evaluations of the network that each cost."""
    objective, schedule = Objective.make(values["objective"]), Schedule.make(values["schedule"])
    network = Counting(objective, schedule)
    denoiser = Telling(network, objective, schedule, clip=space.clips)
    compares = "guide_network" in KNOWN["guidance"][values["guidance"]["method"]].parameters
    guided = Guidance.make(values["guidance"])(denoiser, denoiser if compares else network.classify)
    sampler, at = Sampler.make(values["sampler"]), torch.tensor(index)
    path = list(chain(guided, sampler, "contract", at, Condition(labels)[at], space.shape))
    assert len(path) == sampler.steps + 1
    for x in path:
        assert x.shape == (len(at), *space.shape) and x.dtype == torch.float32 and x.isfinite().all()
    assert guided.evaluated == network.images > 0 and guided.evaluated % len(at) == 0
    return path, guided.evaluated // len(at)


@every("sampler", "schedule")
def test_sampler(sampler: str, schedule: str) -> None:
    """Finite images of x's shape and type from every target, variance and guidance; their number of evaluations is the
    one counted; the same bytes twice, and in every batch (to its own tolerance where a solver has one).
    """
    asked = 0
    for target, variance, guidance in product(KNOWN["target"], KNOWN["variance"], KNOWN["guidance"]):
        parts = {"target": target, "variance": variance}
        modules = [file for part, name in parts.items() for file in KNOWN[part][name].modules]
        values = {
            "objective": parts | {"modules": modules},
            "schedule": small("schedule", schedule, steps=50),
            "guidance": small("guidance", guidance),
            "sampler": small("sampler", sampler),
        }
        if incompatibility(values):
            continue
        asked += 1
        declared = KNOWN["guidance"][guidance].attributes
        labelled = declared["guide"] or declared["labels"] == "conditional"
        labels = torch.tensor([0, 2, 1]) if labelled else None
        for space in (PLANE,) if labelled else (IMAGES, PLANE):  # labels may be lost where images are clipped
            path, nfe = drawn(values, space, [0, 1, 2], labels)
            alone, of_one = drawn(values, space, [2], labels)
            if tolerance := getattr(Sampler.make(values["sampler"]), "rtol", 0):
                again, _ = drawn(values, space, [0, 1, 2], labels)
                assert all(map(torch.equal, path, again)), values
                torch.testing.assert_close(alone[-1], path[-1][2:], rtol=10 * tolerance, atol=10 * tolerance)
            else:  # the same again, in another batch
                assert torch.equal(alone[-1], path[-1][2:]) and nfe == of_one, values
            if labelled:
                others, _ = drawn(values, space, [0, 1, 2], labels.flip(0))
                assert not torch.equal(others[-1], path[-1]), values
    if not asked:
        pytest.skip("the checks refuse this pair, whatever the objective")


# ---- networks ---------------------------------------------------------------------------------------------


@cache
def default() -> dict:
    return config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")


def accepts(network: str, dataset: str) -> bool:
    """Whether a configuration of both is right as far as the network is concerned."""
    method = {"method": network} | {k: v for k, v in small("network", network, 8).items() if k != "modules"}
    read = default() | {"methods": list(FILES), "network": method, "data": {"name": dataset}}
    try:
        config.check(read)
    except ConfigError as e:
        return not any(message.startswith("network") for message in e.messages)
    return True


@every("network", "dataset")
def test_network(network: str, dataset: str) -> None:
    """The output's shape and type, conditional and not; the same in every batch; every parameter has a part in it."""
    if KNOWN["network"][network].attributes["imported"]:
        pytest.skip("it is made of the user's own files")
    if KNOWN["network"][network].attributes.get("upsamples"):
        pytest.skip("it is shown another image beside x: tests/test_cascade.py")
    if not accepts(network, dataset):
        pytest.skip("the checks refuse this pair")
    shape, classes = (data := Dataset.make(small("dataset", dataset))).shape, data.classes
    for heads, count in product((1, 2), {0, classes if KNOWN["network"][network].attributes["labels"] else 0}):
        torch.manual_seed(0)
        made = networks.build(small("network", network, 8), shape, heads, count).eval()
        assert made.classes == count
        x, log_snr = randn(0, 4, *shape).float(), torch.tensor([-30.0, -1, 2, 30])
        untrained = made(x, log_snr, NOTHING)
        assert untrained.shape == (4, heads * shape[0], *shape[1:]) and untrained.dtype == torch.float32
        # Weights of which none is 0: those of the last layer may begin there.
        made = made.double()
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        x, log_snr = x.double(), log_snr.double()
        for condition in (NOTHING, *([Condition(torch.tensor([0, count - 1, 0, count]))] if count else ())):
            made.zero_grad()
            output = made(x, log_snr, condition)
            assert output.shape == untrained.shape and output.dtype == torch.float64 and output.isfinite().all()
            assert torch.equal(output, made(x, log_snr, condition))
            for image in range(4):
                one = slice(image, image + 1)
                alone = made(x[one], log_snr[one], condition[one])
                torch.testing.assert_close(alone, output[one], rtol=1e-9, atol=1e-9)
            assert not torch.equal(output, made(x, log_snr.flip(0), condition))
            if condition is not NOTHING:
                without, null = made(x, log_snr, NOTHING), made(x, log_snr, made.null(condition))
                assert not torch.equal(output[0], without[0]) and torch.equal(null, without)
                assert torch.equal(output[3], without[3]), "the label `classes` is the null"
            (output * randn(1, *output.shape)).sum().backward()
            idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
            assert not idle and all(p.grad.isfinite().all() for p in made.parameters())
