"""−log p(x0) of test images in bits/dim: the variational bound, and the exact likelihood of the probability flow.

The two measure different models, the chain p(x_{t−1} | x_t) and the flow, and are never put in one column.
"""

import math

import torch
from tqdm import tqdm

from ddpm import data, flow, noise
from ddpm.bound import prior_term, vlb_term
from ddpm.checkpoint import SECONDS, Checkpoint
from ddpm.data import reference
from ddpm.denoiser import Denoiser
from ddpm.layout import Layout
from ddpm.provenance import Recorder, atomic, read_record
from ddpm.sampling import load_denoiser

Tensor = torch.Tensor


def stratified_times(u: Tensor, steps: int) -> Tensor:
    """One time in each of K equal strata of {2, …, T}, from u (…, K) in (0, 1); float64, of u's shape.

    Every t in 2 … T has the expected count K/(T − 1), so (T − 1)/K Σ L_{t−1} is unbiased for Σ_{t≥2} L_{t−1}.
    """
    count = u.shape[-1]
    position = (torch.arange(count, dtype=torch.float64) + u) * ((steps - 1) / count)
    return (2 + position.floor()).clamp(max=steps)


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x0: Tensor,
    index: Tensor,
    levels: int,
    times: int,
    large: bool,
    batch: int,
    progress: tqdm | None = None,
) -> dict[str, Tensor]:
    """The bound of every image in bits/dim and its three parts, each (N,), float64; `terms` (N, K) are those of `kl`.

    Σ_{t≥2} is exact where times ≥ T − 1, else a stratified draw of `times` terms per image; the decoder
    (t = 1) and the prior are always exact. ε of the image number `index[i]` at its k-th time is its own.
    """
    schedule, per_image = denoiser.schedule, x0[0].numel()
    key, exact = noise.key("likelihood"), times >= schedule.steps - 1
    count = schedule.steps - 1 if exact else times
    if exact:
        inner = torch.arange(2, schedule.steps + 1, dtype=torch.float64).expand(len(x0), -1)
    else:
        inner = stratified_times(noise.uniform(key, index.cpu(), 2**31, (count,)), schedule.steps)
    t = torch.cat([torch.ones(len(x0), 1, dtype=torch.float64), inner], dim=1)
    eps = noise.normal(key, index, 0, (1 + count, per_image)).reshape(len(x0), 1 + count, *x0.shape[1:])
    terms = []
    # All (image, time) pairs as one long list, so that every batch is full.
    pairs = torch.arange(t.numel())
    for chunk in pairs.split(batch):
        image, which = chunk // (1 + count), chunk % (1 + count)
        clean, at = x0[image], t[image, which].reshape(-1, *[1] * (x0.ndim - 1))
        x_t = schedule.noisy(clean, eps[image, which], at)
        prediction = denoiser(x_t, at)
        terms.append(vlb_term(schedule, clean, x_t, prediction.x0, prediction.v, at, levels, large).double().cpu())
        if progress is not None:
            progress.update(len(chunk))
    term = torch.cat(terms).reshape(len(x0), 1 + count) / math.log(2)
    decoder, kl = term[:, 0], term[:, 1:] * ((schedule.steps - 1) / count)
    prior = prior_term(schedule, x0.double()).cpu() / math.log(2)
    return {"bound": prior + kl.sum(1) + decoder, "prior": prior, "kl": kl.sum(1), "decoder": decoder, "terms": kl}


def terms_table(prior: float, decoder: float, terms: Tensor, steps: int) -> str:
    """The bound term by term as CSV: `bits_per_dim` is what the times `first` … `last` contribute on average.

    t = 1 is the decoder, T + 1 stands for the prior; terms (K,) are the KLs of K equal strata of 2 … T.
    """
    lines, width = ["term,first,last,bits_per_dim", f"decoder,1,1,{decoder:.9g}"], (steps - 1) / len(terms)
    for k, value in enumerate(terms.tolist()):
        first, last = 2 + math.floor(k * width), min(steps, 1 + math.ceil((k + 1) * width))
        lines.append(f"kl,{first},{last},{value:.9g}")
    return "\n".join([*lines, f"prior,{steps + 1},{steps + 1},{prior:.9g}"]) + "\n"


def evaluate(job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS) -> None:
    """The `likelihood` stage: mean bits/dim over the test images with its standard error, and its parts.

    The standard error is over images; with `times` < T it contains the noise of the draw as well. An interrupted job
    goes on with the images after those that its checkpoint holds.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    name, settings = job["name"], job["likelihood"]
    recorder, out = (
        Recorder("likelihood", job, code, layout.inputs("likelihood", name), device),
        layout.record("likelihood", name),
    )
    status = read_record(layout.record("train", name))["status"]
    if status != "ok":
        with atomic(layout.terms(name)) as temporary:
            temporary.write_text("term,first,last,bits_per_dim\n", encoding="utf-8")
        recorder.finish(out, [layout.terms(name)], status)
        return
    dataset, denoiser = data.read(layout.data), load_denoiser(layout, name, device)
    x0 = dataset.scale(reference(dataset, "test", settings["images"]))
    per_image = 1 + min(settings["times"], denoiser.schedule.steps - 1)
    checkpoint = Checkpoint(layout.checkpoint("likelihood", name), recorder, checkpoint_seconds)
    found = checkpoint.load()
    total: dict[str, Tensor] = {} if found is None else found[0]
    done = 0 if found is None else found[1]["at"]
    # Some thirty full batches at once: the unit of a resumed job, and small enough for its noise to fit.
    together = max(1, 32 * settings["batch"] // per_image)
    recorder.phase("bound")
    with tqdm(total=len(x0) * per_image, initial=done * per_image, desc=f"likelihood {name}", unit="eval") as progress:
        for start in range(done, len(x0), together):
            index = torch.arange(start, min(start + together, len(x0)))
            part = vlb(
                denoiser,
                x0[index].to(device),
                index.to(device),
                dataset.levels,
                settings["times"],
                settings["variance"] == "large",
                settings["batch"],
                progress,
            )
            total = {k: torch.cat([total[k], v]) if total else v for k, v in part.items()}
            if checkpoint.due():
                checkpoint.save(total, {"at": start + len(index)})
    terms, table = total.pop("terms").mean(0), layout.terms(name)
    result = {f"{k}_bits_per_dim": float(v.mean()) for k, v in total.items()}
    with atomic(table) as temporary:
        steps = denoiser.schedule.steps
        prior, decoder = result["prior_bits_per_dim"], result["decoder_bits_per_dim"]
        temporary.write_text(terms_table(prior, decoder, terms, steps), encoding="utf-8")
    if not total["bound"].isfinite().all():
        recorder.finish(out, [table], "diverged")
    else:
        result["standard_error"] = float(total["bound"].std() / math.sqrt(len(x0)))
        recorder.finish(out, [table], images=len(x0), times=per_image, **result)
    checkpoint.remove()


def ode(denoiser: Denoiser, x0: Tensor, index: Tensor, levels: int, probes: int, rtol: float, atol: float) -> Tensor:
    """−log2 p(x0)/D of every image under the probability flow, in bits/dim, (N,) (Song et al. 2021, section 4.3).

    p is the law of the flow at t = 1, the smallest noise level that a network is trained on. Grey levels are spread
    uniformly over their bins first (uniform dequantisation): with bins of width b, −log2 p/D − log2 b bounds the
    discrete bits/dim from above (Theis et al. 2016). `probes` vectors of random signs estimate the trace.
    """
    key, shape, x = noise.key("ode likelihood"), tuple(x0.shape[1:]), x0
    width = 2 / (levels - 1) if levels else 1.0
    if levels:
        x = x0 + width * (noise.uniform(key, index, 0, shape) - 0.5).to(x0.dtype)
    t = torch.ones((), dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for probe in range(probes):
        signs = (noise.uniform(key, index, 1 + probe, shape) < 0.5).to(x.dtype) * 2 - 1
        total += flow.log_density(denoiser, x, t, None, signs, rtol, atol).double().cpu()
    return -total / (probes * x[0].numel() * math.log(2)) - math.log2(width)


def evaluate_ode(
    job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS
) -> None:
    """The `ode_likelihood` stage: mean bits/dim over the test images with its standard error, the NFE and ς at t = 1.

    The standard error is over images and contains the noise of dequantisation and probes.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    name, settings = job["name"], job["ode_likelihood"]
    recorder = Recorder("ode_likelihood", job, code, layout.inputs("ode_likelihood", name), device)
    out = layout.record("ode_likelihood", name)
    status = read_record(layout.record("train", name))["status"]
    if status != "ok":
        recorder.finish(out, [], status)
        return
    dataset, denoiser = data.read(layout.data), load_denoiser(layout, name, device)
    denoiser.clip = False  # the density of the network's own flow
    x0 = dataset.scale(reference(dataset, "test", settings["images"]))
    checkpoint = Checkpoint(layout.checkpoint("ode_likelihood", name), recorder, checkpoint_seconds)
    found = checkpoint.load()
    bits = torch.zeros(0, dtype=torch.float64) if found is None else found[0]["bits"]
    denoiser.evaluated = 0 if found is None else found[1]["evaluated"]
    done = len(bits)
    with tqdm(total=len(x0), initial=done, desc=f"ODE likelihood {name}", unit="image") as progress:
        for start in range(done, len(x0), settings["batch"]):
            index = torch.arange(start, min(start + settings["batch"], len(x0))).to(device)
            solver = (settings["probes"], settings["rtol"], settings["atol"])
            bits = torch.cat([bits, ode(denoiser, x0[index.cpu()].to(device), index, dataset.levels, *solver)])
            progress.update(len(index))
            if checkpoint.due():
                checkpoint.save({"bits": bits}, {"at": len(bits), "evaluated": denoiser.evaluated})
    if not bits.isfinite().all():
        recorder.finish(out, [], "diverged")
    else:
        recorder.finish(
            out,
            [],
            images=len(x0),
            bits_per_dim=float(bits.mean()),
            standard_error=float(bits.std() / math.sqrt(len(x0))),
            nfe=round(denoiser.evaluated / len(x0), 1),
            level=float(denoiser.schedule.level(torch.ones((), dtype=torch.float64))),
        )
    checkpoint.remove()
