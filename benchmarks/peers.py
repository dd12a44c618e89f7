"""Ours and its peers on equal terms: python benchmarks/peers.py names those that are there, and their sizes

    python benchmarks/peers.py [--device cpu] [--threads 1]

A contestant has a U-Net of the same number of parameters to within 5 %, without attention, trained to predict ε on the
linear schedule; training and sampling are what its own documentation shows. denoising-diffusion-pytorch keeps its
linear attention, which cannot be left out, and predicts v on its sigmoid schedule.
"""

import argparse
import math
import time
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
from ddpm.pipeline.running import keep_freed_memory
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


def arguments(about: str) -> argparse.ArgumentParser:
    """The options of every benchmark that runs a contestant."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what all of them compute on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of all of them")
    return parser


def prepare(device: str, threads: int) -> None:
    """Have this process compute as a job does (`ddpm.pipeline.run`); end it where torch sees no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; --device cpu would run")
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False


def clock(device: str) -> Callable[[], float]:
    """What tells seconds on a device. On one core they are CPU time, which other programs do not lengthen; on several,
    which wait for one another, wall time; on a GPU wall time when all is done that it was given."""

    def when_done() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    if device == "cuda":
        return when_done
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


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

    samplers = SAMPLERS

    def __init__(self, grid: Grid, dataset: Data, device: str = "cpu"):
        self.job, self.dataset, self.device = grid.job("train", next(iter(grid.networks)))[0], dataset, device
        settings = self.job["training"]
        self.batch, self.steps = settings["batch"], settings["steps"]
        self.schedule, self.objective = Schedule.make(self.job["schedule"]), Objective.make(self.job["objective"])
        self.network = training.build(self.job, dataset).to(device)
        self.batches = training.Batches(dataset, self.job, torch.device(device), self.network)
        self.times = self.objective.times.on(self.schedule)
        self.state = training.State(self.network, settings, self.times, device)
        self.computed = self._computed(self.network, self.steps)
        self.loss = partial(self.objective.loss, self.computed, self.schedule, space=dataset.space)
        self.drawn = grid.config["sampling"]
        self.denoisers: dict[str, Denoiser] = {}

    def _computed(self, network: nn.Module, calls: int) -> Computed:
        return Computed(network, self.job["compute"], self.dataset.space, self.device, calls)

    @property
    def precision(self) -> str:
        return self.computed.precision

    def train(self, step: int, share: float | None = None) -> Tensor:
        """A step of training and of the average, the loss; `share` of the run is behind, if its end is one of time."""
        settings = self.job["training"]
        x0, eps, u, condition = self.batches(step)
        t, weight = self.times.draw(u)
        batch = x0, eps, t.reshape(-1, 1, 1, 1), condition
        weight = weight.to(x0.device, x0.dtype, non_blocking=True)
        losses = training.backward(self.state.optimiser, self.loss, batch, lambda: None, weight, self.batch)
        self.times.learn(t, losses)
        decay = settings["decay"] if share is None else "constant"
        rate = training.learning_rate(step, self.steps, settings["learning_rate"], settings["warmup"], decay)
        self.state.update(step, rate * fall(share or 0), settings["gradient_clip"])
        return losses.mean()

    def denoiser(self) -> Denoiser:
        """The averaged weights."""
        return Denoiser(self.state.average.eval(), self.objective, self.schedule)

    def sample(self, method: str, images: int, steps: int) -> Tensor:
        """As the `sample` stage draws one batch of a job, whose network is computed in one way throughout."""
        if method not in self.denoisers:
            made = self.denoisers[method] = self.denoiser()
            made.call = self._computed(made.network, steps * self.drawn["images"] // self.drawn["batch"])
        sampler, index = Sampler.make({"method": method, "steps": steps}), torch.arange(images, device=self.device)
        for x in chain(self.denoisers[method], sampler, self.job["name"], index, NOTHING, self.dataset.shape):
            pass
        return self.dataset.space.decode(x).cpu()

    def likelihood(self, images: int, times: int, batch: int) -> Tensor:
        """As the `likelihood` stage does, in float32."""
        x0 = self.dataset.space.encode(self.dataset.test.images[:images]).to(self.device)
        index = torch.arange(images, device=self.device)
        found = vlb(self.denoiser(), x0, index, 0, self.dataset.space, times, False, batch)
        return found["bound"]


class Diffusers:
    """diffusers: UNet2DModel, the loop of its training tutorial (AdamW, clipped gradients, a cosine with warm-up, no
    average), and its pipelines."""

    name, samplers = "diffusers", SAMPLERS

    def __init__(self, resolution: int, dataset: Data, batch: int, precision: str = "float32", device: str = "cpu"):
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
        ).to(device)
        self.batch, self.precision, self.device = batch, precision, device
        self.images = dataset.space.encode(dataset.train.images).to(device)
        self.noise_schedule = DDPMScheduler(num_train_timesteps=1000)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.epoch = iter(())  # of the training images
        self.pipelines: dict[str, Callable] = {}

    def compute(self) -> torch.autocast | nullcontext:
        low = self.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16) if low else nullcontext()

    def _clean(self) -> Tensor:
        """A batch of a shuffled epoch; the last, smaller one is left out."""
        if (index := next(self.epoch, None)) is None or len(index) < self.batch:
            self.epoch = iter(torch.randperm(len(self.images)).split(self.batch))
            index = next(self.epoch)
        return self.images[index.to(self.device)]

    def train(self, step: int, share: float | None = None) -> float:
        """One optimiser step; `share` of the run is behind, along which the learning rate falls."""
        clean = self._clean()
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),), device=self.device)
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
        if method not in self.pipelines:
            pipeline, scheduler = pipelines[method]
            made = self.pipelines[method] = pipeline(self.network, scheduler(num_train_timesteps=1000))
            made.set_progress_bar_config(disable=True)
        self.network.eval()
        with self.compute():
            found = self.pipelines[method](batch_size=images, num_inference_steps=steps, output_type="np").images
        self.network.train()
        return torch.from_numpy(found)


class DenoisingDiffusionPytorch:
    """denoising-diffusion-pytorch: Unet and GaussianDiffusion, and the loop of its Trainer (Adam, clipped gradients, an
    average every tenth step)."""

    name, precision, samplers = "denoising-diffusion-pytorch", "float32", ("ancestral", "ddim")

    def __init__(self, resolution: int, dataset: Data, batch: int, device: str = "cpu"):
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
        self.batch, self.device = batch, device
        self.images = (dataset.space.encode(dataset.train.images) / 2 + 0.5).to(device)
        self.diffusion = partial(GaussianDiffusion, image_size=resolution)
        self.drawing: dict[tuple[str, int], nn.Module] = {}
        self.trained = self.diffusion(self.network, timesteps=1000).to(device)
        self.average = EMA(self.trained, beta=0.995, update_every=10)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def train(self, step: int, share: float | None = None) -> float:
        """One optimiser step; the learning rate is constant."""
        loss = self.trained(self.images[torch.randint(0, len(self.images), (self.batch,), device=self.device)])
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update()
        return loss.item()

    def sample(self, method: str, images: int, steps: int) -> Tensor:
        """By the averaged weights: DDIM on a subset of its times, the whole chain where T is the number of steps."""
        times = {"timesteps": steps} if method == "ancestral" else {"timesteps": 1000, "sampling_timesteps": steps}
        if (method, steps) not in self.drawing:
            self.drawing[method, steps] = self.diffusion(self.average.ema_model.model, **times).to(self.device)
        return self.drawing[method, steps].sample(batch_size=images).cpu()


def configured_job(resolution: int) -> dict:
    """Our training job of this resolution."""
    grid = configured(resolution, "float32")
    return grid.job("train", next(iter(grid.networks)))[0]


def builders(resolution: int, batch: int, device: str) -> dict[str, Callable]:
    """Name → what makes the contestant, ours first."""
    dataset = random_data(resolution, max(512, batch))
    theirs = {"dataset": dataset, "batch": batch, "device": device}
    found: dict[str, Callable] = {}
    for precision in ("bfloat16", "float32") if has_bfloat16(device) else ("float32",):
        found[f"ours, {precision}"] = partial(Ours, configured(resolution, precision, batch=batch), dataset, device)
    found["diffusers"] = partial(Diffusers, resolution, **theirs)
    if has_bfloat16(device):
        found["diffusers, autocast to bfloat16"] = partial(Diffusers, resolution, precision="bfloat16", **theirs)
    return found | {DenoisingDiffusionPytorch.name: partial(DenoisingDiffusionPytorch, resolution, **theirs)}


def contestants(resolution: int, batch: int, device: str) -> tuple[dict[str, object], dict[str, str]]:
    """Name → contestant, ours first, and name → why it is left out."""
    found, absent = {}, {}
    for name, made in builders(resolution, batch, device).items():
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
    options = arguments(__doc__).parse_args()
    prepare(options.device, options.threads)
    for resolution in SIZES:
        found, absent = contestants(resolution, 2, options.device)
        for name, contestant in found.items():
            print(f"{resolution}×{resolution} {name}: {parameters(contestant.network)} parameters")
        for name, why in absent.items():
            print(f"{resolution}×{resolution} {name}: left out, {why}")


if __name__ == "__main__":
    main()
