"""The `train` and `sample` stages of a cascade (Ho et al. 2022): its networks are trained alone, on real images, and
sampled one after the other.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from ddpm import rng
from ddpm.cascade import Cascade, Downsampled, augmented, downsampled
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.datasets.dataset import Data
from ddpm.denoiser import Denoiser
from ddpm.errors import UserError
from ddpm.guidance import Guidance
from ddpm.networks.network import Network
from ddpm.networks.super_resolution import SuperResolution
from ddpm.pipeline.records import Result
from ddpm.pipeline.run import Outcome, Run
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels
from ddpm.stages import sample as sampling
from ddpm.stages.sample import load_denoiser, load_guided, noise
from ddpm.stages.train import Batches, State, train

Tensor = torch.Tensor


# ---- training -----------------------------------------------------------------------------------------------


class Pairs(Batches):
    """Batches whose conditions hold the images at low resolution, with noise of a level s that is uniform on [0, T].

    s and the noise are functions of the network's name, the step and the image's place in the batch.
    """

    def __init__(self, dataset: Data, job: dict, device: torch.device, network: Network):
        super().__init__(dataset, job, device, network)
        assert isinstance(network, SuperResolution)
        self.factor, self.schedule = network.factor, Schedule.make(job["schedule"])
        self.noise = rng.key("augmentation", self.name)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
        x0, eps, u, condition = super().__call__(step)
        z, position = downsampled(x0, self.factor), torch.arange(self.size)
        s = self.schedule.steps * rng.uniform(self.noise, position, 2 * step, (1, 1, 1))
        draws = rng.normal(self.noise, position.to(z.device), 2 * step + 1, tuple(z.shape[1:]))
        return x0, eps, u, augmented(self.schedule, z, draws, s, condition)


def divided(dataset: Data, factor: int) -> Pixels:
    """The space of the images at low resolution; UserError where these have none."""
    space, sides = dataset.space, dataset.shape[1:]
    if not isinstance(space, Pixels) or any(side % factor for side in sides):
        said = f"networks: the factor of a cascade is {factor}; it must divide the height and width of images"
        raise UserError(f"{said}, and these data have shape {dataset.shape}")
    return Downsampled((dataset.shape[0], *(side // factor for side in sides)), space.levels, factor)


def train_base(run: Run, keeping: type[State] = State) -> Outcome | None:
    """The first network's: as any other, on the images at low resolution."""
    dataset = data.read(run.inputs["data"])
    return train(run, replace(dataset, space=divided(dataset, run.job["downsample"])), keeping=keeping)


def train_second(run: Run, keeping: type[State] = State) -> Outcome | None:
    """The second network's: it learns to enlarge what real images become at low resolution."""
    divided(dataset := data.read(run.inputs["data"]), run.job["network"]["factor"])
    return train(run, dataset, Pairs, keeping)


# ---- sampling -----------------------------------------------------------------------------------------------


def load(job: dict, parents: dict[str, Result], device: str = "cpu") -> Denoiser:
    """What a cell is sampled from, by its job and what that reads: a network under guidance, or a cascade of two."""
    if "base_weights" not in parents:
        return load_guided(job, parents, device)
    second, base = (load_denoiser(parents[name], device) for name in ("weights", "base_weights"))
    assert isinstance(second.network, SuperResolution)
    small, guidance = second.network.small, Guidance.make(job["guidance"])
    if guidance.labels == "conditional":  # otherwise there is nothing to guide, but an image to be shown
        second, base = guidance(second), guidance(base)
    name = noise(job | {"network": job["base_network"]})
    return Cascade(second, base, name, small, job["augmentation"])


def small_images(cascade: Cascade, sampler: Sampler, index: Tensor, condition: Condition) -> Tensor:
    """z, what the first network of a cascade samples for the images number `index`; its evaluations count."""
    before = cascade.base.evaluated
    *_, z = sampling.chain(cascade.base, sampler, cascade.name, index, condition, cascade.shape)
    cascade.evaluated += cascade.base.evaluated - before
    return z


def condition_of(denoiser: Denoiser, sampler: Sampler, index: Tensor, condition: Condition) -> Condition:
    """What the images number `index` are to show: `condition` and, of a cascade, what its first network samples."""
    if not isinstance(denoiser, Cascade):
        return condition
    return denoiser.told(small_images(denoiser, sampler, index, condition), index, condition)


def chain(
    denoiser: Denoiser, sampler: Sampler, name: str, index: Tensor, condition: Condition, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """`ddpm.stages.sample.chain`; of a cascade, that of the second network, after that of the first."""
    yield from sampling.chain(denoiser, sampler, name, index, condition_of(denoiser, sampler, index, condition), shape)


def sample(run: Run) -> Outcome:
    """The `sample` stage of a cascade."""
    return sampling.sample(run, load, chain)
