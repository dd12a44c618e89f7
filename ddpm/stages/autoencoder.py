"""The `autoencoder` stage: what turns images into latents and back (Rombach et al. 2022, section 3.1).

Instead of their perceptual and adversarial losses it has the squared error: no network that was trained elsewhere has a
part in it.
"""

import torch

from ddpm import latents, rng
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.networks.autoencoder import Autoencoder
from ddpm.pipeline.run import Outcome, Run
from ddpm.stages.train import State, learning_rate

Tensor = torch.Tensor
# Of the weights' average that is kept, and of the gradient's norm; the share of training that its rate rises in.
EMA_DECAY, GRADIENT_CLIP, WARMUP = 0.999, 1.0, 0.05
# What stands for the latents' scale and bounds where training diverged.
NONE = {"scale": 1.0, "low": -1.0, "high": 1.0, "measured": 1.0}


def loss(network: Autoencoder, x: Tensor, eps: Tensor, weight: float) -> Tensor:
    """(‖x − x̂(z)‖² + β KL(q(z | x) ‖ N(0, I)))/D of every image, (B,), at z = mean + std ε; β: `weight`.

    With KL = ½ Σ (mean² + variance − 1 − log variance) this is, but for a constant, β/D times the bound on −log p(x) of
    a decoder N(x̂, ½ β I) (Kingma & Welling 2014, eq. 10).
    """
    mean, log_variance = network.encode(x)
    error = (x - network.decode(mean + (log_variance / 2).exp() * eps)).square().flatten(1).sum(1)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
    return (error + weight * kl) / x[0].numel()


def build(settings: dict, dataset: data.Data) -> Autoencoder:
    """The autoencoder of a job, its weights drawn from the seed; UserError where it does not fit the images."""
    if len(dataset.shape) != 3:
        raise UserError(
            f"autoencoder: it takes images, these data have shape {dataset.shape}; networks need no latents"
        )
    _, height, width = dataset.shape
    if height % settings["factor"] or width % settings["factor"]:
        said = f"autoencoder.factor: {settings['factor']}; it must divide the images' height and width"
        raise UserError(f"{said}, {height} × {width}")
    torch.manual_seed(rng.key("autoencoder weights", settings["seed"]) & (2**63 - 1))
    return Autoencoder(dataset.shape, **form(settings))


def form(settings: dict) -> dict[str, int]:
    """Of the settings those that the network is made of."""
    return {k: settings[k] for k in ("width", "channels", "factor")}


def train(run: Run) -> Outcome:
    """The `autoencoder` stage: the EMA weights with the latents' scale, and the training curve.

    Its numbers are the scale, the bounds and the standard deviation of the training split's latents, and the mean
    squared error of test images in x of pixels, [−1, 1].
    """
    # ---- what is trained
    settings, device, dataset = run.settings, run.device, data.read(run.inputs["data"])
    network = build(settings, dataset).to(device)
    state = State(network, settings | {"ema_decay": EMA_DECAY}, None, device)
    first, key = state.resume(run.checkpoint), rng.key("autoencoder", settings["seed"])
    images, position = dataset.train.images, torch.arange(settings["batch"])
    steps, peak, status, step = settings["steps"], settings["learning_rate"], "ok", first - 1
    # ---- the loop
    run.phase("training")
    with run.progress(steps, "step", first) as progress:
        for step in range(first, steps):
            index = (rng.uniform(key, position, 2 * step) * len(images)).long()
            x = dataset.space.encode(images[index].to(device))
            eps = rng.normal(key, position.to(device), 2 * step + 1, network.shape)
            value = loss(network, x, eps, settings["kl_weight"]).mean()
            state.optimiser.zero_grad(set_to_none=True)
            value.backward()
            rate = learning_rate(step, steps, peak, round(WARMUP * steps), "cosine")
            state.update(step, rate, GRADIENT_CLIP)
            progress.update()
            if not state.row(step, settings, rate, value.detach()):
                status = "diverged"
                break
            state.keep(run.checkpoint, step + 1)
    # ---- what is kept
    run.phase("measuring")
    network.load_state_dict(state.average.state_dict())
    measured = latents.measure(network, dataset.space, images) if status == "ok" else NONE
    about = {"pixels": dataset.space.spec, "settings": form(settings), "measured": measured}
    run.write("weights", network.state_dict(), about)
    run.write("loss", state.curve())
    result = {"steps": step + 1, "images_seen": (step + 1) * settings["batch"], "shape": list(network.shape)} | measured
    result["parameters"] = sum(p.numel() for p in network.parameters())
    if status == "ok":
        space = latents.read(run.outputs["weights"], dataset.space, device)
        result["test_error"] = error(space, dataset.test.images)
    return status, result


def error(space: latents.Latents, stored: Tensor) -> float:
    """The mean squared error of decoded images (N, ...), in x of pixels."""
    total = 0.0
    for part in stored.split(latents.BATCH):
        decoded = space.decode(space.encode(part))
        total += float((space.pixels.encode(part) - space.pixels.encode(decoded)).double().square().sum())
    return total / stored.numel()
