"""The `classifier` stage: the feature extractor."""

import torch
from torch import nn
from tqdm import tqdm

from ddpm import rng
from ddpm.datasets import dataset as data
from ddpm.metrics.extractors import centred, side
from ddpm.networks.classifier import Classifier
from ddpm.pipeline.run import Outcome, Run

Tensor = torch.Tensor


def train(run: Run) -> Outcome:
    """The `classifier` stage: the feature extractor, trained on the training split."""
    dataset, settings = data.read(run.inputs["data"]), run.settings
    torch.manual_seed(rng.key("classifier", settings["seed"]) & (2**63 - 1))
    shape = tuple(dataset.train.images.shape[1:])
    network = Classifier(shape, dataset.classes, settings["width"], settings["features"])

    def inputs(stored: Tensor) -> Tensor:
        return centred(dataset.space.to_images(stored))

    images, labels = dataset.train.images, dataset.train.known
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings["learning_rate"], fused=True)
    run.phase("training")
    steps = settings["epochs"] * -(-len(images) // settings["batch"])
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings["learning_rate"], total_steps=steps)
    for epoch in tqdm(range(settings["epochs"]), desc="classifier", unit="epoch"):
        for index in rng.permutation(len(images), "classifier", settings["seed"], epoch).split(settings["batch"]):
            loss = nn.functional.cross_entropy(network(inputs(images[index])), labels[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            rate.step()
    network.eval()
    with torch.no_grad():
        features = torch.cat([network.features(inputs(b)) for b in images.split(512)]).double()
        guessed = torch.cat([network(inputs(b)).argmax(1) for b in dataset.test.images.split(512)])
    scale = features.var(0).mean().sqrt()
    run.write("weights", network.state_dict() | {"scale": scale, "side": side(shape)})
    accuracy = (guessed == dataset.test.known).double().mean()
    return "ok", {"test_accuracy": round(float(accuracy), 6)}
