"""Records and samples → pictures: what a reader sees before reading a number."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from PIL import Image
from safetensors.torch import load_file

from ddpm import data, noise, provenance
from ddpm.data import Data
from ddpm.grid import Cell, Grid
from ddpm.guidance import Guidance
from ddpm.layout import Layout
from ddpm.results import Results
from ddpm.samplers import Sampler
from ddpm.sampling import chain, draw_labels, load_denoiser
from ddpm.schedules import Schedule

Tensor = torch.Tensor

PICTURES = ("samples", "training", "forward", "denoising")


def mosaic(images: Tensor, columns: int, levels: int, scale: int = 1, gap: int = 1) -> np.ndarray:
    """Images (N, C, H, W) of grey levels in rows of `columns`, enlarged by `scale`, on grey; uint8 (H, W, 3)."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 96, dtype=np.uint8)
    grey = (images.double() * (255 / (levels - 1))).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(grey):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = picture
    return canvas.repeat(scale, 0).repeat(scale, 1)


def save_image(pixels: np.ndarray, path: Path) -> None:
    with provenance.atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def save_figure(figure: plt.Figure, path: Path) -> None:
    """A figure as PNG, without a date in it: the same bytes every time."""
    with provenance.atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _enlarge(size: int) -> int:
    """The whole factor by which pictures of `size` pixels are enlarged to be looked at."""
    return max(1, 48 // size)


def cell_grid(layout: Layout, cell: Cell, dataset: Data) -> Tensor:
    """The first 100 images of a cell, by label where it has labels; writes them beside the samples."""
    found = load_file(layout.samples(cell.name))
    images = found["images"][:100]
    if "labels" in found and len(images):
        images = images[found["labels"][:100].argsort(stable=True)]
    shown = images if len(images) else torch.zeros((1, *dataset.shape), dtype=torch.uint8)
    save_image(mosaic(shown, 10, dataset.levels, _enlarge(dataset.shape[1])), layout.cell(cell.name) / "samples.png")
    return images


def samples_figure(layout: Layout, grid: Grid, dataset: Data, grids: dict[str, Tensor], path: Path) -> None:
    """One strip of samples per cell with its FID beside it, real images on top, best first."""
    cells = [c for c in grid.runs.values() if c.seed == grid.config["seeds"][0]]
    rows = []
    for cell in cells:
        result = provenance.read_record(layout.record("fidelity", cell.name))["result"]
        rows.append(
            (
                result.get("fid", float("inf")),
                f"{cell.objective} · {cell.schedule} · {cell.guidance} · {cell.sampler}",
                result,
                grids[cell.name],
            )
        )
    rows.sort(key=lambda r: r[0])
    real = provenance.read_record(layout.record("fidelity", "real"))["result"]
    rows.insert(
        0,
        (
            0.0,
            "real training images",
            real,
            dataset.train.images[noise.permutation(len(dataset.train.images), "shown")],
        ),
    )
    figure, axes = plt.subplots(len(rows), 1, figsize=(11, 0.62 * len(rows) + 0.3), squeeze=False, layout="constrained")
    for axis, (_, label, result, images) in zip(axes[:, 0], rows, strict=True):
        # Every third image of a labelled grid, so that all classes show.
        strip = (
            images[torch.linspace(0, len(images) - 1, 24).long()]
            if label[0] != "r" and len(images) >= 24
            else images[:24]
        )
        axis.set_xticks([])
        axis.set_yticks([])
        sns.despine(ax=axis, left=True, bottom=True)
        if len(strip):
            axis.imshow(mosaic(strip, 24, dataset.levels, _enlarge(dataset.shape[1])), interpolation="nearest")
        score = f"FID {result['fid']:.2f}" if "fid" in result else "diverged"
        axis.set_ylabel(f"{label}\n{score}", rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(f"{grid.config['data']['name']}: samples, best FID first", fontsize=10)
    save_figure(figure, path)


def training_figure(layout: Layout, grid: Grid, path: Path) -> None:
    """Every network's loss against the images it has seen; the losses have different units and scales."""
    frames = []
    for network in grid.networks.values():
        frame = pd.read_csv(layout.loss(network.name))
        frame["loss"] = frame["loss"].rolling(5, min_periods=1).mean()
        frames.append(
            frame.assign(network=f"{network.objective} · {network.schedule} · {network.labels}", seed=network.seed)
        )
    curves = pd.concat(frames, ignore_index=True)
    sns.set_theme(style="whitegrid", context="paper")
    figure = sns.relplot(
        curves,
        x="images",
        y="loss",
        col="network",
        col_wrap=4,
        kind="line",
        estimator=None,
        units="seed",
        height=2.2,
        aspect=1.3,
        facet_kws={"sharey": False},
    )
    figure.set(yscale="log", xlabel="training images seen")
    figure.set_titles("{col_name}", size=8)
    save_figure(figure.figure, path)
    sns.reset_orig()


def forward_figure(grid: Grid, dataset: Data, path: Path) -> None:
    """x_t of one image at eleven times, a row per schedule (001, figure 6.1)."""
    image = dataset.scale(dataset.train.images[:1])
    names = list(dict.fromkeys(c.schedule for c in grid.runs.values()))
    strips, times = [], []
    for name in names:
        schedule = Schedule.make(grid.axis("schedule", name))
        t = torch.linspace(0, schedule.steps, 11, dtype=torch.float64).round()
        eps = noise.normal(noise.key("forward"), torch.zeros(1, dtype=torch.long), 0, dataset.shape)
        strips.append(dataset.quantise(schedule.noisy(image.expand(11, -1, -1, -1), eps, t.reshape(-1, 1, 1, 1))))
        times.append(t)
    _strips(path, strips, names, [f"t = {int(t)}" for t in times[0]], dataset, "The forward process x_t = α x0 + σ ε")


def denoising_figure(layout: Layout, grid: Grid, dataset: Data, path: Path) -> None:
    """x_t on its way from noise to image, eight images of the cell with the best FID (002, figure 1)."""
    scores = {
        n: provenance.read_record(layout.record("fidelity", n))["result"].get("fid", float("inf")) for n in grid.runs
    }
    cell = grid.runs[min(scores, key=scores.get)]
    network = grid.network(cell).name
    denoiser = Guidance.make(grid.axis("guidance", cell.guidance))(load_denoiser(layout, network))
    sampler = Sampler.make(grid.axis("sampler", cell.sampler))
    labels = draw_labels(dataset, network, 8) if denoiser.network.classes else None
    states = list(chain(denoiser, sampler, network, torch.arange(8), labels, dataset.shape))
    chosen = torch.linspace(0, len(states) - 1, 11).round().long().unique().tolist()
    strips = list(torch.stack([dataset.quantise(states[i]) for i in chosen], dim=1))
    times = [*sampler.times(denoiser.schedule).tolist()]
    _strips(
        path,
        strips,
        [f"image {i}" for i in range(8)],
        [f"t = {times[i]:.0f}" for i in chosen],
        dataset,
        f"From noise to images: {cell.name}",
    )


def _strips(path: Path, strips: list[Tensor], rows: list[str], columns: list[str], dataset: Data, title: str) -> None:
    """A labelled table of pictures."""
    figure, axes = plt.subplots(
        len(strips),
        len(columns),
        figsize=(0.9 * len(columns) + 0.6, 0.9 * len(strips) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for i, strip in enumerate(strips):
        for j, picture in enumerate(strip):
            axis = axes[i, j]
            axis.imshow(
                mosaic(picture[None], 1, dataset.levels, _enlarge(dataset.shape[1]), gap=0), interpolation="nearest"
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(columns[j], fontsize=8)
            if j == 0:
                axis.set_ylabel(rows[i], fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def write(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `figures` stage: results/figures/*.png, and samples.png in every cell's folder."""
    torch.set_num_threads(job["config"]["threads"])
    grid, folder, dataset = Grid(job["config"]), layout.root / "figures", data.read(layout.data)
    recorder = provenance.Recorder("figures", job, code, {})
    recorder.record["inputs"] = Results(grid, layout).inputs("figures")
    grids = {name: cell_grid(layout, cell, dataset) for name, cell in grid.runs.items()}
    samples_figure(layout, grid, dataset, grids, folder / "samples.png")
    training_figure(layout, grid, folder / "training.png")
    forward_figure(grid, dataset, folder / "forward.png")
    denoising_figure(layout, grid, dataset, folder / "denoising.png")
    cells = [layout.cell(name) / "samples.png" for name in grid.runs]
    recorder.finish(layout.record("figures"), [*(folder / f"{name}.png" for name in PICTURES), *cells])
