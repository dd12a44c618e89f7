"""Ours and its peers on equal terms: python benchmarks/peers.py names those that are there, and their sizes

A contestant has a U-Net of the same number of parameters to within 5 %, without attention, trained to predict ε on the
linear schedule; training and sampling are what its own documentation shows.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count

import torch
from torch import nn
from torch.nn import functional as F

from ddpm import rng
from ddpm.compute import Computed, has_bfloat16
from ddpm.condition import NOTHING
from ddpm.datasets.dataset import Data, Split
from ddpm.denoiser import Denoiser
from ddpm.objectives import Objective
from ddpm.pipeline import config, project
from ddpm.pipeline.grid import Grid
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels
from ddpm.stages import train as training
from ddpm.stages.likelihood import vlb
from ddpm.stages.sample import chain

Tensor = torch.Tensor
# Resolution → our network's multipliers; the peer's channels that give as many parameters; grey levels.
SIZES = {8: ([1, 2], (24, 56), 17), 28: ([1, 2, 2], (28, 52, 52), 256)}
SAMPLERS = ("ancestral", "ddim", "dpm-solver++")
TOLERANCE = 0.05


def parameters(network: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in network.parameters())


def fall(share: float) -> float:
    """Half a cosine down to 0 at share 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def configured(
    resolution: int, precision: str, *overlays: str, network: dict | None = None, **training: object
) -> Grid:
    """The default configuration, below these overlays, with one network: that of this resolution, or another."""
    own = {
        "network": network or {"multipliers": SIZES[resolution][0], "attention": []},
        "training": training,
        "compute": {"precision": precision},
        "grid": [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}],
    }
    found = config.load(project.find("config.yaml"))
    for overlay in (*(config.load(project.find(name)) for name in overlays), own):
        found = config.merge(found, overlay)
    return config.check(found)


def random_data(resolution: int, images: int = 512) -> Data:
    """Images of random grey levels: speed does not depend on what they show."""
    levels = SIZES[resolution][2] if resolution in SIZES else 256
    shape = (1, resolution, resolution)
    split = Split((rng.uniform(rng.key("benchmark"), torch.arange(images), 0, shape) * levels).to(torch.uint8))
    return Data(split, split, Pixels(shape=shape, levels=levels), 0)


class Ours:
    """This package: a step of `ddpm.stages.train`, the samplers of `ddpm.stages.sample`, the bound."""

    def __init__(self, grid: Grid, dataset: Data):
        self.job, self.dataset = grid.job("train", next(iter(grid.networks)))[0], dataset
        settings = self.job["training"]
        self.batch, self.steps = settings["batch"], settings["steps"]
        self.schedule, self.objective = Schedule.make(self.job["schedule"]), Objective.make(self.job["objective"])
        self.network = training.build(self.job, dataset)
        self.batches = training.Batches(dataset, self.job, torch.device("cpu"), self.network)
        self.times = self.objective.times.on(self.schedule)
        self.state = training.State(self.network, settings, self.times, "cpu")
        self.computed = self._computed(self.network)
        self.loss = partial(self.objective.loss, self.computed, self.schedule, space=dataset.space)

    def _computed(self, network: nn.Module) -> Computed:
        return Computed(network, self.job["compute"], self.dataset.space, "cpu", calls=1)

    @property
    def precision(self) -> str:
        return self.computed.precision

    def train(self, step: int, share: float | None = None) -> float:
        """A step of training and of the average, the loss; `share` of the run is behind, if its end is one of time."""
        settings = self.job["training"]
        x0, eps, u, condition = self.batches(step)
        t, weight = self.times.draw(u)
        batch = x0, eps, t.reshape(-1, 1, 1, 1), condition
        losses = training.backward(
            self.state.optimiser, self.loss, batch, lambda: None, weight.to(x0.dtype), self.batch
        )
        self.times.learn(t, losses)
        decay = settings["decay"] if share is None else "constant"
        rate = training.learning_rate(step, self.steps, settings["learning_rate"], settings["warmup"], decay)
        self.state.update(step, rate * fall(share or 0), settings["gradient_clip"])
        return float(losses.mean())

    def denoiser(self, computed: bool = True) -> Denoiser:
        """The averaged weights."""
        made = Denoiser(self.state.average.eval(), self.objective, self.schedule)
        if computed:
            made.call = self._computed(made.network)
        return made

    def sample(self, method: str, images: int, steps: int) -> Tensor:
        """As the `sample` stage draws one batch."""
        sampler, index = Sampler.make({"method": method, "steps": steps}), torch.arange(images)
        for x in chain(self.denoiser(), sampler, self.job["name"], index, NOTHING, self.dataset.shape):
            pass
        return self.dataset.space.decode(x)

    def likelihood(self, images: int, times: int, batch: int) -> Tensor:
        """As the `likelihood` stage does, in float32."""
        x0 = self.dataset.space.encode(self.dataset.test.images[:images])
        found = vlb(self.denoiser(False), x0, torch.arange(images), 0, self.dataset.space, times, False, batch)
        return found["bound"]


class Diffusers:
    """diffusers: UNet2DModel, the loop of its training tutorial (AdamW, clipped gradients, a cosine with warm-up, no
    average), and its pipelines."""

    name = "diffusers"

    def __init__(self, resolution: int, dataset: Data, batch: int, precision: str = "float32"):
        from diffusers import DDPMScheduler, UNet2DModel

        channels = SIZES[resolution][1]
        torch.manual_seed(0)
        self.network = UNet2DModel(
            sample_size=resolution,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=4,
            add_attention=False,
        )
        self.batch, self.precision = batch, precision
        self.images = dataset.space.encode(dataset.train.images)
        self.noise_schedule = DDPMScheduler(num_train_timesteps=1000)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.epoch = iter(())  # of the training images

    def compute(self) -> torch.autocast | nullcontext:
        low = self.precision == "bfloat16"
        return torch.autocast("cpu", torch.bfloat16) if low else nullcontext()

    def _clean(self) -> Tensor:
        """A batch of a shuffled epoch; the last, smaller one is left out."""
        if (index := next(self.epoch, None)) is None or len(index) < self.batch:
            self.epoch = iter(torch.randperm(len(self.images)).split(self.batch))
            index = next(self.epoch)
        return self.images[index]

    def train(self, step: int, share: float | None = None) -> float:
        """One optimiser step; `share` of the run is behind, along which the learning rate falls."""
        clean = self._clean()
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        noisy = self.noise_schedule.add_noise(clean, noise, t)
        with self.compute():
            predicted = self.network(noisy, t, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        rate = 1e-4 * min(1, (step + 1) / 500) * fall(share or 0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    def sample(self, method: str, images: int, steps: int) -> Tensor:
        """By its pipeline; DPM-Solver++ in the one for DDPM, which takes any scheduler of that form."""
        from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler

        pipelines = {
            "ancestral": (DDPMPipeline, DDPMScheduler),
            "ddim": (DDIMPipeline, DDIMScheduler),
            "dpm-solver++": (DDPMPipeline, DPMSolverMultistepScheduler),
        }
        pipeline, scheduler = pipelines[method]
        drawn = pipeline(self.network.eval(), scheduler(num_train_timesteps=1000))
        drawn.set_progress_bar_config(disable=True)
        with self.compute():
            found = drawn(batch_size=images, num_inference_steps=steps, output_type="np").images
        self.network.train()
        return torch.from_numpy(found)


class DenoisingDiffusionPytorch:
    """denoising-diffusion-pytorch: Unet and GaussianDiffusion, and the loop of its Trainer (Adam, clipped gradients, an
    average every tenth step)."""

    name, precision = "denoising-diffusion-pytorch", "float32"

    def __init__(self, resolution: int, dataset: Data, batch: int):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        multipliers = tuple(SIZES[resolution][0])
        wanted = parameters(training.build(configured_job(resolution), dataset))

        def built(width: int) -> nn.Module:
            return Unet(
                dim=width, dim_mults=multipliers, channels=1, full_attn=(False,) * len(multipliers), flash_attn=False
            )

        widths = range(8, 65, 2)
        self.network = min(map(built, widths), key=lambda network: abs(parameters(network) - wanted))
        self.batch, self.images = batch, dataset.space.encode(dataset.train.images) / 2 + 0.5
        self.diffusion = partial(GaussianDiffusion, image_size=resolution)
        self.trained = self.diffusion(self.network, timesteps=1000)
        self.average = EMA(self.trained, beta=0.995, update_every=10)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def train(self, step: int, share: float | None = None) -> float:
        """One optimiser step; the learning rate is constant."""
        loss = self.trained(self.images[torch.randint(0, len(self.images), (self.batch,))])
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update()
        return loss.item()

    def sample(self, method: str, images: int, steps: int) -> Tensor | None:
        """By the averaged weights: DDIM on a subset of its times, the whole chain where T is the number of steps. It
        has no DPM-Solver++."""
        if method == "dpm-solver++":
            return None
        times = {"timesteps": steps} if method == "ancestral" else {"timesteps": 1000, "sampling_timesteps": steps}
        return self.diffusion(self.average.ema_model.model, **times).sample(batch_size=images)


def configured_job(resolution: int) -> dict:
    """Our training job of this resolution."""
    grid = configured(resolution, "float32")
    return grid.job("train", next(iter(grid.networks)))[0]


def builders(resolution: int, batch: int) -> dict[str, Callable]:
    """Name → what makes the contestant, ours first."""
    dataset = random_data(resolution)
    found: dict[str, Callable] = {}
    for precision in ("bfloat16", "float32") if has_bfloat16("cpu") else ("float32",):
        found[f"ours, {precision}"] = partial(Ours, configured(resolution, precision, batch=batch), dataset)
    found["diffusers"] = partial(Diffusers, resolution, dataset, batch)
    if has_bfloat16("cpu"):
        found["diffusers, autocast to bfloat16"] = partial(Diffusers, resolution, dataset, batch, "bfloat16")
    return found | {DenoisingDiffusionPytorch.name: partial(DenoisingDiffusionPytorch, resolution, dataset, batch)}


def contestants(resolution: int, batch: int) -> tuple[dict[str, object], dict[str, str]]:
    """Name → contestant, ours first, and name → why it is left out."""
    found, absent = {}, {}
    for name, made in builders(resolution, batch).items():
        try:
            contestant = made()
        except ImportError as e:
            absent[name] = f"not installed ({e})"
            continue
        wanted = parameters(next(iter(found.values()), contestant).network)
        if abs(more := parameters(contestant.network) / wanted - 1) > TOLERANCE:
            absent[name] = f"its parameters differ by {more:+.0%}"
        else:
            found[name] = contestant
    return found, absent


def steps_of(contestant: object) -> Callable[[], None]:
    """A function that takes the contestant's next optimiser step."""
    numbers = count()
    return lambda: contestant.train(next(numbers))


def main() -> None:
    for resolution in SIZES:
        found, absent = contestants(resolution, 2)
        for name, contestant in found.items():
            print(f"{resolution}×{resolution} {name}: {parameters(contestant.network)} parameters")
        for name, why in absent.items():
            print(f"{resolution}×{resolution} {name}: left out, {why}")


if __name__ == "__main__":
    main()
