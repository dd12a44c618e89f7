"""The values of training, sampling and guide against an independent computation, from stored data to stored numbers.

Draws are stated by what they are for (`ddpm.rng`), everything else by the formulas: the loops here know nothing of
schedules, objectives, samplers and optimisers.
"""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import csv
import math
from collections import deque
from itertools import pairwise

import numpy as np
import pytest
import torch
from own_loops import BAR, BETA, CELL, MIXED, PLAIN, SMALL, Adam, Tensor, digits, grid, layout, seeded  # noqa: F401 - fixtures
from safetensors.torch import load_file
from torch import nn

from ddpm import networks, rng
from ddpm.condition import NOTHING, Condition
from ddpm.networks.classifier import NoisyClassifier
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)


# ---- train ------------------------------------------------------------------------------------------------


def bound_terms(x0: Tensor, mean: Tensor, log_var: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """L_{t−1} of every image in nats per dimension: KL(q ‖ p) of Gaussians, at t = 1 the mass of a level's bin."""
    before, found = BAR[t - 1], []
    for i, step in enumerate(t.tolist()):
        m, log_v = mean[i].double(), log_var[i].double()
        if step == 1:
            std = (log_v / 2).exp()
            cdf = torch.distributions.Normal(0.0, 1.0).cdf
            upper = torch.where(x0[i] > 0.99, 1.0, cdf((x0[i] + 1 / 16 - m) / std))
            lower = torch.where(x0[i] < -0.99, 0.0, cdf((x0[i] - 1 / 16 - m) / std))
            found.append(-(upper - lower).log().mean())
        else:
            beta, bar = BETA[step], BAR[step]
            exact = before[i].sqrt() * beta * x0[i] + (1 - beta).sqrt() * (1 - before[i]) * x_t[i]
            exact, var = exact / (1 - bar), beta * (1 - before[i]) / (1 - bar)
            found.append((0.5 * (log_v - var.log() - 1 + (var + (exact - m) ** 2) / log_v.exp())).mean())
    return torch.stack(found)


def mixed_loss(network: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """‖ε − ε̂‖² + λ T L_vlb in bits, with log Σ = v log β + (1 − v) log β̃ and the mean held fixed in L_vlb."""
    bar, beta = BAR[t].reshape(-1, 1, 1, 1), BETA[t].reshape(-1, 1, 1, 1)
    # β̃_1 = 0 counts as β̃_2.
    small = beta * (1 - BAR[t - 1].reshape(-1, 1, 1, 1)) / (1 - bar)
    small = torch.where(small == 0, BETA[2] * (1 - BAR[1]) / (1 - BAR[2]), small)
    x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    y_hat, v = network(x_t.float(), (bar / (1 - bar)).log().flatten().float(), Condition(y)).double().chunk(2, dim=1)
    log_var = (1 + v) / 2 * beta.log() + (1 - v) / 2 * small.log()
    fixed = y_hat.detach()
    mean = (x_t - beta / (1 - bar).sqrt() * fixed) / (1 - beta).sqrt()
    squares = ((eps - y_hat) ** 2).flatten(1).mean(1)
    return squares + 0.05 * 4 / math.log(2) * bound_terms(x0, mean, log_var, x_t, t)


def v_loss(network: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, y: None) -> Tensor:
    """‖v − v̂‖² with v = α ε − σ x0."""
    bar = BAR[t].reshape(-1, 1, 1, 1)
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    answer = network((alpha * x0 + sigma * eps).float(), (bar / (1 - bar)).log().flatten().float()).double()
    return ((alpha * eps - sigma * x0 - answer) ** 2).flatten(1).mean(1)


@pytest.mark.parametrize("name", [MIXED, PLAIN])
def test_training_is_an_own_loop(layout: Layout, digits: dict[str, Tensor], name: str) -> None:
    """Draws, loss, importance, clipping, Adam, rate and average restated: the same weights, the same curve.

    Of the mixed network the gradient is clipped in every step, a third of the labels is dropped, times are drawn by
    importance as soon as every t has ten losses, and the average's warm-up ends within the run.
    """
    mixed, steps, size = name == MIXED, 12, 24
    job, code = grid().job("train", name)
    execute("train", job, code, layout)
    stored = load_file(layout.output("train", name))

    seeded("weights", name)
    network = networks.build(SMALL, (1, 8, 8), 2 if mixed else 1, 10 if mixed else 0)
    images, labels, key = digits["train_images"], digits["train_labels"], rng.key("training", name)
    order = torch.cat([rng.permutation(len(images), "order", name, epoch) for epoch in range(2)])
    optimiser, average, curve, norms, weights_seen = Adam(network, beta2=0.99), None, [], [], []
    last = {t: deque(maxlen=10) for t in range(1, 5)}
    for step in range(steps):
        index, place = order[step * size : (step + 1) * size], torch.arange(size)
        eps = rng.normal(key, place, 2 * step, (1, 8, 8)).double()
        u = rng.uniform(key, place, 2 * step + 1, (2,))
        spread = (u[0, 0] + place / size) % 1
        p = torch.full((4,), 0.25, dtype=torch.float64)
        if mixed and all(len(values) == 10 for values in last.values()):
            p = torch.tensor([math.sqrt(sum(x * x for x in last[t]) / 10) for t in range(1, 5)], dtype=torch.float64)
            p = 0.999 * p / p.sum() + 0.001 / 4
        edges = p.cumsum(0)
        t = torch.tensor([1 + sum(float(edge) < float(x) for edge in edges[:-1]) for x in spread])
        weight = 1 / (4 * p[t - 1])
        weights_seen.append(weight)
        y = torch.where(u[:, 1] < 0.3, 10, labels[index]) if mixed else None
        losses = (mixed_loss if mixed else v_loss)(network, images[index], eps, t, y)
        for i, k in enumerate(t.tolist()):
            last[k].append(float(losses[i].detach()))
        loss = (weight * losses).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        scale = min(1.0, 0.15 / (norms[-1] + 1e-6))
        rate = 0.01 * min(1, (step + 1) / 3) * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.step([scale * g for g in gradients], rate)
        now = [p.detach().clone() for p in network.parameters()]
        d = min(0.4, (1 + step) / (10 + step))
        average = now if average is None else [d * a + (1 - d) * b for a, b in zip(average, now, strict=True)]
        curve.append((step + 1, (step + 1) * size, rate, float(loss.detach())))

    assert min(norms) > 0.15 and max(norms) / min(norms) > 1.1
    assert float((weights_seen[-1] - 1).abs().max()) > 0.1 if mixed else bool((weights_seen[-1] == 1).all())
    names = [name for name, _ in network.named_parameters()]
    assert stored.keys() == set(names)
    for parameter, expected in zip(names, average, strict=True):
        error = (stored[parameter] - expected).abs()
        assert float(error.max()) < 2e-6 and float(error.mean()) < 1e-7, parameter
    with layout.output("train", name, "loss").open() as f:
        rows = [tuple(map(float, row)) for row in list(csv.reader(f))[1:]]
    np.testing.assert_allclose(rows, curve, rtol=2e-6)


# ---- sample -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [CELL, "v/short/none/steps/seed0", "v/short/none/ddim/seed0"])
def test_sampling_is_an_own_loop(layout: Layout, cell: str) -> None:
    """x_T and every z by image, guidance, clipping, the posterior's mean and noise, rounding, and labels permuted."""
    guided, chain = "/cfg/" in cell, "/steps/" in cell
    name = f"v/short/{'conditional' if guided else 'unconditional'}/seed0"
    execute("train", *grid().job("train", name), layout)
    execute("sample", *grid().job("sample", cell), layout)
    found = load_file(layout.output("sample", cell))

    network = networks.build(SMALL, (1, 8, 8), 1, 10 if guided else 0)
    network.load_state_dict(load_file(layout.output("train", name)))
    index, key = torch.arange(50), rng.key("sampling", name)
    stored = load_file(layout.output("data"))
    known = stored["train_labels"]
    # In proportion: 50 · n_c/n, rounded down, and one more where the remainders are largest.
    share = 50 * known.bincount().double() / len(known)
    whole = share.floor()
    whole[(share - whole).topk(50 - int(whole.sum())).indices] += 1
    labels = torch.tensor([c for c in range(10) for _ in range(int(whole[c]))])
    labels = labels[rng.permutation(50, "labels", name)]
    x = rng.normal(key, index, 0, (1, 8, 8)).double()
    times = [4, 3, 2, 1, 0] if chain else [4, 2, 0]
    for draw, (t, s) in enumerate(pairwise(times), start=1):
        bar, before = BAR[t], BAR[s]
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()

        def clean(condition: Condition, x: Tensor = x, bar: Tensor = bar) -> Tensor:
            with torch.no_grad():
                v = network(x.float(), (bar / (1 - bar)).log().float().expand(50), condition).double()
            return bar.sqrt() * x - (1 - bar).sqrt() * v

        x0 = (
            2.5 * clean(Condition(labels)) - 1.5 * clean(Condition(torch.full((50,), 10))) if guided else clean(NOTHING)
        )
        x0 = x0.clamp(-1, 1)
        if chain:
            beta = 1 - bar / before
            mean = before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x
            x = mean / (1 - bar)
            if s > 0:
                x = x + beta.sqrt() * rng.normal(key, index, draw, (1, 8, 8)).double()
        else:
            x = before.sqrt() * x0 + (1 - before).sqrt() * (x - alpha * x0) / sigma
    exact = (x + 1) * 8
    expected = exact.round().clamp(0, 16)
    doubtful = ((exact - exact.floor()) - 0.5).abs() < 1e-3
    assert doubtful.double().mean() < 0.01
    assert torch.equal(found["images"].double()[~doubtful], expected[~doubtful])
    assert found["images"].dtype == torch.uint8 and len(found["images"].unique()) > 10
    if guided:
        assert torch.equal(found["labels"], labels) and not torch.equal(labels, known[:50])
    else:
        assert "labels" not in found
    result = records.read_record(layout.record("sample", cell))["result"]
    # Clipped, every image reaches the bounds; E‖x − E x‖² of grey levels, as a multiple of the training split's.
    spread = [images.double().var(0, correction=0).sum() for images in (found["images"], stored["train_images"])]
    assert result.pop("spread") == pytest.approx(float(spread[0] / spread[1]), rel=1e-6)
    assert result.pop("reach") == pytest.approx(float(x.abs().max()), rel=1e-5)
    assert result.pop("compute") == {"precision": "float32", "compiled": False, "images_at_once": 32}
    assert result == {"images": 50, "steps": 4 if chain else 2, "nfe": (8 if guided else 4) if chain else 2}


# ---- guide ------------------------------------------------------------------------------------------------


def test_the_guide_is_an_own_loop(layout: Layout, digits: dict[str, Tensor]) -> None:
    """Cross-entropy on x_t at t uniform on 1 … T, Adam with half a cosine of rates; its accuracy by noise level."""
    name = "short/seed0"
    execute("guide", *grid().job("guide", name), layout)
    stored = load_file(layout.output("guide", name))
    seeded("guide weights", name)
    network = NoisyClassifier((1, 8, 8), 10, 16)
    images, labels, key = digits["train_images"], digits["train_labels"], rng.key("guide", name)

    def answers(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        bar = BAR[t].reshape(-1, 1, 1, 1)
        x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
        return network(x_t.float(), (bar / (1 - bar)).log().flatten().float())

    optimiser, seen = Adam(network, beta2=0.999), set()
    for step in range(6):
        u = rng.uniform(key, torch.arange(20), 2 * step, (2,))
        index, t = (u[:, 0] * len(images)).long(), 1 + (4 * u[:, 1]).long()
        eps = rng.normal(key, torch.arange(20), 2 * step + 1, (1, 8, 8)).double()
        log_p = answers(images[index], eps, t).log_softmax(1)
        loss = -log_p[torch.arange(20), labels[index]].mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        optimiser.step(list(gradients), 0.01 * (1 + math.cos(math.pi * step / 6)) / 2)
        seen |= set(t.tolist())
    assert seen == {1, 2, 3, 4}
    for parameter, expected in network.state_dict().items():
        # Adam makes much of a gradient that is almost zero, and so of its rounding.
        error = (stored[parameter] - expected).abs()
        assert float(error.max()) < 1e-4 and float(error.mean()) < 1e-6, parameter

    eps = rng.normal(rng.key("guide test"), torch.arange(len(digits["test_images"])), 0, (1, 8, 8)).double()
    found = records.read_record(layout.record("guide", name))["result"]["accuracy_by_time"]
    network.load_state_dict(stored)
    for part, t in (("0.0", 1), ("0.25", 1), ("0.5", 2), ("0.75", 3), ("1.0", 4)):
        at = torch.full((len(eps),), t)
        right = answers(digits["test_images"], eps, at).argmax(1) == digits["test_labels"]
        assert found[part] == pytest.approx(float(right.double().mean()), abs=2.5 / len(right))


def test_a_job_rounds_no_float32(layout: Layout) -> None:
    """To TF32, on a GPU: whatever was set before."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    execute("train", *grid().job("train", PLAIN), layout)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
