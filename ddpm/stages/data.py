"""The `data` stage: load, check, and store as one file."""

import math

from ddpm.datasets.dataset import Dataset
from ddpm.pipeline.run import Outcome, Run


def prepare(run: Run) -> Outcome:
    """The stored dataset: both splits, images and labels; of a law in closed form also what nothing can beat."""
    spec = dict(run.job["data"])
    dataset = Dataset.make({"method": spec.pop("name")} | spec)
    train, test = dataset.load()
    tensors = {
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    run.write("images", tensors, {"levels": str(dataset.levels), "classes": str(dataset.classes)})
    counts: dict[str, object] = {"train": len(train.images), "test": len(test.images)}
    if (exact := dataset.log_density(test.images)) is not None:
        # What no likelihood model can beat by more than chance: −log p of the test split under its own density.
        counts["test_bits_per_dim"] = float(-exact.mean() / (math.log(2) * test.images[0].numel()))
    return "ok", counts
