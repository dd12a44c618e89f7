"""Records and samples → pictures: what a reader sees before reading a number."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ddpm import rng
from ddpm.cascade import Cascade
from ddpm.condition import Condition, LowResolution
from ddpm.datasets import dataset as data
from ddpm.denoiser import Denoiser
from ddpm.figures import plane
from ddpm.figures.canvas import table
from ddpm.figures.charts import comparison_figure, guidance_figure, seconds_figure, steps_figure
from ddpm.figures.curves import bound_figure, schedules_figure, training_figure
from ddpm.figures.images import Images
from ddpm.figures.points import Clouds
from ddpm.figures.rows import Row, best_first, ceilings, ranking
from ddpm.networks.super_resolution import enlarged
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.layout import SOME, Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import Outcome, Run
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.stages.cascade import condition_of, load, small_images
from ddpm.stages.sample import chain, computed, draw_labels, noise

Tensor = torch.Tensor
Renderer = Images | Clouds


def samples_of(layout: Layout, cell: Cell) -> Tensor:
    """The images of a cell, the first hundred by label where they have labels."""
    found = load_file(layout.output("sample", cell.name))
    images, labels = found["images"], found.get("labels")
    if labels is None or not len(images):
        return images
    return torch.cat([images[:100][labels[:100].argsort(stable=True)], images[100:]])


def scores(layout: Layout, grid: Grid) -> dict[str, Row | None]:
    """The first cell of every row → the row, the best first; None where a seed of it has diverged.

    What stands for a row is its first seed, never its best, and a row's place is that of the mean over its seeds.
    """
    name, _, sign = ranking(grid)
    found = {row.cells[0].name: row for row in best_first(layout, grid, name, sign) if row.cells}
    firsts = [runs[0] for cells in grid.rows.values() if (runs := [cell.name for cell in cells if not cell.reason])]
    return found | {cell: None for cell in firsts if cell not in found}


def samples_figure(layout: Layout, grid: Grid, renderer: Renderer, samples: dict[str, Tensor], path: Path) -> None:
    """Samples of every row's first seed with the row's mean beside them, real images on top, best first."""
    train = renderer.dataset.train.images
    order = rng.permutation(len(train), "shown")[: len(next(iter(samples.values())))]
    key, title, _ = ranking(grid)
    real = [f"{title} {of[key]:.3g} ({kind})" for kind, of in ceilings(layout).items()]
    rows = [("real training data", "\n".join(real), train[order])]
    for name, row in scores(layout, grid).items():
        score = f"{title} {row.number[key]:.3g} = {row.over:.3g} × real" if row else "diverged"
        rows.append((renderer.label(grid.runs[name].parts), score, samples[name]))
    several = len(grid.config["seeds"]) > 1
    means = f"samples of the first seed, mean {title} of all seeds" if several else f"samples and their {title}"
    renderer.overview(rows, f"{grid.config['data']['name']}: {means}, by multiples of real data's", path)


def shrunk(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """x_t/√(α² + σ²), whose size is that of the data or of a standard normal at every t: itself for VP schedules."""
    return x * float((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).rsqrt())


def forward_figure(grid: Grid, renderer: Renderer, path: Path) -> None:
    """x_t of one image, or of many points, at eleven times; a row per schedule (Sedykh 2024, 001, figure 6.1)."""
    dataset = renderer.dataset
    x0 = dataset.space.encode(dataset.train.images[: renderer.shown])
    eps = rng.normal(rng.key("forward"), torch.arange(len(x0)), 0, dataset.shape)
    names = list(dict.fromkeys(c.schedule for c in grid.runs.values()))
    strips = []
    for name in names:
        schedule = Schedule.make(grid.axis("schedule", name))
        times = torch.linspace(0, schedule.steps, 11, dtype=torch.float64).round()
        states = torch.stack([shrunk(schedule, schedule.noisy(x0, eps, t), t) for t in times])
        strips.append(renderer.strips(states, 0)[0][0])
    columns = [f"t = {part}/10 T" if part else "t = 0" for part in range(11)]
    title = "The forward process x_t = α x0 + σ ε, divided by √(α² + σ²)"
    table(path, strips, names, columns, renderer.draw, title, renderer.size)


def redrawn(
    layout: Layout, cell: str, job: dict, dataset: data.Data, count: int
) -> tuple[Denoiser, Sampler, Condition, list[Tensor]]:
    """The first images of a cell sampled again: its denoiser, sampler and condition, and x_T and x after every step."""
    denoiser, sampler = load(job, layout.parents("sample", cell, job)), Sampler.make(job["sampler"])
    network, index = noise(job), torch.arange(count)
    labels = draw_labels(dataset, network, count) if denoiser.network.classes or "guide" in job else None
    computed(denoiser, sampler, job["compute"], dataset.space, "cpu")
    condition = condition_of(denoiser, sampler, index, Condition(labels))
    return denoiser, sampler, condition, list(chain(denoiser, sampler, network, index, condition, dataset.shape))


def denoising_figure(layout: Layout, grid: Grid, renderer: Renderer, path: Path) -> None:
    """x̂0 on the way from noise to data, in the first seed of the row with the best mean: progressive generation (Ho et
    al. 2020, figure 6; 002, figure 1). The last column is what is sampled."""
    cell = next(iter(scores(layout, grid)))
    job = grid.job("sample", cell)[0]
    if "autoencoder" in job["model"]:
        renderer = Images(data.read(layout.output("data"), layout.output("autoencoder")))
    denoiser, sampler, condition, states = redrawn(layout, cell, job, renderer.dataset, renderer.shown)
    times, chosen = sampler.times(denoiser.schedule), torch.linspace(0, len(states) - 1, 11).round().long().unique()
    last = len(states) - 1
    seen = [states[i] if i == last else denoiser(states[i], times[i], condition).x0 for i in chosen]
    columns = [f"x̂0 at t = {times[i]:.0f}" if i < last else "sample" for i in chosen]
    title = f"Progressive generation: {cell}"
    table(path, *renderer.strips(torch.stack(seen), -1), columns, renderer.draw, title, renderer.size)


def cascade_figure(layout: Layout, grid: Grid, renderer: Images, path: Path) -> None:
    """The stages of the cascade with the best mean, in its first seed: what its first network samples, what the second
    one is shown of it, x̂0 on the way, and what is sampled (Ho et al. 2022; Sedykh 2024, 001, figures 5.1 and 5.2)."""
    cell = next(name for name in scores(layout, grid) if grid.base_network(grid.runs[name]))
    job, dataset = grid.job("sample", cell)[0], renderer.dataset
    denoiser, sampler, condition, states = redrawn(layout, cell, job, dataset, renderer.shown)
    assert isinstance(denoiser, Cascade) and isinstance(condition, LowResolution) and condition.image is not None
    z = small_images(denoiser, sampler, torch.arange(renderer.shown), condition)
    times, chosen = sampler.times(denoiser.schedule), torch.linspace(0, len(states) - 1, 5).round().long()[:-1].unique()
    seen = {f"base sample\n{z.shape[2]} × {z.shape[3]}": z, "enlarged": enlarged(z, dataset.shape)}
    seen |= {f"with noise,\ns = {float(denoiser.time):.0f}": enlarged(condition.image, dataset.shape)}
    seen |= {f"x̂0 at\nt = {times[i]:.0f}": denoiser(states[i], times[i], condition).x0 for i in chosen}
    seen |= {f"sample\n{dataset.shape[1]} × {dataset.shape[2]}": states[-1]}
    strips = list(zip(*map(dataset.space.decode, seen.values()), strict=True))
    rows = [f"image {i}" for i in range(len(strips))]
    table(path, strips, rows, list(seen), renderer.draw, f"A cascade of two networks: {cell}", renderer.size)


def neighbours_figure(
    layout: Layout, grid: Grid, renderer: Images, samples: dict[str, Tensor], path: Path, count: int = 12
) -> None:
    """Samples of the first seed of the row with the best mean, and below each the training images that are nearest to
    it in grey levels (L2)."""
    name = next(iter(scores(layout, grid)))
    few = samples[name][:100]  # which may be sorted by label
    train = renderer.dataset.train.images
    shown = few[torch.linspace(0, len(few) - 1, min(len(few), count)).long()]
    distance = torch.cdist(shown.flatten(1).float(), train.flatten(1).float())
    nearest = train[distance.topk(3, largest=False).indices.T]
    rows = ["sample", "nearest", "second", "third"]
    columns = [f"{d:.1f}" for d in distance.amin(1).tolist()]
    title = f"Nearest training images, with the L2 distance of the first in grey levels: {name}"
    table(path, [shown, *nearest], rows, columns, renderer.draw, title, renderer.size)


def write(run: Run) -> Outcome:
    """The `figures` stage: results/figures/*.png, and samples.png in every cell's folder."""
    torch.set_num_threads(run.job["config"]["threads"])
    layout, grid = Layout(run.results), Grid(run.job["config"])
    folder, dataset = layout.root / "figures", data.read(layout.output("data"))
    run.recorder.record["inputs"] = Results(grid, layout).inputs("figures")
    run.files = layout.pictures(grid.pictures, grid.runs)
    for path in {*layout.pictures(SOME, [])} - {*run.files}:  # of a former configuration
        path.unlink(missing_ok=True)
    renderer = Images(dataset) if dataset.space.images else Clouds(dataset, grid.job("data")[0]["data"])
    samples = {name: samples_of(layout, cell) for name, cell in grid.runs.items()}
    for name, path in zip(grid.runs, layout.pictures([], grid.runs), strict=True):
        renderer.cell(samples[name], path)
    metric, title, _ = ranking(grid)
    comparison_figure(layout, grid, metric, title, folder / "comparison.png")
    if "steps" in grid.pictures:
        steps_figure(layout, grid, metric, title, folder / "steps.png")
    if "guidance" in grid.pictures:
        guidance_figure(layout, grid, metric, title, folder / "guidance.png")
    if "seconds" in grid.pictures:
        seconds_figure(layout, grid, metric, title, folder / "seconds.png")
    if "bound" in grid.pictures:
        bound_figure(layout, grid, folder / "bound.png")
    schedules_figure(grid, folder / "schedules.png")
    samples_figure(layout, grid, renderer, samples, folder / "samples.png")
    training_figure(layout, grid, folder / "training.png")
    forward_figure(grid, renderer, folder / "forward.png")
    denoising_figure(layout, grid, renderer, folder / "denoising.png")
    if isinstance(renderer, Images):
        neighbours_figure(layout, grid, renderer, samples, folder / "neighbours.png")
        if "cascade" in grid.pictures:
            cascade_figure(layout, grid, renderer, folder / "cascade.png")
    else:
        plane.scores_figure(layout, grid, renderer, folder / "scores.png")
        plane.langevin_figure(layout, grid, renderer, samples, folder / "langevin.png")
        plane.trajectories_figure(layout, grid, renderer, folder / "trajectories.png")
    return "ok", {}
