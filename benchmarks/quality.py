"""CPU time to quality, ours beside its peers: python benchmarks/quality.py --data digits --folder results/quality

    python benchmarks/quality.py [--data digits mnist] [--only ours diffusers] [--first 8] [--budget 512]
                                 [--images N] [--folder FOLDER]

A network is trained for `--first` seconds of CPU time, another for twice as long, and so on to `--budget`, until its
FID is at most the target's multiple of the topline: one contestant costs at most twice the budget. Each is trained as
its own documentation does (batch, optimiser, learning rate, average), and its learning rate ends at 0 with its seconds.
All are judged alike: 25 steps of DDIM in float32, N images, the classifier's FID against the test split. Ours and
diffusers' networks predict ε on the linear schedule, and our DDIM draws from both; denoising-diffusion-pytorch keeps
its own v, sigmoid schedule and DDIM. What is finished stands in FOLDER/quality.json and is not done again: stop and
start it at will, at the cost of the run that was under way; run it several times at once, each with other --only.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peers import DenoisingDiffusionPytorch, Diffusers, Ours, configured, prepare
from torch import nn

from ddpm import networks
from ddpm.condition import NOTHING
from ddpm.datasets import dataset as data
from ddpm.denoiser import Denoiser
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.fid import Fid
from ddpm.objectives import Objective
from ddpm.pipeline import records
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.locks import held
from ddpm.pipeline.running import run_stage
from ddpm.samplers import DDIM
from ddpm.schedules import Schedule
from ddpm.stages.sample import chain

# Data → resolution, the overlay that has our own settings for it, N, and the target: a multiple of the topline.
DATA = {"digits": (8, (), 898, 2.0), "mnist": (28, ("workflow/config/mnist.yaml",), 1000, 8.0)}
STEPS = 25  # of DDIM
THEIR_BATCH = 16  # of diffusers' training tutorial, and the default of denoising-diffusion-pytorch's Trainer
DRAWN = 250  # images in a batch
MAKERS = {
    "ours": lambda resolution, grid, dataset: Ours(grid, dataset),
    "diffusers": lambda resolution, grid, dataset: Diffusers(resolution, dataset, THEIR_BATCH),
    DenoisingDiffusionPytorch.name: lambda resolution, grid, dataset: DenoisingDiffusionPytorch(
        resolution, dataset, THEIR_BATCH
    ),
}
Contestant = Ours | Diffusers | DenoisingDiffusionPytorch


def evaluator(grid: Grid, folder: Path) -> Evaluator:
    """The data and the classifier, made in the folder where they are not there yet."""
    for stage in ("data", "classifier"):
        run_stage(stage, *grid.job(stage, ""), str(folder), "cpu")
    layout = Layout(folder)
    spec = {"extractor": "classifier", "weights": ""}
    return Evaluator(data.read(layout.output("data")), spec, layout.output("classifier"))


def imported(unet: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A network of diffusers as ours are called."""
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        found = networks.build({"method": "diffusers", "path": folder}, shape, 1, 0)
        found.unet.load_state_dict(unet.state_dict())
    return found


def drawn(contestant: Contestant, measure: Evaluator, count: int, grid: Grid) -> torch.Tensor:
    """`count` images by DDIM, as they are stored."""
    space = measure.dataset.space
    if isinstance(contestant, DenoisingDiffusionPytorch):  # which draws between 0 and 1
        sizes = [min(DRAWN, count - start) for start in range(0, count, DRAWN)]
        return torch.cat([space.decode(2 * contestant.sample("ddim", size, STEPS) - 1) for size in sizes])
    shape = tuple(measure.dataset.shape)
    network = contestant.state.average if isinstance(contestant, Ours) else imported(contestant.network, shape)
    job = grid.job("train", next(iter(grid.networks)))[0]
    denoiser = Denoiser(network.eval(), Objective.make(job["objective"]), Schedule.make(job["schedule"]))
    images = []
    for index in torch.arange(count).split(DRAWN):
        for x in chain(denoiser, DDIM(steps=STEPS), job["name"], index, NOTHING, shape):
            pass
        images.append(space.decode(x))
    return torch.cat(images)


def judged(images: torch.Tensor, measure: Evaluator) -> dict[str, float]:
    """FID of stored images, and how many times that of as many fresh real ones it is."""
    fid, topline = Fid().compute(measure, Samples(images))["fid"], measure.topline(len(images), "by chance", False)[0]
    return {"fid": fid, "topline": topline, "ratio": fid / topline}


def trained(contestant: Contestant, budget: float) -> dict[str, float]:
    """Train for `budget` seconds of CPU time."""
    start, step, spent = time.process_time(), 0, 0.0
    while spent < budget:
        contestant.train(step, spent / budget)
        step, spent = step + 1, time.process_time() - start
    return {"seconds": spent, "steps": step, "images_seen": step * contestant.batch}


def finished(path: Path) -> dict[str, dict]:
    """What is done, by its name."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def contest(name: str, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Contestant → its runs, the shortest first."""
    resolution, overlays, images, target = DATA[name]
    grid, images = configured(resolution, "auto", *overlays), options.images or images
    measure, path = evaluator(grid, options.folder / name), options.folder / "quality.json"
    found: dict[str, list[dict]] = {}
    for who in options.only:
        found[who], budget = [], options.first
        while budget <= options.budget:
            key = f"{name} {who} {budget:g} s, {images} images"
            if key not in finished(path):
                try:
                    contestant = MAKERS[who](resolution, grid, measure.dataset)
                except ImportError:
                    print(f"{who}: left out, it is not installed")
                    break
                entry = {"budget": budget, "target": target} | trained(contestant, budget)
                entry |= judged(drawn(contestant, measure, images, grid), measure)
                with held(options.folder / "writing"):  # several processes fill the file
                    records.write_json(path, finished(path) | {key: entry | records.commit()})
            run = finished(path)[key]
            found[who].append(run)
            if run["ratio"] <= target:
                break
            budget *= 2
    return found


def table(name: str, found: dict[str, list[dict]]) -> str:
    """Markdown: every run, and when the target was reached."""
    lines = [
        f"**{name}**",
        "",
        "| | CPU seconds | steps | images seen | FID | × topline | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    said = []
    for who, runs in found.items():
        for run in runs:
            numbers = f"{run['seconds']:.1f} | {run['steps']} | {run['images_seen']} | {run['fid']:.3f}"
            lines.append(f"| {who} | {numbers} | {run['ratio']:.2f} | {(run.get('commit') or 'unknown')[:7]} |")
        if runs:
            last = runs[-1]
            reached = last["ratio"] <= last["target"]
            when = f"in {last['seconds']:.0f} s" if reached else f"not reached in {last['seconds']:.0f} s"
            said.append(f"{who}: FID ≤ {last['target']:g} × topline {when}.")
    return "\n".join([*lines, "", *said])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["digits"])
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS), help="contestants; all if left out")
    parser.add_argument("--first", type=float, default=8.0, help="CPU seconds of the shortest run")
    parser.add_argument("--budget", type=float, default=512.0, help="CPU seconds of the longest run")
    parser.add_argument("--images", type=int, default=0, help="N; 898 of digits, 1000 of MNIST if left out")
    parser.add_argument("--folder", type=Path, default=Path("results/quality"), help="where runs are kept")
    options = parser.parse_args()
    prepare("cpu", 1)
    for name in options.data:
        print(table(name, contest(name, options)), flush=True)


if __name__ == "__main__":
    main()
