"""−log p(x0) of test images in bits/dim: the variational bound, and the likelihood of the probability flow.

The two measure different models, the chain p(x_{t−1} | x_t) and the flow, and are never put in one column.

What the standard error speaks of: images are drawn from the distribution of the data, and every one has its own noise
(ε, times, dequantisation, probes), so that the values of a network's images are independent and of one distribution.
Their standard deviation over √N is the standard error of their mean about the network's expected value on that
distribution; it contains both the images' spread and the noise of the draw. The noise depends on the image and the seed
and not on the objective or schedule: networks of one seed see the same noise on the same images, so that differences
between them are paired and small (ddpm/tables/paired.py), while seeds share nothing but the images.
"""

import math

import torch
from tqdm import tqdm

from ddpm import rng
from ddpm.bound import prior_term, vlb_term
from ddpm.compute import fitting
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.denoiser import Denoiser
from ddpm.pipeline.run import Outcome, Run
from ddpm.schedules import Schedule
from ddpm.spaces import Space
from ddpm.stages.sample import load_denoiser

Tensor = torch.Tensor
# Of the bound: L_T, Σ_{t≥2} L_{t−1} and L_0.
PARTS = ("prior", "kl", "decoder")


def time_shares(schedule: Schedule) -> Tensor:
    """q_2 … q_T, the share of the draws of every time, positive and of sum 1; float64, (T − 1,).

    q_t = 0.9 g_t/Σ g + 0.1/(T − 1) with g_t = (SNR_{t−1} − SNR_t)/(1 + SNR_t), which is twice the term L_{t−1} of the
    perfect denoiser of pixels of unit variance: L_{t−1} = ½ (SNR_{t−1} − SNR_t) E‖x0 − x̂0‖² (Kingma et al. 2021,
    eq. 13). Where q follows the terms, L_{t−1}/q_t hardly depends on t, and the draw adds little variance. The tenth
    that is spread evenly keeps L_{t−1}/q_t below ten times what even draws give, however wrong a network is at some
    time (defensive importance sampling; Hesterberg 1995).
    """
    t = torch.arange(1, schedule.steps + 1, dtype=torch.float64)
    snr = schedule.level(t) ** -2
    gain = (snr[:-1] - snr[1:]) / (1 + snr[1:])
    return 0.9 * gain / gain.sum() + 0.1 / (schedule.steps - 1)


def stratified_times(u: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """One time in each of K strata of {2, …, T} of equal share, from u (…, K) in (0, 1), and its weight 1/(K q_t).

    With Q the running sum of q, the k-th time is the smallest t with Q_t ≥ (k + u_k)/K: every t has the expected count
    K q_t, so that Σ_k L_{t_k − 1}/(K q_{t_k}) is unbiased for Σ_{t≥2} L_{t−1}. Both float64, of u's shape.
    """
    count = u.shape[-1]
    position = (torch.arange(count, dtype=torch.float64) + u) / count
    at = torch.searchsorted(share.cumsum(0), position).clamp(max=len(share) - 1)
    return (2 + at).double(), 1 / (count * share[at])


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x0: Tensor,
    index: Tensor,
    key: int,
    space: Space,
    times: int,
    large: bool,
    batch: int,
    progress: tqdm | None = None,
) -> dict[str, Tensor]:
    """The bound of every image in bits/dim and its three parts, each (N,), float64; `terms` (N, K) are those of `kl`.

    Σ_{t≥2} holds every term where times ≥ T − 1, else `times` weighted ones per image (`stratified_times`), whose
    expectation it is; the decoder (t = 1) and the prior are always there. ε of the image number `index[i]` at its k-th
    time is its own, and a function of `key`.
    """
    schedule, per_image = denoiser.schedule, x0[0].numel()
    count = min(times, schedule.steps - 1)
    if times >= schedule.steps - 1:
        inner = torch.arange(2, schedule.steps + 1, dtype=torch.float64).expand(len(x0), -1)
        weight = torch.ones_like(inner)
    else:
        u = rng.uniform(key, index.cpu(), 2**31, (count,))
        inner, weight = stratified_times(u, time_shares(schedule))
    t = torch.cat([torch.ones(len(x0), 1, dtype=torch.float64), inner], dim=1)
    eps = rng.normal(key, index, 0, (1 + count, per_image)).reshape(len(x0), 1 + count, *x0.shape[1:])
    terms = []
    # All (image, time) pairs as one long list, so that every batch is full.
    pairs = torch.arange(t.numel())
    for chunk in pairs.split(batch):
        image, which = chunk // (1 + count), chunk % (1 + count)
        at = t[image, which].reshape(-1, *[1] * (x0.ndim - 1))
        image, which = (index.to(x0.device, non_blocking=True) for index in (image, which))
        clean = x0[image]
        x_t = schedule.noisy(clean, eps[image, which], at)
        prediction = denoiser(x_t, at)
        terms.append(vlb_term(schedule, clean, x_t, prediction.x0, prediction.v, at, space, large).double())
        if progress is not None:
            progress.update(len(chunk))
    term = torch.cat(terms).cpu().reshape(len(x0), 1 + count) / math.log(2)
    decoder, kl = term[:, 0], term[:, 1:] * weight
    prior = prior_term(schedule, x0.double()).cpu() / math.log(2)
    return {"bound": prior + kl.sum(1) + decoder, "prior": prior, "kl": kl.sum(1), "decoder": decoder, "terms": kl}


def strata(schedule: Schedule, times: int) -> list[tuple[int, int]]:
    """The first and the last time of every stratum of `vlb`; single times where times ≥ T − 1."""
    if times >= schedule.steps - 1:
        return [(t, t) for t in range(2, schedule.steps + 1)]
    edge = torch.tensor([0.0, 1 - 2**-32], dtype=torch.float64)
    first, last = (stratified_times(u.expand(times), time_shares(schedule))[0].long().tolist() for u in edge)
    return list(zip(first, last, strict=True))


def terms_table(prior: float, decoder: float, terms: Tensor, ranges: list[tuple[int, int]], steps: int) -> str:
    """The bound term by term as CSV: `bits_per_dim` is what the times `first` … `last` contribute on average.

    t = 1 is the decoder, T + 1 stands for the prior; terms (K,) are the KLs of the strata `ranges` of 2 … T. Strata
    overlap where a boundary cuts a time, and a time of more than one stratum has several lines.
    """
    lines = ["term,first,last,bits_per_dim", f"decoder,1,1,{decoder:.9g}"]
    lines += [f"kl,{a},{b},{value:.9g}" for (a, b), value in zip(ranges, terms.tolist(), strict=True)]
    return "\n".join([*lines, f"prior,{steps + 1},{steps + 1},{prior:.9g}"]) + "\n"


def images_table(columns: dict[str, Tensor]) -> str:
    """One line per test image as CSV, in the order of `reference`: its number and its values, in bits/dim."""
    lines = ["image," + ",".join(columns)]
    for i, values in enumerate(zip(*(v.tolist() for v in columns.values()), strict=True)):
        lines.append(f"{i}," + ",".join(f"{v:.9g}" for v in values))
    return "\n".join(lines) + "\n"


def evaluate(run: Run) -> Outcome:
    """The `likelihood` stage: mean bits/dim over the test images with its standard error, and its parts.

    It is over images and the noise of the draw (see the module). The terms and every image's own bound lie beside the
    record. An interrupted job goes on with the images after those that its checkpoint holds.
    """
    settings, device = run.settings, run.device
    if (status := run.parent("weights")["status"]) != "ok":
        run.write("terms", "term,first,last,bits_per_dim\n")
        run.write("images", images_table({}))
        return status, {}
    dataset, denoiser = data.read(run.inputs["data"]), load_denoiser(run.parents["weights"], device)
    x0 = dataset.space.encode(reference(dataset, "test", settings["images"]))
    steps, key = denoiser.schedule.steps, rng.key("likelihood", run.job["seed"])
    per_image = 1 + min(settings["times"], steps - 1)
    # ---- what an interrupted job has already
    total, at = run.checkpoint.load() or ({}, {"at": 0})
    done, batch = at["at"], settings["batch"]
    # ---- the bound of every image
    run.phase("bound")
    with run.progress(len(x0) * per_image, "eval", done * per_image) as progress:

        def bound(size: int) -> dict[str, Tensor]:
            """Of the images, with their noise, of the next thirty or so full batches: the unit of a resumed job."""
            index = torch.arange(done, min(done + max(1, 32 * size // per_image), len(x0)))
            images, numbers, large = x0[index].to(device), index.to(device), settings["variance"] == "large"
            progress.n = done * per_image  # where an attempt has failed
            return vlb(denoiser, images, numbers, key, dataset.space, settings["times"], large, size, progress=progress)

        while done < len(x0):
            part, batch = fitting(batch, bound, "likelihood.batch")
            total = {k: torch.cat([total[k], v]) if total else v for k, v in part.items()}
            done += len(part["bound"])
            if run.checkpoint.due():
                run.checkpoint.save(total, {"at": done})
    # ---- what is kept
    terms = total.pop("terms").mean(0)
    result = {f"{k}_bits_per_dim": float(v.mean()) for k, v in total.items()}
    parts = result["prior_bits_per_dim"], result["decoder_bits_per_dim"]
    run.write("terms", terms_table(*parts, terms, strata(denoiser.schedule, settings["times"]), steps))
    # In an order of its own: that of a checkpoint's tensors is another one.
    run.write("images", images_table({"bits_per_dim": total["bound"]} | {k: total[k] for k in PARTS}))
    if not total["bound"].isfinite().all():
        return "diverged", {}
    result["standard_error"] = float(total["bound"].std() / math.sqrt(len(x0)))
    return "ok", {"images": len(x0), "times": per_image} | result
