"""The `data` stage: load, check, and store as one file."""

import math

from ddpm.datasets.dataset import Dataset
from ddpm.errors import UserError
from ddpm.pipeline.run import Outcome, Run
from ddpm.spaces import Space


def prepare(run: Run) -> Outcome:
    """The stored dataset: both splits, images and labels; of a density in closed form also what nothing can beat."""
    spec = dict(run.job["data"])
    dataset = Dataset.make({"method": spec.pop("name")} | spec)
    train, test = dataset.load()
    tensors = {}
    for name, split in (("train", train), ("test", test)):
        if (split.labels is not None) != bool(dataset.classes):
            said = f"data.name: {dataset.method!r} names {dataset.classes} classes"
            raise UserError(f"{said}, but its {name} split has {'no ' * (split.labels is None)}labels")
        tensors[f"{name}_images"] = split.images
        if split.labels is not None:
            tensors[f"{name}_labels"] = split.labels
    about: dict[str, object] = {"space": Space.fit(dataset.space, train.images).spec, "classes": dataset.classes}
    run.write("images", tensors, about)
    counts: dict[str, object] = {"train": len(train.images), "test": len(test.images)}
    if (exact := dataset.log_density(test.images)) is not None:
        # What no likelihood model can beat by more than chance: −log p of the test split under its own density.
        counts["test_bits_per_dim"] = float(-exact.mean() / (math.log(2) * test.images[0].numel()))
    return "ok", counts
