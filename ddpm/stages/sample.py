"""Sampling of one cell: every image's noise is a function of its network's name and its index alone."""

from collections.abc import Callable, Iterator
from itertools import count

import torch

from ddpm import networks, rng
from ddpm.compute import Computed, fitting, with_last
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data, proportional
from ddpm.denoiser import Denoiser
from ddpm.guidance import Guidance, Guide
from ddpm.objectives import Objective
from ddpm.pipeline.records import Result, read_record, read_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Space
from ddpm.stages import guide

Tensor = torch.Tensor
# Job, parents, device → denoiser;  denoiser, sampler, name, indices, condition, shape → x of every step.
Load = Callable[[dict, dict[str, Result], str], Denoiser]
Chain = Callable[[Denoiser, Sampler, str, Tensor, Condition, tuple[int, ...]], Iterator[Tensor]]


def load_denoiser(trained: Result, device: str = "cpu") -> Denoiser:
    """A trained network as a denoiser; x̂0 is clipped to the space's bounds, where it says so."""
    record = read_record(trained.record)
    job, result = record["job"], record["result"]
    objective, schedule = Objective.make(job["objective"]), Schedule.make(job["schedule"])
    clip, shape = "autoencoder" not in job and Space.read(result["space"]).clips, tuple(result["space"]["shape"])
    classes = result["classes"] if job["conditional"] else 0
    network = networks.build(job["network"], shape, objective.variance.heads, classes)
    network.load_state_dict(read_tensors(trained.file)[0])
    return Denoiser(network.to(device).eval().requires_grad_(False), objective, schedule, clip=clip)


def load_guided(job: dict, parents: dict[str, Result], device: str = "cpu") -> Denoiser:
    """The trained network `weights` of `parents` under a job's guidance, by what is there beside it: a classifier,
    `guide`, another network, `guide_weights`, or nothing."""
    by: Guide = guide.load(parents["guide"], device) if "guide" in parents else None
    by = load_denoiser(parents["guide_weights"], device) if "guide_weights" in parents else by
    return Guidance.make(job["guidance"])(load_denoiser(parents["weights"], device), by)


def computed(
    denoiser: Denoiser, sampler: Sampler, settings: dict, space: Space, device: str, calls: int = 0
) -> list[Computed]:
    """Have the networks of a denoiser computed as `compute` in the configuration says, at least `calls` times each; how
    each of them is, that which is guided first."""
    settings = settings | ({"precision": "float32"} if sampler.adaptive else {})
    parts = denoiser.parts()
    made = [Computed(part.network, settings, space, device, calls) for part in parts]
    for part, call in zip(parts, made, strict=True):
        part.call = call
    return made


def noise(job: dict) -> str:
    """The name that noise and the order of labels are functions of: of the first sampling seed the network's, of every
    other one of its own."""
    return f"{job['network']}/sampling{job['sampling_seed']}" if "sampling_seed" in job else job["network"]


def draw_labels(dataset: Data, name: str, count: int) -> Tensor:
    """Labels in the training split's proportions, by largest remainder, in a seeded order; int64 (count,)."""
    labels, sizes = dataset.train.known.unique(return_counts=True)
    return labels.repeat_interleave(proportional(sizes, count))[rng.permutation(count, "labels", name)]


@torch.no_grad()
def chain(
    denoiser: Denoiser, sampler: Sampler, name: str, index: Tensor, condition: Condition, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """x_T and then x after every step for the images number `index` of the network `name`, on the index's device.

    Draw 0 of an image is its x_T, the k-th noise of the sampler its draw k: all samplers of a network start alike.
    """
    key, draws = rng.key("sampling", name), count(1)
    x = rng.normal(key, index, 0, shape) * float(denoiser.schedule.noise_std(denoiser.schedule.start))
    yield x
    yield from sampler.trajectory(denoiser, x, condition, lambda: rng.normal(key, index, next(draws), shape))


def reaches(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far every image lies from the centre of the data's bounds, in units of half their width: float64, (B,)."""
    return ((x.double() - (low + high) / 2) / ((high - low) / 2)).abs().flatten(1).amax(1)


def variance(images: Tensor) -> float:
    """The variance over images, summed over coordinates: E‖x − E x‖²."""
    return float(images.double().flatten(1).var(0, correction=0).sum())


def nothing(dataset: Data) -> tuple[dict, dict]:
    """What a checkpoint would hold of a job that has just begun."""
    state = {"evaluated": 0, "precisions": [], "size": None}
    return {"images": dataset.train.images[:0], "reach": torch.zeros(0)}, state


def sample(run: Run, load: Load | None = None, chained: Chain | None = None) -> Outcome:
    """The `sample` stage: exactly N images as the data are stored, and, where they are given labels, these.

    An interrupted job goes on with the batch after the last one that its checkpoint holds. `ddpm.stages.cascade` gives
    a way to `load` a denoiser, and a `chained`, of its own.
    """
    job, settings, device, name = run.job, run.settings, run.device, noise(run.job)
    # ---- the denoiser, and what steers it
    dataset = data.read(run.inputs["data"], run.inputs.get("autoencoder"), device)
    status = run.parent("weights")["status"]
    denoiser = (load or load_guided)(job, run.parents, device)
    sampler = Sampler.make(job["sampler"])
    wanted = settings["images"] if status == "ok" else 0
    labels = draw_labels(dataset, name, wanted) if denoiser.network.classes or "guide" in job else None
    # ---- what an interrupted job has already
    had, at = run.checkpoint.load() or nothing(dataset)
    images, reach, evaluated = [had["images"]], [had["reach"]], at["evaluated"]
    first, each = len(images[0]), sampler.steps + 1
    drawn, calls = first, sampler.steps * (wanted - first) // settings["batch"]
    networks_of = computed(denoiser, sampler, job["compute"], dataset.space, device, calls)
    precisions = with_last(at["precisions"], networks_of[0].precision)
    # ---- the chains, one batch after another
    run.phase("sampling")
    with run.progress(wanted * each, "step", first * each) as progress:

        def batch(size: int) -> Tensor:
            """x_0 of the next `size` images."""
            index = torch.arange(drawn, min(drawn + size, wanted))
            condition = Condition(labels)[index].to(device)
            denoiser.evaluated, progress.n = evaluated, drawn * each  # where an attempt has failed
            for x in (chained or chain)(denoiser, sampler, name, index.to(device), condition, dataset.shape):
                progress.update(len(index))
            return x

        def forget() -> None:
            for network_of in networks_of:
                network_of.forget()

        size = at["size"] or settings["batch"]
        while drawn < wanted:
            x, size = fitting(size, batch, "sampling.batch", forget=forget)
            drawn, evaluated = drawn + len(x), denoiser.evaluated
            if not x.isfinite().all():
                status, images, labels = "diverged", [images[0][:0]], None
                break
            images.append(dataset.space.decode(x).cpu())
            reach.append(reaches(x.cpu(), *dataset.space.bounds))
            if run.checkpoint.due():
                so_far = {"images": torch.cat(images), "reach": torch.cat(reach)}
                more = {"evaluated": denoiser.evaluated, "precisions": precisions, "size": size}
                run.checkpoint.save(so_far, {"at": drawn} | more)
    # ---- what is kept
    run.phase("writing")
    samples, labels = torch.cat(images), labels if Guidance.make(job["guidance"]).steers else None
    run.write("images", {"images": samples} | ({} if labels is None else {"labels": labels}))
    result = {"images": len(samples), "steps": sampler.steps, "nfe": round(evaluated / max(1, drawn))}
    result["compute"] = networks_of[0].record(precisions) | {"images_at_once": size}
    if len(samples):
        result["reach"] = float(torch.cat(reach).max())
        result["spread"] = variance(dataset.space.encode(samples)) / dataset.variance
    return status, result
