"""Guidance on two classes of Gaussian images whose conditional and unconditional scores are exact."""

import math

import pytest
import torch
from oracles import SCHEDULES, ClassDenoiser, GaussianDenoiser, alpha_bar, log_normal, randn, time

from ddpm.condition import NOTHING, Condition
from ddpm.guidance import Autoguidance, ClassifierFree, Guidance, IntervalClassifierFree, Unguided
from ddpm.samplers import DDIM

Tensor = torch.Tensor
WEIGHTS, MEANS, STDS = (0.4, 0.6), (-0.5, 0.7), (0.3, 0.2)
LABELS = torch.tensor([0, 1, 1])
GIVEN = Condition(LABELS)
TIMES = [3, 400, 950]


def exact(name: str = "linear", v: tuple[float, ...] | None = None) -> ClassDenoiser:
    return ClassDenoiser(SCHEDULES[name](), WEIGHTS, MEANS, STDS, v)


def scores(name: str, x: Tensor, t: int, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """∇ log q(x_t | y), ∇ log q(x_t) and ∇ log q(y | x_t) of every pixel, by autograd through the densities."""
    bar, x = alpha_bar(name)[t], x.detach().requires_grad_()
    joint = torch.stack(
        [
            math.log(w) + log_normal(x, math.sqrt(bar) * m, bar * c**2 + 1 - bar)
            for w, m, c in zip(WEIGHTS, MEANS, STDS, strict=True)
        ]
    )
    logs = (joint[label], joint.logsumexp(0), joint.log_softmax(0)[label])
    conditional, unconditional, classifier = (torch.autograd.grad(f.sum(), x, retain_graph=True)[0] for f in logs)
    return conditional, unconditional, classifier


def guided_scores(name: str, weight: float, x: Tensor) -> list[Tensor]:
    """−ε̂/σ of the guided denoiser, image i at TIMES[i] with label LABELS[i]."""
    prediction = ClassifierFree(weight=weight)(exact(name))(x, time(*TIMES), GIVEN)
    return [-e / math.sqrt(1 - alpha_bar(name)[t]) for e, t in zip(prediction.eps, TIMES, strict=True)]


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("weight", [-1.0, -0.5, 0.0, 1.0, 5.0])
def test_guided_score(weight: float, name: str) -> None:
    """000, "Classifier free guidance": (1 + w) ∇ log p(x | y) − w ∇ log p(x)."""
    x = randn(0, 3, 1, 2, 2)
    for i, score in enumerate(guided_scores(name, weight, x)):
        conditional, unconditional, _ = scores(name, x[i], TIMES[i], int(LABELS[i]))
        torch.testing.assert_close(score, (1 + weight) * conditional - weight * unconditional, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0, 5.0])
def test_conventions_of_the_documents(weight: float) -> None:
    """003, eq. 40 (ω = 1 + w); 001, eq. 4.30 (γ = 1 + w); and by Bayes' rule 001, eq. 4.25: s(x) + γ ∇ log p(y | x)."""
    x, factor = randn(1, 3, 1, 2, 2), 1 + weight
    for i, score in enumerate(guided_scores("linear", weight, x)):
        conditional, unconditional, classifier = scores("linear", x[i], TIMES[i], int(LABELS[i]))
        for expected in (
            factor * (conditional - unconditional) + unconditional,
            factor * conditional + (1 - factor) * unconditional,
            unconditional + factor * classifier,
        ):
            torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [-0.5, 1.0, 5.0])
def test_guided_noise_and_clean_image(weight: float) -> None:
    """003, eq. 42: the same combination holds for ε̂, and for x̂0, because the weights sum to 1."""
    x, denoiser = randn(2, 3, 1, 2, 2), exact()
    guided = ClassifierFree(weight=weight)(denoiser)(x, time(*TIMES), GIVEN)
    conditional = denoiser(x, time(*TIMES), GIVEN)
    unconditional = denoiser(x, time(*TIMES), Condition(torch.full_like(LABELS, 2)))
    for part in ("x0", "eps"):
        with_label, without = getattr(conditional, part), getattr(unconditional, part)
        torch.testing.assert_close(
            getattr(guided, part), without + (1 + weight) * (with_label - without), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize(
    ("weight", "evaluations", "batches"), [(-1.0, 1, [3]), (0.0, 1, [3]), (-0.5, 2, [6]), (1.0, 2, [6]), (5.0, 2, [6])]
)
@pytest.mark.parametrize("single", [False, True])
def test_one_batch(weight: float, evaluations: int, batches: list[int], single: bool) -> None:
    """Condition and null run as one batch, and a branch without weight not at all."""
    denoiser = exact()
    guided = ClassifierFree(weight=weight)(denoiser)
    guided(randn(3, 3, 1, 2, 2), time(400) if single else time(*TIMES), GIVEN)
    assert guided.evaluations == evaluations
    assert denoiser.batches == batches


def test_evaluations_multiply() -> None:
    """A denoiser that itself needs two evaluations per call needs four under guidance."""
    denoiser = exact()
    denoiser.evaluations = 2
    assert ClassifierFree(weight=1.0)(denoiser).evaluations == 4
    assert ClassifierFree(weight=0.0)(denoiser).evaluations == 2
    assert Unguided()(denoiser).evaluations == 2


def test_single_time_equals_one_time_per_image() -> None:
    """A scalar time means the same as that time for every image."""
    x, guided = randn(4, 3, 1, 2, 2), ClassifierFree(weight=2.0)(exact())
    one, many = guided(x, time(400), GIVEN), guided(x, time(400, 400, 400), GIVEN)
    torch.testing.assert_close(one.x0, many.x0, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, (0.2, 0.6)), (0.0, (0.2, 0.6)), (-1.0, (0.9, 0.9))])
def test_learned_variance_is_the_conditional_one(weight: float, expected: tuple[float, float]) -> None:
    """v comes from the branch with the label, or from the only one that ran."""
    prediction = ClassifierFree(weight=weight)(exact(v=(0.2, 0.6, 0.9)))(randn(5, 3, 1, 2, 2), time(400), GIVEN)
    assert prediction.v.shape == (3, 1, 2, 2)
    for i, label in enumerate(LABELS.tolist()):
        assert (prediction.v[i] == expected[label]).all()


def test_clipping_comes_after_guidance() -> None:
    """The guided x̂0 is clipped, not its branches, and ε̂ derived from it."""
    denoiser = exact()
    denoiser.clip = True
    x = 2 * randn(6, 3, 1, 2, 2)
    guided = ClassifierFree(weight=5.0)(denoiser)
    free = ClassifierFree(weight=5.0)(exact())(x, time(*TIMES), GIVEN).x0
    prediction = guided(x, time(*TIMES), GIVEN)
    assert ((free.abs() > 1).any()) and guided.clip
    assert torch.equal(prediction.x0, free.clamp(-1, 1))
    bar = torch.from_numpy(alpha_bar("linear")[TIMES]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        bar.sqrt() * prediction.x0 + (1 - bar).sqrt() * prediction.eps, x, rtol=1e-10, atol=1e-10
    )


def test_unguided_ignores_labels() -> None:
    """`none` asks its network without any label."""
    seen = []
    denoiser = exact()
    denoiser.predict = lambda x, t, condition: (seen.append(condition), (x, None))[1]
    Unguided()(denoiser)(randn(7, 3, 1, 2, 2), time(400), GIVEN)
    assert seen == [NOTHING]


def test_samplers_inherit_guidance() -> None:
    """A guided denoiser goes through a sampler; w = 0 ends in its class, where DDIM is affine in closed form."""
    x, steps = randn(8, 3, 1, 2, 2), 20
    *_, x0 = DDIM(steps=steps).trajectory(ClassifierFree(weight=0.0)(exact()), x, GIVEN, None)
    bar = alpha_bar("linear")
    for i, label in enumerate(LABELS.tolist()):
        slope, var = 1.0, STDS[label] ** 2
        for t, s in zip(range(1000, 0, -50), range(950, -1, -50), strict=True):
            cross = math.sqrt(bar[s] * bar[t]) * var + math.sqrt((1 - bar[s]) * (1 - bar[t]))
            slope *= cross / (bar[t] * var + 1 - bar[t])
        expected = MEANS[label] + slope * (x[i] - math.sqrt(bar[-1]) * MEANS[label])
        torch.testing.assert_close(x0[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", [-1.01, -5.0, math.nan])
def test_weight_below_minus_one(weight: float) -> None:
    """Less than the unconditional model is refused, and so is no number."""
    right = "a finite number" if math.isnan(weight) else "at least -1"
    with pytest.raises(ValueError, match=f"weight: {weight}; it must be {right}"):
        Guidance.make({"method": "cfg", "weight": weight})


def test_no_guidance_is_the_network_without_labels() -> None:
    """At its own time, whatever labels are given."""
    denoiser, x = GaussianDenoiser(SCHEDULES["linear"](), 0.3, 0.5), randn(40, 3, 1, 2, 2)
    for t in (time(20), time(700), time(20, 300, 700)):
        found = Guidance.make({"method": "none"})(denoiser)(x, t, Condition(torch.tensor([1, 2, 0])))
        assert torch.equal(found.x0, denoiser(x, t).x0) and torch.equal(found.eps, denoiser(x, t).eps)


# ---- guidance in an interval --------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [False, True])
def test_guidance_in_an_interval(single: bool) -> None:
    """Kynkäänniemi et al. 2024: σ_lo < σ/α ≤ σ_hi is guided as everywhere else is conditional; both ends by their
    comparison. Several times in one batch are told apart, and where none is inside there is one evaluation."""
    denoiser, x, at = exact(), randn(41, 3, 1, 2, 2), (100, 400, 700)
    low, middle, high = (float(denoiser.schedule.level(time(t))) for t in at)
    for limits, inside in (
        ((0.0, 1e9), (1, 1, 1)),
        ((low, high), (0, 1, 1)),
        ((low, middle), (0, 1, 0)),
        ((low * 0.999, middle * 0.999), (1, 0, 0)),
        ((high, math.inf), (0, 0, 0)),
    ):
        guidance = IntervalClassifierFree(weight=1.3, level_min=limits[0], level_max=limits[1])
        plain, full = Guidance.make({"method": "cfg", "weight": 0.0}), ClassifierFree(weight=1.3)
        for rows in [[0], [1], [2]] if single else [[0, 1, 2]]:
            t = time(*(at[i] for i in rows))
            given, images = Condition(LABELS[rows]), x[rows]
            denoiser.batches.clear()
            guided = guidance(denoiser)
            found = guided(images, t, given).x0
            asked = any(inside[i] for i in rows)
            assert denoiser.batches == [2 * len(rows) if asked else len(rows)] and guided.evaluated == sum(
                denoiser.batches
            )
            for i, place in enumerate(rows):
                expected = (full if inside[place] else plain)(denoiser)(images, t, given).x0[i]
                torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)


def test_evaluations_in_an_interval() -> None:
    """What a sampler's run costs: two where σ/α is inside, one elsewhere; without weight one everywhere."""
    denoiser, x = exact(), randn(42, 3, 1, 2, 2)
    times = DDIM(steps=20).times(denoiser.schedule)[:-1]
    inside = int(((denoiser.schedule.level(times) > 0.3) & (denoiser.schedule.level(times) <= 3.0)).sum())
    for weight, expected in ((2.0, 20 + inside), (0.0, 20)):
        guided = IntervalClassifierFree(weight=weight, level_min=0.3, level_max=3.0)(denoiser)
        list(DDIM(steps=20).trajectory(guided, x, GIVEN, None))
        assert guided.evaluated == 3 * expected and 3 < inside < 17


def test_an_interval_that_holds_nothing() -> None:
    with pytest.raises(ValueError, match=r"level_min: 3\.0; it must be below level_max, 3\.0"):
        Guidance.make({"method": "interval-cfg", "level_min": 3.0, "level_max": 3.0})


# ---- autoguidance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.0])
def test_autoguidance(weight: float) -> None:
    """Karras et al. 2024a: D_0 + w′ (D_1 − D_0) with their w′ = 1 + w, at one time and at several; with the label for
    both, and the better one's variance. D_0 knows wider classes."""
    better, worse = (
        exact(v=(0.2, 0.6, 0.9)),
        ClassDenoiser(SCHEDULES["linear"](), WEIGHTS, MEANS, (0.5, 0.6), (0.1,) * 3),
    )
    guided, x = Autoguidance(guide_network="small", weight=weight)(better, worse), randn(43, 3, 1, 2, 2)
    for t in (time(400), time(*TIMES)):
        found, one, two = guided(x, t, GIVEN), better(x, t, GIVEN), worse(x, t, GIVEN)
        torch.testing.assert_close(found.x0, two.x0 + (1 + weight) * (one.x0 - two.x0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.eps, two.eps + (1 + weight) * (one.eps - two.eps), rtol=1e-8, atol=1e-8)
        assert torch.equal(found.v, one.v)
    assert guided.evaluated == 2 * 3 * (2 if weight else 1)


def test_autoguidance_sharpens() -> None:
    """Where D_0 is wider than D_1, every guided score points further inwards: DDIM ends nearer to the class's mean."""
    better = GaussianDenoiser(SCHEDULES["linear"](), 0.2, 0.3)
    worse, x = GaussianDenoiser(SCHEDULES["linear"](), 0.2, 0.5), randn(44, 3, 1, 2, 2)
    ends = [
        list(DDIM(steps=50).trajectory(Autoguidance(weight=w)(better, worse), x, GIVEN, None))[-1] for w in (0.0, 1.0)
    ]
    assert ((ends[1] - 0.2).abs() < (ends[0] - 0.2).abs()).all()


def test_autoguidance_needs_labels_and_a_denoiser() -> None:
    for by, given in ((None, GIVEN), (lambda *_: None, GIVEN), (exact(), NOTHING)):
        with pytest.raises(ValueError, match="autoguidance: it needs labels, and a worse denoiser to be guided by"):
            Autoguidance()(exact(), by)(randn(45, 3, 1, 2, 2), time(400), given)


def test_labels_play_a_part_unless_the_weight_says_otherwise() -> None:
    """A guidance without a weight steers; one with a weight at which it does not says which."""

    class Plain(Guidance):
        method = "plain"
        labels = "conditional"

    assert Plain().steers and ClassifierFree(weight=0.0).steers and not ClassifierFree(weight=-1.0).steers
