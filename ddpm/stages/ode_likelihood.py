"""The `ode_likelihood` stage."""

import math

import torch
from tqdm import tqdm

from ddpm import probability_flow, rng
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import reference
from ddpm.denoiser import Denoiser
from ddpm.pipeline.checkpoint import SECONDS, Checkpoint
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, read_record
from ddpm.stages.likelihood import write_images
from ddpm.stages.sample import load_denoiser

Tensor = torch.Tensor


def ode(
    denoiser: Denoiser, x0: Tensor, index: Tensor, key: int, levels: int, probes: int, rtol: float, atol: float
) -> Tensor:
    """−log2 p(x0)/D of every image under the probability flow, in bits/dim, (N,) (Song et al. 2021, section 4.3).

    p is the law of the flow at t = 1, the smallest noise level that a network is trained on. Grey levels are spread
    uniformly over their bins first (uniform dequantisation): with bins of width b, −log2 p/D − log2 b bounds the
    discrete bits/dim from above (Theis et al. 2016). `probes` vectors of random signs estimate the trace.
    Both are functions of `key` and the image's number `index[i]`.
    """
    shape, x = tuple(x0.shape[1:]), x0
    width = 2 / (levels - 1) if levels else 1.0
    if levels:
        x = x0 + width * (rng.uniform(key, index, 0, shape) - 0.5).to(x0.dtype)
    t = torch.ones((), dtype=torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64)
    for probe in range(probes):
        signs = (rng.uniform(key, index, 1 + probe, shape) < 0.5).to(x.dtype) * 2 - 1
        total += probability_flow.log_density(denoiser, x, t, None, signs, rtol, atol).double().cpu()
    return -total / (probes * x[0].numel() * math.log(2)) - math.log2(width)


def evaluate_ode(
    job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS
) -> None:
    """The `ode_likelihood` stage: mean bits/dim over the test images with its standard error, the NFE and ς at t = 1.

    It is over images, dequantisation and probes (see the module); every image's own value lies beside the record.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    name, settings = job["name"], job["ode_likelihood"]
    recorder = Recorder("ode_likelihood", job, code, layout.inputs("ode_likelihood", name), device)
    out, outputs = layout.record("ode_likelihood", name), layout.outputs("ode_likelihood", name)
    images, key = layout.images("ode_likelihood", name), rng.key("ode likelihood", job["seed"])
    status = read_record(layout.record("train", name))["status"]
    if status != "ok":
        write_images(images, {})
        recorder.finish(out, outputs, status)
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
            bits = torch.cat([bits, ode(denoiser, x0[index.cpu()].to(device), index, key, dataset.levels, *solver)])
            progress.update(len(index))
            if checkpoint.due():
                checkpoint.save({"bits": bits}, {"at": len(bits), "evaluated": denoiser.evaluated})
    write_images(images, {"bits_per_dim": bits})
    if not bits.isfinite().all():
        recorder.finish(out, outputs, "diverged")
    else:
        recorder.finish(
            out,
            outputs,
            images=len(x0),
            bits_per_dim=float(bits.mean()),
            standard_error=float(bits.std() / math.sqrt(len(x0))),
            nfe=round(denoiser.evaluated / len(x0), 1),
            level=float(denoiser.schedule.level(torch.ones((), dtype=torch.float64))),
        )
    checkpoint.remove()
