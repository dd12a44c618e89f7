"""Sampling of one cell: every image's noise is a function of its network's name and its index alone."""

from collections.abc import Iterator
from itertools import count

import torch
from tqdm import tqdm

from ddpm import networks, rng
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data, proportional
from ddpm.denoiser import Denoiser
from ddpm.guidance import Guidance
from ddpm.objectives import Objective
from ddpm.pipeline.checkpoint import SECONDS, Checkpoint
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, read_record, read_tensors, write_tensors
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.stages import guide

Tensor = torch.Tensor


def load_denoiser(layout: Layout, name: str, device: str = "cpu") -> Denoiser:
    """The trained network `name` as a denoiser; x̂0 is clipped to the range of grey levels, where the data have one."""
    record = read_record(layout.record("train", name))
    job, result = record["job"], record["result"]
    objective, schedule = Objective(**job["objective"]), Schedule.make(job["schedule"])
    heads, classes = 2 if objective.learns_variance else 1, result["classes"] if job["conditional"] else 0
    network = networks.build(job["network"], tuple(result["shape"]), heads, classes)
    network.load_state_dict(read_tensors(layout.weights(name))[0])
    return Denoiser(network.to(device).eval().requires_grad_(False), objective, schedule, clip=result["levels"] > 0)


def draw_labels(dataset: Data, name: str, count: int) -> Tensor:
    """Labels in the training half's proportions, by largest remainder, in a seeded order; int64 (count,)."""
    labels, sizes = dataset.train.labels.unique(return_counts=True)
    return labels.repeat_interleave(proportional(sizes, count))[rng.permutation(count, "labels", name)]


@torch.no_grad()
def chain(
    denoiser: Denoiser, sampler: Sampler, name: str, index: Tensor, labels: Tensor | None, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """x_T and then x after every step for the images number `index` of the network `name`, on the index's device.

    Draw 0 of an image is its x_T, the k-th noise of the sampler its draw k: all samplers of a network start alike.
    """
    key, draws = rng.key("sampling", name), count(1)
    x = rng.normal(key, index, 0, shape) * float(denoiser.schedule.prior_std)
    yield x
    yield from sampler.trajectory(denoiser, x, labels, lambda: rng.normal(key, index, next(draws), shape))


def reaches(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far every image lies from the centre of the data's bounds, in units of half their width: float64, (B,)."""
    return ((x.double() - (low + high) / 2) / ((high - low) / 2)).abs().flatten(1).amax(1)


def variance(images: Tensor) -> float:
    """The variance over images, summed over coordinates: E‖x − E x‖²."""
    return float(images.double().flatten(1).var(0, correction=0).sum())


def sample(job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS) -> None:
    """The `sample` stage: exactly N images as grey levels, uint8 (points: float32), and their labels, with a record.

    An interrupted job goes on with the batch after the last one that its checkpoint holds.
    """
    torch.set_num_threads(job["threads"])
    torch.set_float32_matmul_precision("high")
    network = job["network"]
    recorder = Recorder("sample", job, code, layout.inputs("sample", job["name"], job), device)
    dataset, settings = data.read(layout.data), job["sampling"]
    status = read_record(layout.record("train", network))["status"]
    classifier = guide.load(layout, job["guide"], device) if "guide" in job else None
    denoiser = Guidance.make(job["guidance"])(load_denoiser(layout, network, device), classifier)
    sampler = Sampler.make(job["sampler"])
    wanted = settings["images"] if status == "ok" else 0
    labels = draw_labels(dataset, network, wanted) if denoiser.network.classes or classifier else None
    tensors = {} if labels is None else {"labels": labels}
    checkpoint = Checkpoint(layout.checkpoint("sample", job["name"]), recorder, checkpoint_seconds)
    found = checkpoint.load()
    images = [dataset.train.images[:0] if found is None else found[0]["images"]]
    reach = [torch.zeros(0) if found is None else found[0]["reach"]]
    denoiser.evaluated = 0 if found is None else found[1]["evaluated"]
    first, each = len(images[0]), sampler.steps + 1
    drawn = first
    recorder.phase("sampling")
    with tqdm(total=wanted * each, initial=first * each, desc=job["name"], unit="step") as progress:
        for start in range(first, wanted, settings["batch"]):
            index = torch.arange(start, min(start + settings["batch"], wanted))
            y = None if labels is None else labels[index].to(device)
            for x in chain(denoiser, sampler, network, index.to(device), y, dataset.shape):
                progress.update(len(index))
            drawn += len(index)
            if not x.isfinite().all():
                status, images, tensors = "diverged", [images[0][:0]], {}
                break
            images.append(dataset.quantise(x).cpu())
            reach.append(reaches(x.cpu(), *dataset.bounds))
            if checkpoint.due():
                tensors_so_far = {"images": torch.cat(images), "reach": torch.cat(reach)}
                checkpoint.save(tensors_so_far, {"at": drawn, "evaluated": denoiser.evaluated})
    recorder.phase("writing")
    out, found_images = layout.samples(job["name"]), torch.cat(images)
    write_tensors(out, {"images": found_images} | tensors)
    result = {"images": len(found_images), "steps": sampler.steps, "nfe": round(denoiser.evaluated / max(1, drawn))}
    if len(found_images):
        result["reach"] = float(torch.cat(reach).max())
        result["spread"] = variance(dataset.scale(found_images)) / variance(dataset.scale(dataset.train.images))
    recorder.finish(layout.record("sample", job["name"]), [out], status, **result)
    checkpoint.remove()
