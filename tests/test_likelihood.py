"""The numbers of the likelihood stages, computed again from the weights on disk with none of the stages' code.

The network, the schedule, the bound and the flow are written out here, in float64; of the package only the stored
data's order and the random numbers are used, which have tests of their own.
"""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import alpha_bar, betas
from safetensors.torch import load_file
from scipy.stats import norm

from ddpm import rng
from ddpm.pipeline import config, records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

torch.set_num_threads(1)

Tensor = torch.Tensor
Array = np.ndarray
ROOT = Path(__file__).parent.parent
STEPS, LEVELS, IMAGES = 100, 17, 12
SEED = 3
NETWORKS = {o: f"{o}/linear/unconditional/seed{SEED}" for o in ("eps", "learned")}


def configured(**sections: dict) -> Grid:
    """A tiny perceptron for ε, with fixed and with learned variance."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = {"method": "mlp", "width": 8, "depth": 1}
    read["grid"] = [
        {"objective": list(NETWORKS), "schedule": ["linear"], "guidance": ["none"], "sampler": ["ancestral"]}
    ]
    small = {
        "seeds": [SEED],
        "training": {"steps": 60, "batch": 32, "warmup": 2},
        "likelihood": {"images": IMAGES, "times": 7, "batch": 32},
        "ode_likelihood": {"images": 6, "batch": 4, "rtol": 1e-6, "atol": 1e-6},
    }
    return config.check(config.merge(config.merge(read, small), sections))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tree with data and both networks."""
    layout, grid = Layout(tmp_path_factory.mktemp("likelihood")), configured()
    for stage, name in dict.fromkeys(job for n in NETWORKS.values() for job in grid.needed("train", n)):
        execute(stage, *grid.job(stage, name), layout)
    return layout


def measured(stage: str, name: str, layout: Layout, **sections: dict) -> dict:
    """Run a stage; the numbers of its record."""
    execute(stage, *configured(**sections).job(stage, name), layout)
    record = records.read_record(layout.record(stage, name))
    assert record["status"] == "ok"
    return record["result"]


def clean(layout: Layout, count: int) -> Tensor:
    """The first test images in the stages' order, as x0 in [−1, 1], (N, 64): grey level k of 17 is k/8 − 1."""
    grey = load_file(layout.output("data"))["test_images"]
    order = rng.permutation(len(grey), "reference", "test")
    return grey[order][:count].double().flatten(1) / 8 - 1


def network(layout: Layout, name: str, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor | None]:
    """ε̂ and the variance's fraction of a perceptron of one block from its weights; x (B, 64), log SNR (B,)."""
    w = {k: v.double() for k, v in load_file(layout.output("train", name)).items()}

    def linear(of: str, h: Tensor) -> Tensor:
        return h @ w[f"{of}.weight"].T + w[f"{of}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    def normal(h: Tensor) -> Tensor:
        return (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    angle = log_snr[:, None] * torch.exp(torch.linspace(math.log(0.125), math.log(16), 32).double())
    c = linear("condition.layers.0", torch.cat([angle.sin(), angle.cos()], 1))
    c = silu(linear("condition.layers.2", silu(c)))
    h = linear("first", x)
    scale, shift = linear("blocks.0.condition", c).chunk(2, 1)
    inner = normal(h) * (1 + scale) + shift
    h = h + linear("blocks.0.outer", silu(linear("blocks.0.inner", inner)))
    out = linear("last", normal(h) * w["norm.weight"] + w["norm.bias"])
    return (out, None) if out.shape[1] == 64 else (out[:, :64], (out[:, 64:] + 1) / 2)


BAR, BETA = torch.from_numpy(alpha_bar("linear", STEPS)), torch.from_numpy(betas("linear", STEPS))


def term(layout: Layout, name: str, x0: Tensor, eps: Tensor, t: int, large: bool) -> Array:
    """L_{t−1} in nats per dimension, (N,), from β and ᾱ (Ho et al. 2020, eqs. 5–8 and 13)."""
    bar, before, beta = BAR[t], BAR[t - 1], BETA[t - 1]
    x = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    e, v = network(layout, name, x, (bar / (1 - bar)).log().expand(len(x)))
    guess = ((x - (1 - bar).sqrt() * e) / bar.sqrt()).clamp(-1, 1)
    tilde = BETA[1] * (1 - BAR[1]) / (1 - BAR[2]) if t == 1 else beta * (1 - before) / (1 - bar)
    var = (beta if large and t > 1 else tilde).expand_as(x) if v is None else beta**v * tilde ** (1 - v)
    if t == 1:
        std, width = var.sqrt().numpy(), 1 / (LEVELS - 1)
        at, mean = x0.numpy(), guess.numpy()
        upper = np.where(at > 0.99, np.inf, (at + width - mean) / std)
        lower = np.where(at < -0.99, -np.inf, (at - width - mean) / std)
        flip = lower > 0  # in the upper tail, where Φ is 1
        mass = np.where(flip, norm.cdf(-lower) - norm.cdf(-upper), norm.cdf(upper) - norm.cdf(lower))
        return -np.log(mass).mean(1)
    a = before.sqrt() * beta / (1 - bar)
    kl = 0.5 * ((var / tilde).log() + (tilde + (a * (x0 - guess)) ** 2) / var - 1)
    return kl.mean(1).numpy()


def expected_bound(layout: Layout, name: str, times: int, large: bool) -> tuple[dict[str, Array], list[Array]]:
    """Every image's parts in bits/dim, and its terms: `times` of 2 … T by their shares, or all of them."""
    x0, key, index = clean(layout, IMAGES), rng.key("likelihood", SEED), torch.arange(IMAGES)
    everything = times >= STEPS - 1
    count = STEPS - 1 if everything else times
    eps = rng.normal(key, index, 0, (1 + count, 64)).double()
    bar = BAR.numpy()[1:]
    snr = bar / (1 - bar)
    gain = (snr[:-1] - snr[1:]) * (1 - bar[1:])
    share = 0.9 * gain / gain.sum() + 0.1 / (STEPS - 1)
    u = rng.uniform(key, index, 2**31, (count,)).numpy()
    terms = np.zeros((count, IMAGES))
    for i, k in np.ndindex(IMAGES, count):
        t = 2 + k if everything else 2 + int((np.cumsum(share) <= (k + u[i, k]) / count).sum())
        weight = 1 if everything else 1 / (count * share[t - 2])
        one = slice(i, i + 1)
        terms[k, i] = weight * term(layout, name, x0[one], eps[one, 1 + k], t, large)[0] / math.log(2)
    prior = 0.5 * (BAR[-1] * x0**2 - BAR[-1] - (1 - BAR[-1]).log()).mean(1).numpy() / math.log(2)
    decoder = term(layout, name, x0, eps[:, 0], 1, large) / math.log(2)
    found = {"prior": prior, "kl": terms.sum(0), "decoder": decoder}
    return {"bits_per_dim": sum(found.values())} | found, list(terms)


@pytest.mark.parametrize("times", [7, STEPS])
@pytest.mark.parametrize(("objective", "variance"), [("eps", "small"), ("eps", "large"), ("learned", "small")])
def test_the_bound_from_the_weights(trained: Layout, objective: str, variance: str, times: int) -> None:
    """Every number of the record, every image's parts and every term; the test split, and the variance asked for."""
    name = NETWORKS[objective]
    found = measured("likelihood", name, trained, likelihood={"times": times, "variance": variance})
    each, terms = expected_bound(trained, name, times, variance == "large")
    close = {"rel": 1e-4, "abs": 1e-6}
    for part, values in each.items():
        key = "bound" if part == "bits_per_dim" else part
        assert found[f"{key}_bits_per_dim"] == pytest.approx(values.mean(), **close), part
    error = each["bits_per_dim"].std(ddof=1) / math.sqrt(IMAGES)
    assert found["standard_error"] == pytest.approx(error, rel=1e-3)
    assert (found["images"], found["times"]) == (IMAGES, min(times, STEPS - 1) + 1)
    assert len(found) == 7  # nothing in the record that is not looked at here

    images = pd.read_csv(trained.output("likelihood", name, "images"))
    assert list(images.columns) == ["image", "bits_per_dim", "prior", "kl", "decoder"]
    assert images["image"].tolist() == list(range(IMAGES))
    for part, values in each.items():
        np.testing.assert_allclose(images[part], values, rtol=1e-4, atol=1e-5, err_msg=part)

    table = pd.read_csv(trained.output("likelihood", name, "terms"))
    assert table["term"].tolist() == ["decoder"] + ["kl"] * len(terms) + ["prior"]
    expected = [each["decoder"].mean(), *(t.mean() for t in terms), each["prior"].mean()]
    np.testing.assert_allclose(table["bits_per_dim"], expected, rtol=1e-3, atol=1e-6)


def test_the_variances_differ(trained: Layout) -> None:
    """What the test above would not see if both were one: small and large differ by more than its tolerance."""
    name = NETWORKS["eps"]
    small, large = (expected_bound(trained, name, 7, large)[0]["bits_per_dim"].mean() for large in (False, True))
    assert abs(small - large) > 0.05 * small


def expected_flow(layout: Layout, name: str, rows: list[int], probes: int) -> Array:
    """−log2 p/D of dequantised images under dx/dt = f x + ½ g²/σ ε̂, in bits/dim: fixed steps of RK4 in ln(σ/α).

    In y = x/α and s = σ/α the flow is dy/ds = ε̂ (Song, Meng & Ermon 2021, eq. 14), and d log p(y)/ds = −∇·ε̂.
    """
    key, index = rng.key("ode likelihood", SEED), torch.tensor(rows)
    x0 = clean(layout, 1 + max(rows))[rows]
    x = x0 + (rng.uniform(key, index, 0, (64,)) - 0.5) / 8
    log_bar = (BAR / (1 - BAR)).log()[1:]

    def time_log_snr(ell: float) -> Tensor:
        return torch.full((len(rows),), -2 * ell, dtype=torch.float64)

    def slope(ell: float, y: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dℓ = s ε̂ and vᵀ ∂(s ε̂)/∂y v."""
        y = y.detach().requires_grad_()
        alpha = 1 / math.sqrt(1 + math.exp(2 * ell))
        out = math.exp(ell) * network(layout, name, alpha * y, time_log_snr(ell))[0]
        (product,) = torch.autograd.grad((out * signs).sum(), y)
        return out.detach(), (product * signs).sum(1)

    start, end, count, total = float(-log_bar[0] / 2), float(-log_bar[-1] / 2), 120, 0
    alpha_1, alpha_t = BAR[1].sqrt(), BAR[-1].sqrt()
    for probe in range(probes):
        signs = (rng.uniform(key, index, 1 + probe, (64,)) < 0.5).double() * 2 - 1
        y, trace, h = x / alpha_1, torch.zeros(len(rows)).double(), (end - start) / count
        for i in range(count):
            ell = start + i * h
            k1, d1 = slope(ell, y, signs)
            k2, d2 = slope(ell + h / 2, y + h / 2 * k1, signs)
            k3, d3 = slope(ell + h / 2, y + h / 2 * k2, signs)
            k4, d4 = slope(ell + h, y + h * k3, signs)
            y, trace = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), trace + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        log_prior = (-0.5 * (alpha_t * y) ** 2 - 0.5 * math.log(2 * math.pi)).sum(1)
        # log p(x_1) = log p(y_1) − D log α_1, log p(y_T) = log p(x_T) + D log α_T, and the trace between.
        total = total + log_prior + 64 * (alpha_t.log() - alpha_1.log()) + trace
    return (-total / (probes * 64 * math.log(2)) + math.log2(8)).numpy()


@pytest.mark.parametrize(("objective", "probes"), [("eps", 1), ("eps", 2), ("learned", 1)])
def test_the_flow_from_the_weights(trained: Layout, objective: str, probes: int) -> None:
    """Every image's bits/dim, their mean and its standard error, on the test split, without clipping."""
    name = NETWORKS[objective]
    found = measured("ode_likelihood", name, trained, ode_likelihood={"probes": probes})
    expected = expected_flow(trained, name, list(range(6)), probes)
    images = pd.read_csv(trained.output("ode_likelihood", name, "images"))
    assert list(images.columns) == ["image", "bits_per_dim"] and images["image"].tolist() == list(range(6))
    np.testing.assert_allclose(images["bits_per_dim"], expected, rtol=2e-4)
    assert found["bits_per_dim"] == pytest.approx(expected.mean(), rel=2e-4)
    assert found["standard_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(6), rel=5e-3)
    assert found["level"] == pytest.approx(float(((1 - BAR[1]) / BAR[1]).sqrt()), rel=1e-9)
    assert found["images"] == 6 and found["nfe"] > 20 * probes and len(found) == 5


def test_the_noise_is_of_the_seed_and_not_of_the_objective() -> None:
    """Jobs of one seed differ in the model alone, so that their images are paired; another seed's noise is another."""
    jobs = {
        name: configured(seeds=[3, 4]).job("likelihood", name)[0]
        for name in configured(seeds=[3, 4]).names["likelihood"]
    }
    assert {name: job["seed"] for name, job in jobs.items()} == {name: int(name[-1]) for name in jobs}


@pytest.mark.parametrize("how", ["whole", "training", "weights"])
@pytest.mark.parametrize("stage", ["likelihood", "ode_likelihood"])
def test_the_record_of_a_likelihood(trained: Layout, tmp_path: Path, stage: str, how: str) -> None:
    """It names what it read and wrote; where training diverged, or the bound is no number, there is no result."""
    shutil.copytree(trained.root, tmp_path / "results")
    layout, name = Layout(tmp_path / "results"), NETWORKS["learned"]
    if how == "training":
        record = records.read_record(layout.record("train", name)) | {"status": "diverged"}
        records.write_json(layout.record("train", name), record | {"digest": records.digest(record)})
    elif how == "weights":
        tensors = {k: v * torch.nan for k, v in load_file(layout.output("train", name)).items()}
        records.write_tensors(layout.output("train", name), tensors)
    execute(stage, *configured().job(stage, name), layout)
    record = records.read_record(layout.record(stage, name))
    assert (record["stage"], record["device"]) == (stage, "cpu")
    read = {"data": layout.output("data"), "weights": layout.output("train", name)}
    assert record["inputs"] == {of: records.sha256(path) for of, path in read.items()}
    written = {
        "likelihood": [layout.output("likelihood", name, "terms"), layout.output(stage, name, "images")],
        "ode_likelihood": [layout.output(stage, name, "images")],
    }[stage]
    assert record["outputs"] == {path.name: records.sha256(path) for path in written}
    assert (record["status"], bool(record["result"])) == (("ok", True) if how == "whole" else ("diverged", False))
    if how == "training":
        assert all(len(path.read_text(encoding="utf-8").splitlines()) == 1 for path in written)
        assert written[0].read_text(encoding="utf-8").startswith(("term,first,last,bits_per_dim\n", "image"))
    assert not layout.checkpoint(stage, name).exists()
