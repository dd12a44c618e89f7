"""The source documents' own figures of points in the plane, the exact closed form beside the trained network."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ddpm.condition import NOTHING
from ddpm.denoiser import Denoiser
from ddpm.exact import ExactDenoiser
from ddpm.figures.canvas import bare, save_figure
from ddpm.figures.points import ACCENT, HUES, INK, SHADE, Clouds
from ddpm.pipeline.grid import Cell, Grid, Network
from ddpm.pipeline.layout import Layout
from ddpm.samplers import EulerMaruyama, Heun, Langevin, PlainLangevin, Sampler
from ddpm.schedules import Geometric, Schedule
from ddpm.stages import sample as sampling

Tensor = torch.Tensor


def first(grid: Grid, **wanted: tuple[str, str]) -> Network:
    """The network that best fits what is wanted, axis → (parameter, value); among equals, the first of the grid."""

    def fits(network: Network) -> tuple[bool, int]:
        found = sum(grid.axis(axis, getattr(network, axis))[key] == value for axis, (key, value) in wanted.items())
        return network.labels == "unconditional", found

    return max(grid.networks.values(), key=fits)


def estimated_score(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """∇ log p(x_t) by a denoiser, −ε̂/σ: float64, of x's shape (B, D)."""
    return -denoiser(x.float(), t).eps.double() / denoiser.schedule.sigma(t)


def scores_figure(layout: Layout, grid: Grid, renderer: Clouds, path: Path) -> None:
    """∇ log p(x_t) beside the network's estimate of it, and its error, at two noise levels (Sedykh 2024, 001,
    figure 3.1).

    At the smallest level the network has hardly seen points where the density is low, and errs there; more noise fills
    those places.
    """
    network = first(grid, objective=("target", "score"), schedule=("method", "geometric"))
    denoiser = sampling.load_denoiser(layout.result("train", network.name))
    exact, schedule = ExactDenoiser(renderer.mixture, denoiser.schedule), denoiser.schedule
    spread = float(renderer.dataset.train.images.std(0).mean())
    times = [torch.ones((), dtype=torch.float64), schedule.time_at(torch.tensor(0.7 * spread))]
    figure, axes = plt.subplots(2, 3, figsize=(10.2, 6.7), layout="constrained")
    for row, t in zip(axes, times, strict=True):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))

        def learned(x: Tensor, t: Tensor = t) -> Tensor:
            return estimated_score(denoiser, x, t)

        def error(x: Tensor, t: Tensor = t) -> Tensor:
            truth = exact.score(x, t)
            return (learned(x, t) - truth).norm(dim=1) / truth.norm(dim=1)

        arrows = []
        for axis, score in zip(row[:2], (lambda x, t=t: exact.score(x, t), learned), strict=True):
            renderer.density(axis, alpha, sigma)
            arrows.append(renderer.over(score, 21))
        longest = arrows[0].norm(dim=-1).max()
        for axis, field in zip(row[:2], arrows, strict=True):
            renderer.arrows(axis, field, float(longest))
        picture = renderer.shade(
            renderer.window(row[2]), renderer.over(error, 121), cmap="RdYlBu_r", norm=LogNorm(0.03, 3)
        )
        figure.colorbar(picture, ax=row[2], shrink=0.85, ticks=[0.03, 0.1, 0.3, 1, 3], format="%g")
        row[0].set_ylabel(f"σ/α = {sigma / alpha:.2g}", fontsize=10)
    titles = (
        "the data's score ∇ log p(x)" if renderer.exact else "a kernel estimate's score ∇ log p(x)",
        f"the network's, {network.objective} · {network.schedule}",
        "its error, relative to the length of the score",
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    save_figure(figure, path)


def langevin_cells(grid: Grid) -> tuple[Cell, Cell] | None:
    """Two cells of one network that are sampled by plain and by annealed Langevin dynamics, where the grid has them."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in grid.runs.values():
        if cell.guidance == "none" or grid.axis("guidance", cell.guidance)["method"] == "none":
            method = grid.axis("sampler", cell.sampler)["method"]
            found.setdefault(grid.network(cell).name, {})[method] = cell
    both = [of for of in found.values() if {"plain-langevin", "langevin"} <= of.keys()]
    return (both[0]["plain-langevin"], both[0]["langevin"]) if both else None


def langevin_chains(
    grid: Grid, renderer: Clouds, cells: tuple[Cell, Cell] | None
) -> tuple[str, Schedule, tuple[Sampler, ...]]:
    """What the chains by the exact scores are named after, their schedule, and the plain and the annealed sampler:
    those of the cells, where there are any."""
    if cells:
        schedule = Schedule.make(grid.axis("schedule", cells[0].schedule))
        samplers = tuple(Sampler.make(grid.axis("sampler", cell.sampler)) for cell in cells)
        return grid.network(cells[0]).name, schedule, samplers
    spread = float(renderer.dataset.train.images.std(0).mean())
    geometric = Geometric(sigma_min=0.07 * spread, sigma_max=3.5 * spread)
    plain = PlainLangevin(300, step_size=geometric.sigma_min**2)
    return "langevin", geometric, (plain, Langevin(10, corrections=100, step_size=0.5 * geometric.sigma_min**2))


def langevin_figure(layout: Layout, grid: Grid, renderer: Clouds, samples: dict[str, Tensor], path: Path) -> None:
    """Independent points of the data beside what plain and annealed Langevin dynamics make of one start, with the share
    of every mode (Sedykh 2024, 001, figure 3.2): by the exact scores, and below by the network's where the grid has
    such cells.
    """
    cells = langevin_cells(grid)
    name, schedule, samplers = langevin_chains(grid, renderer, cells)
    real, exact = renderer.dataset.test.images, ExactDenoiser(renderer.mixture, schedule)
    walks = [list(sampling.chain(exact, s, name, torch.arange(len(real)), NOTHING, (2,))) for s in samplers]
    panels = [
        ("independent points", real),
        *zip(("Langevin", "annealed Langevin"), (w[-1] for w in walks), strict=True),
    ]
    if cells:
        panels.append(("the start of every chain", walks[0][0]))
        panels += [(kind, samples[c.name]) for kind, c in zip(("Langevin", "annealed Langevin"), cells, strict=True)]
    height = len(panels) // 3
    figure, axes = plt.subplots(
        height, 3, figsize=(9.6, 3.6 * height), squeeze=False, layout=ConstrainedLayoutEngine(h_pad=0.08)
    )
    for i, (axis, (title, points)) in enumerate(zip(axes.flat, panels, strict=True)):
        by = "" if i % 3 == 0 else ", exact score" if i < 3 else ", the network's score"
        renderer.density(axis)
        renderer.scatter(axis, points)
        axis.set_title(title + by, fontsize=10)
        axis.set_xlabel("" if i == 3 else renderer.shares(points), fontsize=9)
    save_figure(figure, path)


def trajectories_figure(layout: Layout, grid: Grid, renderer: Clouds, path: Path) -> None:
    """The reverse SDE and the probability-flow ODE from the same noise to data (Shariatian & Conforti 2025,
    003, "SDE-based generative model").

    Along the direction u in which the data vary most, uᵀx_t/√(α² + σ²) against t: shaded, the density that the forward
    process gives it; drawn, paths of the network; at the ends, the prior, and what many paths end in beside the density
    of the data.
    """
    network = first(grid, schedule=("method", "vp-sde"))
    denoiser, points = (
        sampling.load_denoiser(layout.result("train", network.name)),
        renderer.dataset.train.images.double(),
    )
    schedule, u = denoiser.schedule, torch.linalg.eigh(points.T.cov())[1][:, -1]
    u = u * (1 if u.sum() > 0 else -1)
    density, spread = renderer.mixture.along(u), points @ u
    low, high = min(-3.5, 1.1 * float(spread.min())), max(3.5, 1.1 * float(spread.max()))
    place = torch.linspace(low, high, 300, dtype=torch.float64)
    steps = min(200, schedule.steps), min(50, schedule.steps)
    figure, axes = plt.subplots(
        2,
        3,
        figsize=(10.5, 6.2),
        width_ratios=(0.8, 7, 1.4),
        sharey=True,
        layout=ConstrainedLayoutEngine(w_pad=0.02, wspace=0),
    )
    for row, (title, sampler) in zip(
        axes, (("reverse SDE", EulerMaruyama(steps[0])), ("probability-flow ODE", Heun(steps[1]))), strict=True
    ):
        times = sampler.times(schedule)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        scale = (alpha**2 + sigma**2).sqrt()
        columns = [density.log_density((place * c)[:, None], a, s) for c, a, s in zip(scale, alpha, sigma, strict=True)]
        field = torch.stack([(0.5 * (column - column.max())).exp() for column in columns], dim=1)
        row[1].pcolormesh(times, place, field, cmap=SHADE, vmin=0, vmax=1, shading="gouraud")
        index = torch.arange(renderer.shown)
        states = torch.stack(list(sampling.chain(denoiser, sampler, network.name, index, NOTHING, (2,)))).double()
        paths, hues = states @ u / scale[:, None], renderer.hue(states[-1])
        for i in range(24):
            row[1].plot(times, paths[:, i], color=HUES(float(hues[i])), linewidth=0.9)
        row[0].fill_betweenx(place, -torch.exp(-(place**2) / 2), 0, color=SHADE(255), linewidth=0)
        row[2].hist(paths[-1], 80, (low, high), density=True, orientation="horizontal", color=ACCENT, alpha=0.5)
        row[2].plot(density.log_density(place[:, None]).exp(), place, color=INK, linewidth=1)
        row[1].set(xlim=(schedule.steps, 0), ylim=(low, high))
        row[1].set_title(f"{title}: {sampler.method}, {sampler.steps} sampling steps", fontsize=10)
        for axis in row[::2]:
            bare(axis).set_frame_on(False)
        row[1].tick_params(left=False, labelleft=False)
        row[0].set_title("prior", fontsize=10)
        row[2].set_title("samples and density", fontsize=10)
    axes[1, 1].set_xlabel(f"t, from noise to data ({network.objective} · {network.schedule})", fontsize=9)
    save_figure(figure, path)
