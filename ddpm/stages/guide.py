"""The guide: a classifier p(y | x_t) of the noisy images of one schedule (Sedykh 2024, 001, section 4.3.1)."""

import torch
from torch.nn import functional as F

from ddpm import rng
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.guidance import Classifier
from ddpm.networks.classifier import NoisyClassifier
from ddpm.pipeline.records import Result, read_record, read_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.schedules import Schedule, like

Tensor = torch.Tensor
# Fractions of T at which the record gives the accuracy on test images.
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


def logits(network: NoisyClassifier, schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """(B, classes); the network sees x_t/√(α² + σ²) and log SNR(t), t a scalar or (B, 1, 1, 1)."""
    (scale,) = like(x_t, (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).rsqrt())
    return network(scale * x_t, schedule.log_snr_for(t, x_t))


def train(run: Run) -> Outcome:
    """The `guide` stage: cross-entropy on x_t at uniform t; its numbers are the accuracies on test images by t/T."""
    job, settings, device = run.job, run.settings, run.device
    dataset = data.read(run.inputs["data"], run.inputs.get("autoencoder"), device)
    schedule = Schedule.make(job["schedule"])
    if len(dataset.shape) != 3:
        raise UserError(
            f"guidances: classifier guidance takes images, these data have shape {dataset.shape}; cfg would do"
        )
    # ---- the network, its weights drawn from the job's name
    key, size = rng.key("guide", run.name), settings["batch"]
    torch.manual_seed(rng.key("guide weights", run.name) & (2**63 - 1))
    network = NoisyClassifier(dataset.shape, dataset.classes, settings["width"]).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings["learning_rate"], fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings["steps"])
    # ---- the loop
    images, labels = dataset.train.images, dataset.train.known
    position = torch.arange(size)
    with run.progress(settings["steps"], "step") as progress:
        for step in range(settings["steps"]):
            u = rng.uniform(key, position, 2 * step, (2,))
            index = (u[:, 0] * len(images)).long()
            t = (1 + (u[:, 1] * schedule.steps).floor()).reshape(-1, 1, 1, 1)
            x0 = dataset.space.encode(images[index].to(device))
            eps = rng.normal(key, position.to(device), 2 * step + 1, dataset.shape)
            loss = F.cross_entropy(logits(network, schedule, schedule.noisy(x0, eps, t), t), labels[index].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            decay.step()
            progress.update()
    # ---- what is kept
    run.write("weights", network.state_dict())
    accuracies = accuracy(network.eval(), schedule, dataset, device)
    about = {"shape": list(dataset.shape), "classes": dataset.classes, "accuracy_by_time": accuracies}
    about |= {"steps": settings["steps"], "images_seen": settings["steps"] * settings["batch"]}
    return "ok", about | {"parameters": sum(p.numel() for p in network.parameters())}


@torch.no_grad()
def accuracy(network: NoisyClassifier, schedule: Schedule, dataset: data.Data, device: str) -> dict[str, float]:
    """t/T → the share of noisy test images that are given their own class."""
    stored, y, key = dataset.test.images, dataset.test.known, rng.key("guide test")
    found = {}
    for part in LEVELS:
        t = torch.tensor(max(1.0, round(part * schedule.steps)), dtype=torch.float64)
        right = []
        for index in torch.arange(len(stored)).split(1000):
            x0, eps = dataset.space.encode(stored[index]), rng.normal(key, index, 0, dataset.shape)
            x_t = schedule.noisy(x0, eps, t)
            right.append(logits(network, schedule, x_t.to(device), t).argmax(1).cpu() == y[index])
        found[str(part)] = float(torch.cat(right).double().mean())
    return found


def load(trained: Result, device: str) -> Classifier:
    """A trained guide as (x_t, t, y) → log p(y | x_t), (B,)."""
    record = read_record(trained.record)
    job, result = record["job"], record["result"]
    network = NoisyClassifier(tuple(result["shape"]), result["classes"], job["guide"]["width"])
    network.load_state_dict(read_tensors(trained.file)[0])
    network, schedule = network.to(device).eval().requires_grad_(False), Schedule.make(job["schedule"])

    def log_probability(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        chances = logits(network, schedule, x_t, t).log_softmax(1)
        return chances.gather(1, y[:, None]).flatten()

    return log_probability
