"""What cost grows with (image size, batch, parameters, cells of the grid): python benchmarks/growth.py --folder FOLDER

    python benchmarks/growth.py [--sizes 8 16 32] [--batches 16 64 256] [--widths 16 32 64] [--cells 100 1000]

CPU seconds of one optimiser step and of one sampling step per image, one axis at a time about 8×8, a batch of 64 and a
width of 32; and those of planning an empty grid (`ddpm status`, `snakemake -n`). A Markdown table is printed; FOLDER
gets it as growth.json, and its picture as growth.png and growth.svg.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import parse
from peers import Ours, configured, parameters, prepare, random_data, steps_of
from speed import repeated, seconds

from ddpm.figures import canvas
from ddpm.pipeline import records

SIZE, BATCH, WIDTH = 8, 64, 32
TASKS = ("training", "sampling")


def cost(size: int, batch: int, width: int, steps: int) -> dict[str, float]:
    """Seconds per image of an optimiser step and of a sampling step, and how many parameters there are."""
    network = {"width": width, "multipliers": [1, 2], "attention": []}
    ours = Ours(configured(SIZE, "auto", network=network, batch=batch), random_data(size))
    step = steps_of(ours)
    step()  # warm-up
    training = seconds(repeated(step, steps)) / (steps * batch)
    ours.sample("ddim", batch, 1)
    sampling = seconds(lambda: ours.sample("ddim", batch, steps)) / (steps * batch)
    return {"training": training, "sampling": sampling, "parameters": parameters(ours.network)}


def planning(cells: int) -> dict[str, float]:
    """CPU seconds of planning a grid of which nothing is there."""
    found = {}
    with tempfile.TemporaryDirectory(prefix=f"growth{cells}-") as name:
        parse.configure(cells, Path(name))
        environment = os.environ | {"PYTHONPATH": str(parse.ROOT)}
        for task, command in (("status", ("ddpm", "status")), ("dry run", ("snakemake", "-n", "--quiet"))):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", *command], cwd=name, env=environment, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[task] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def measured(options: argparse.Namespace) -> dict[str, list[dict]]:
    """Axis → rows: the axis's value and its costs."""

    def along(values: list[int], what: str) -> list[dict]:
        at = {"size": SIZE, "batch": BATCH, "width": WIDTH, "steps": options.steps}
        return [{"value": value} | cost(**(at | {what: value})) for value in values]

    found = {"image size": along(options.sizes, "size"), "batch": along(options.batches, "batch")}
    found["parameters"] = along(options.widths, "width")
    for row in found["parameters"]:
        row["value"] = row["parameters"]
    found["cells"] = [{"value": cells} | planning(cells) for cells in options.cells]
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Markdown."""
    lines = ["| axis | value | training, ms per image | sampling step, ms per image |", "|---|---|---|---|"]
    for axis, rows in found.items():
        for row in rows if axis != "cells" else ():
            numbers = " | ".join(f"{1000 * row[task]:.3g}" for task in TASKS)
            lines.append(f"| {axis} | {row['value']} | {numbers} |")
    lines += ["", "| cells | `ddpm status`, s | `snakemake -n`, s |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['value']} | {r['status']:.1f} | {r['dry run']:.1f} |" for r in found["cells"])])


def draw(found: dict[str, list[dict]], folder: Path) -> None:
    """One panel per axis, both of its axes logarithmic, with a tick at each value that was measured."""
    with canvas.drawing(folder / "growth.png", 1, len(found), figsize=(3.2 * len(found), 2.8)) as (_, axes):
        for axis, (name, rows) in zip(axes.flat, found.items(), strict=True):
            values, factor = [row["value"] for row in rows], 1 if name == "cells" else 1000
            tasks = ("status", "dry run") if name == "cells" else TASKS
            for task, colour, mark in zip(tasks, canvas.COLOURS, canvas.MARKS, strict=False):
                axis.plot(values, [factor * row[task] for row in rows], color=colour, marker=mark, label=task)
            axis.set(xscale="log", xlabel=name, ylabel="CPU s" if name == "cells" else "CPU ms per image")
            axis.set_xticks(values, [f"{value:,}" if value < 1e5 else f"{value / 1e6:.2g} M" for value in values])
            axis.minorticks_off()
            canvas.plain(axis, "y")
            axis.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32], help="height and width of images")
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 64], help="channels at full resolution")
    parser.add_argument("--cells", nargs="+", type=int, default=[100, 1000], help="in hundreds")
    parser.add_argument("--steps", type=int, default=4, help="optimiser and sampling steps that are timed")
    parser.add_argument("--folder", type=Path, default=Path("results/growth"))
    options = parser.parse_args()
    prepare("cpu", 1)
    found = measured(options)
    records.write_json(options.folder / "growth.json", found)
    draw(found, options.folder)
    print(table(found))


if __name__ == "__main__":
    main()
