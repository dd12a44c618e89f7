"""The `data` stage: load, check, and store as one safetensors file."""

import math

import torch

from ddpm.datasets.dataset import Dataset
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, write_tensors

Tensor = torch.Tensor


def prepare(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `data` stage: load, check, and store as one safetensors file."""
    recorder = Recorder("data", job, code, {})
    spec = dict(job["data"])
    dataset = Dataset.make({"method": spec.pop("name")} | spec)
    train, test = dataset.load()
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    write_tensors(layout.data, tensors, {"levels": str(dataset.levels), "classes": str(dataset.classes)})
    counts: dict[str, float] = {"train": len(train.images), "test": len(test.images)}
    if (exact := dataset.log_density(test.images)) is not None:
        # What no likelihood model can beat by more than chance: −log p of the test half under its own law.
        counts["test_bits_per_dim"] = float(-exact.mean() / (math.log(2) * test.images[0].numel()))
    recorder.finish(layout.record("data"), [layout.data], **counts)
