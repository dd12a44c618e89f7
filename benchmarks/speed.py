"""Images per second of training, sampling and likelihood beside other packages, in one run: python benchmarks/speed.py

    python benchmarks/speed.py [--resolutions 8 28] [--repeats 5] [--batch 64] [--steps 10] [--json FILE]

Every contestant computes a little, in turn, `--repeats` times, by CPU time of this process on one core, so that another
program's load falls on all alike; ratios are medians of those of single turns. A Markdown table is printed.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from peers import SAMPLERS, SIZES, builders, contestants, parameters, steps_of
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm.compute import has_bfloat16
from ddpm.pipeline import records

AGAINST = "diffusers"
TIMES = 40  # noise levels per image of the bound, as in config.yaml


def seconds(run: Callable) -> float:
    """CPU time of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(dtype: torch.dtype, budget: float) -> float:
    """FLOP/s of the fastest of some 3×3 convolutions, forward: what this machine gives to a network at best."""
    best = 0.0
    for channels, size, batch in ((64, 8, 64), (64, 16, 32), (128, 16, 16), (256, 16, 8)):
        x = torch.randn(batch, channels, size, size).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
        convolve = partial(F.conv2d, x, weight, padding=1)
        end = time.process_time() + budget / 4
        with torch.no_grad():
            convolve()
            while time.process_time() < end:
                best = max(best, 2 * 9 * channels**2 * size**2 * batch / max(seconds(convolve), 1e-9))
    return best


def flop(contestant: object, resolution: int) -> int:
    """FLOP of a forward pass of one image; a training step has about three times as many."""
    x = torch.randn(1, 1, resolution, resolution)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        contestant.network(x, torch.zeros(1))
    return counter.get_total_flops()


def in_turn(runs: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, `repeats` times each, one after the other; each has run once before."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            spent[name].append(seconds(run))
    return spent


def repeated(run: Callable, times: int) -> Callable:
    return lambda: [run() for _ in range(times)]


def workloads(found: dict, options: argparse.Namespace) -> dict[str, tuple[int, int, dict[str, Callable]]]:
    """Task → images of one turn, forward passes that one image takes, and what every contestant then runs."""
    batch, steps = options.batch, options.steps
    trained = {name: repeated(steps_of(contestant), options.turn) for name, contestant in found.items()}
    tasks = {"training": (batch * options.turn, 3, trained)}
    for method in SAMPLERS:
        able = {n: c for n, c in found.items() if c.sample(method, 1, steps) is not None}
        tasks[method] = batch, steps, {n: partial(c.sample, method, batch, steps) for n, c in able.items()}
    images = max(1, batch // 8)
    bound = {n: partial(c.likelihood, images, TIMES, 256) for n, c in found.items() if n == "ours, float32"}
    return tasks | {"likelihood": (images, 1 + TIMES, bound)}


def memory(resolution: int, batch: int, name: str) -> float:
    """The largest resident memory, in MiB, of a process that trains and samples one batch, its packages included."""
    torch.set_num_threads(1)
    contestant = builders(resolution, batch)[name]()
    contestant.train(0)
    contestant.sample("ddim", batch, 2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def measured(resolution: int, options: argparse.Namespace, peaks: dict[str, float]) -> tuple[list[dict], dict]:
    """Rows of the table of one resolution, and who is left out."""
    found, absent = contestants(resolution, options.batch)
    resident = {}
    for name in found if options.memory else ():  # each in a process of its own
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            resident[name] = pool.submit(memory, resolution, options.batch, name).result()
    rows = []
    for task, (images, passes, runs) in workloads(found, options).items():
        spent = in_turn(runs, options.repeats)
        for name, times in spent.items():
            contestant = found[name]
            # The bound is computed in float32, whatever else is.
            precision = "float32" if task == "likelihood" else contestant.precision
            rate, work = images / median(times), passes * flop(contestant, resolution)
            ratios = [a / b for a, b in zip(spent.get(AGAINST, ()), times, strict=False)]
            rows.append(
                {
                    "resolution": resolution,
                    "task": task,
                    "contestant": name,
                    "parameters": parameters(contestant.network),
                    "mflop": flop(contestant, resolution) / 1e6,
                    "images_per_second": rate,
                    "ratio": median(ratios) if ratios else None,
                    "ratio_range": [min(ratios), max(ratios)] if ratios else None,
                    "share_of_peak": rate * work / peaks[precision],
                    "peak_memory_mib": resident.get(name),
                }
            )
    return rows, absent


def _figures(value: float) -> str:
    """Three significant digits, written out."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):.0f}"


def table(found: dict) -> str:
    """Markdown."""
    lines = [
        f"| resolution | task | | images/s | × {AGAINST} (range) | share of peak | parameters | MFLOP | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        low, high = row["ratio_range"] or (None, None)
        ratio = f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})" if low else "–"
        resident = row["peak_memory_mib"]
        lines.append(
            f"| {row['resolution']}×{row['resolution']} | {row['task']} | {row['contestant']} "
            f"| {_figures(row['images_per_second'])} | {ratio} | {row['share_of_peak']:.0%} | {row['parameters']} "
            f"| {row['mflop']:.1f} | {f'{resident:.0f}' if resident else '–'} |"
        )
    for resolution, absent in found["absent"].items():
        lines += ["", *(f"Left out at {resolution}×{resolution}: {n}, {why}." for n, why in absent.items())]
    peaks = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in found["peak"].items())
    about = found["about"]
    lines += ["", f"Peak of one core, of convolutions: {peaks}. {about['hardware']}, torch {about['torch']}, load "]
    lines[-1] += f"{about['load'][0]:.1f} → {about['load'][1]:.1f}, batch {about['batch']}, {about['steps']} sampling "
    lines[-1] += f"steps, {about['repeats']} turns, commit {(about['commit'] or 'unknown')[:12]}."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--turn", type=int, default=4, help="optimiser steps of a turn of training")
    parser.add_argument("--batch", type=int, default=64, help="images at once, in training and sampling")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    budget = 0.4 * options.repeats
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bfloat16("cpu") else {})
    found: dict = {"peak": {name: peak(dtype, budget) for name, dtype in dtypes.items()}, "rows": [], "absent": {}}
    for resolution in options.resolutions:
        rows, absent = measured(resolution, options, found["peak"])
        found["rows"] += rows
        found["absent"][resolution] = absent
    about = {"hardware": records.hardware("cpu"), "torch": torch.__version__, "load": [load, os.getloadavg()[0]]}
    found["about"] = about | records.commit() | {k: getattr(options, k) for k in ("batch", "steps", "repeats", "turn")}
    if options.json:
        records.write_json(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
