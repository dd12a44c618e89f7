"""What chance alone does to FID: python benchmarks/resampling.py [RESULTS]

A perfect sampler of the training half draws from it with replacement. Its FID over the topline, once with classes as
they come and once with each class as often as in the training half, is what a model that has learnt everything gets at
this number of images. Needs a run's data and classifier (`snakemake --cores 2 results/table.csv`).
"""

import sys
from pathlib import Path

import torch

from ddpm import config
from ddpm.data import reference
from ddpm.fidelity import Yardstick, frechet, statistics
from ddpm.layout import Layout

ROOT, DRAWS = Path(__file__).parent.parent, 200


def main() -> None:
    """Mean and spread over `DRAWS` resamplings."""
    grid = config.check(config.read(ROOT / "config.yaml"))
    layout = Layout(Path(sys.argv[1] if len(sys.argv) > 1 else grid.results))
    job, _ = grid.job("fidelity", "real")
    yardstick = Yardstick(layout, job["fidelity"], "cpu")
    train, count, rng = yardstick.dataset.train, job["images"], torch.Generator().manual_seed(0)
    features = yardstick.extractor(train.images)
    real = yardstick.of("test", False)
    topline = frechet(yardstick.statistics(reference(yardstick.dataset, "train", count), False), real)
    classes = [torch.nonzero(train.labels == label)[:, 0] for label in train.labels.unique()]
    sizes = torch.tensor([len(c) for c in classes]) * count // len(train.labels)

    def draw(of: torch.Tensor, n: int) -> torch.Tensor:
        return of[torch.randint(len(of), (n,), generator=rng)]

    everything = torch.arange(len(train.labels))
    for name, sample in {
        "with replacement": lambda: draw(everything, count),
        "and the classes held fixed": lambda: torch.cat([draw(c, int(n)) for c, n in zip(classes, sizes, strict=True)]),
    }.items():
        found = torch.tensor([frechet(statistics(features[sample()]), real) / topline for _ in range(DRAWS)])
        print(f"{name:32} {found.mean():.2f} ± {found.std():.2f} × topline, of {DRAWS} draws")


if __name__ == "__main__":
    main()
