"""The `ode_likelihood` stage."""

import math

import torch

from ddpm import probability_flow, rng
from ddpm.condition import NOTHING
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.denoiser import Denoiser
from ddpm.pipeline.run import Outcome, Run
from ddpm.spaces import Space
from ddpm.stages.likelihood import images_table
from ddpm.stages.sample import load_denoiser

Tensor = torch.Tensor


def ode(
    denoiser: Denoiser, x0: Tensor, index: Tensor, key: int, space: Space, probes: int, rtol: float, atol: float
) -> Tensor:
    """−log2 p(x0)/D of every image under the probability flow, in bits/dim, (N,) (Song et al. 2021, section 4.3).

    p is the density of the flow at t = 1, the smallest noise level that a network is trained on. Discrete x are spread
    uniformly over their bins first (uniform dequantisation): with bins of width b, −log2 p/D − log2 b bounds the
    discrete bits/dim from above (Theis et al. 2016). `probes` vectors of random signs estimate the trace.
    Both are functions of `key` and the image's number `index[i]`.
    """
    shape, x, width = tuple(x0.shape[1:]), x0, space.width
    if width:
        x = x0 + width * (rng.uniform(key, index, 0, shape) - 0.5).to(x0.dtype)
    t = torch.ones((), dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for probe in range(probes):
        signs = (rng.uniform(key, index, 1 + probe, shape) < 0.5).to(x.dtype) * 2 - 1
        total += probability_flow.log_density(denoiser, x, t, NOTHING, signs, rtol, atol).double().cpu()
    return -total / (probes * x[0].numel() * math.log(2)) - (math.log2(width) if width else 0.0)


def evaluate(run: Run) -> Outcome:
    """The `ode_likelihood` stage: mean bits/dim over the test images with its standard error, the NFE and ς at t = 1.

    It is over images, dequantisation and probes (see `ddpm.stages.likelihood`); every image's own value lies beside the
    record.
    """
    settings, device = run.settings, run.device
    if (status := run.parent("weights")["status"]) != "ok":
        run.write("images", images_table({}))
        return status, {}
    dataset, denoiser = data.read(run.inputs["data"]), load_denoiser(run.parents["weights"], device)
    denoiser.clip = False  # the density of the network's own flow
    x0 = dataset.space.encode(reference(dataset, "test", settings["images"]))
    key = rng.key("ode likelihood", run.job["seed"])
    solver = settings["probes"], settings["rtol"], settings["atol"]
    # ---- what an interrupted job has already
    had, at = run.checkpoint.load() or ({"bits": torch.zeros(0, dtype=torch.float64)}, {"evaluated": 0})
    bits, denoiser.evaluated = had["bits"], at["evaluated"]
    # ---- the density of every image
    with run.progress(len(x0), "image", len(bits)) as progress:
        for start in range(len(bits), len(x0), settings["batch"]):
            index = torch.arange(start, min(start + settings["batch"], len(x0))).to(device)
            bits = torch.cat([bits, ode(denoiser, x0[index.cpu()].to(device), index, key, dataset.space, *solver)])
            progress.update(len(index))
            if run.checkpoint.due():
                run.checkpoint.save({"bits": bits}, {"at": len(bits), "evaluated": denoiser.evaluated})
    # ---- what is kept
    run.write("images", images_table({"bits_per_dim": bits}))
    if not bits.isfinite().all():
        return "diverged", {}
    return "ok", {
        "images": len(x0),
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std() / math.sqrt(len(x0))),
        "nfe": round(denoiser.evaluated / len(x0), 1),
        "level": float(denoiser.schedule.level(torch.ones((), dtype=torch.float64))),
    }
