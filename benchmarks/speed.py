"""Images per second of training, sampling and likelihood beside other packages, in one run: python benchmarks/speed.py

    python benchmarks/speed.py [--device cpu] [--threads 1] [--resolutions 8 28] [--repeats 5] [--batch 64] [--steps 10]
                               [--json FILE]

Every contestant computes a little, in turn, `--repeats` times, so that another program's load falls on all alike: by
CPU time on one core, by wall time on several and on a GPU. Ratios are medians of those of single turns. A Markdown
table is printed.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from peers import SAMPLERS, SIZES, arguments, builders, clock, contestants, parameters, prepare, steps_of
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm.compute import has_bfloat16
from ddpm.pipeline import records

AGAINST = "diffusers"
SETTINGS = ("device", "threads", "batch", "steps", "repeats", "turn")
TIMES = 40  # noise levels per image of the bound, as in config.yaml
# What the peak is looked for in: channels, size and batch of 3×3 convolutions, and the order of products of matrices.
PEAK = {
    "cpu": (((64, 8, 64), (64, 16, 32), (128, 16, 16), (256, 16, 8)), (512,)),
    "cuda": (((256, 64, 64), (512, 32, 64)), (4096, 8192)),
}


def seconds(run: Callable, device: str = "cpu") -> float:
    """What a run takes on this device."""
    now = clock(device)
    start = now()
    run()
    return now() - start


def kernels(dtype: torch.dtype, device: str) -> list[tuple[int, Callable]]:
    """The FLOP of every kernel that the peak is looked for in, and the kernel."""
    found: list[tuple[int, Callable]] = []
    convolutions, products = PEAK[device]
    for channels, size, batch in convolutions:
        x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
        found.append((2 * 9 * channels**2 * size**2 * batch, partial(F.conv2d, x, weight, padding=1)))
    for order in products:
        a, b = torch.randn(2, order, order, device=device, dtype=dtype)
        found.append((2 * order**3, partial(torch.mm, a, b)))
    return found


def peak(dtype: torch.dtype, budget: float, device: str) -> float:
    """FLOP/s of the fastest of some large kernels: what this device gives to a network at best."""
    best, now, tried = 0.0, clock(device), kernels(dtype, device)
    with torch.no_grad():
        for flop, kernel in tried:
            kernel()
            end = now() + budget / len(tried)
            while now() < end:
                best = max(best, flop / max(seconds(kernel, device), 1e-9))
    return best


def flop(contestant: object, resolution: int) -> int:
    """FLOP of a forward pass of one image; a training step has about three times as many."""
    device = next(contestant.network.parameters()).device
    x = torch.randn(1, 1, resolution, resolution, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        contestant.network(x, torch.zeros(1, device=device))
    return counter.get_total_flops()


def in_turn(runs: dict[str, Callable], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every run, `repeats` times each, one after the other; each has run once before."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            spent[name].append(seconds(run, device))
    return spent


def repeated(run: Callable, times: int) -> Callable:
    return lambda: [run() for _ in range(times)]


def workloads(found: dict, options: argparse.Namespace) -> dict[str, tuple[int, int, dict[str, Callable]]]:
    """Task → images of one turn, forward passes that one image takes, and what every contestant then runs."""
    batch, steps = options.batch, options.steps
    trained = {name: repeated(steps_of(contestant), options.turn) for name, contestant in found.items()}
    tasks = {"training": (batch * options.turn, 3, trained)}
    for method in SAMPLERS:
        able = {name: contestant for name, contestant in found.items() if method in contestant.samplers}
        tasks[method] = batch, steps, {n: partial(c.sample, method, batch, steps) for n, c in able.items()}
    images = max(1, batch // 8)
    bound = {n: partial(c.likelihood, images, TIMES, 256) for n, c in found.items() if n == "ours, float32"}
    return tasks | {"likelihood": (images, 1 + TIMES, bound)}


def memory(resolution: int, batch: int, name: str, device: str, threads: int) -> float:
    """The largest memory, in MiB, of a process that trains and samples one batch: what it holds, its packages included;
    on a GPU what its tensors hold there. Each is the only one in its process."""
    prepare(device, threads)
    contestant = builders(resolution, batch, device)[name]()
    contestant.train(0)
    contestant.sample("ddim", batch, 2)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return records.peak_memory_mb()


def measured(resolution: int, options: argparse.Namespace, peaks: dict[str, float]) -> tuple[list[dict], dict]:
    """Rows of the table of one resolution, and who is left out."""
    device = options.device
    found, absent = contestants(resolution, options.batch, device)
    resident = {}
    for name in found if options.memory else ():  # each in a process of its own
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            what = memory, resolution, options.batch, name, device, options.threads
            resident[name] = pool.submit(*what).result()
    rows = []
    for task, (images, passes, runs) in workloads(found, options).items():
        spent = in_turn(runs, options.repeats, device)
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
    lines += ["", f"Peak, of convolutions and products of matrices: {peaks}. {about['hardware']} ({about['device']}, "]
    lines[-1] += f"CPU threads: {about['threads']}), torch {about['torch']}, load {about['load'][0]:.1f} → "
    lines[-1] += f"{about['load'][1]:.1f}, batch {about['batch']}, {about['steps']} sampling "
    lines[-1] += f"steps, {about['repeats']} turns, commit {(about['commit'] or 'unknown')[:12]}."
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--resolutions", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--turn", type=int, default=4, help="optimiser steps of a turn of training")
    parser.add_argument("--batch", type=int, default=64, help="images at once, in training and sampling")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers too")
    options = parser.parse_args()
    prepare(options.device, options.threads)
    load = os.getloadavg()[0]
    budget = 0.4 * options.repeats
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bfloat16(options.device) else {})
    peaks = {name: peak(dtype, budget, options.device) for name, dtype in dtypes.items()}
    found: dict = {"peak": peaks, "rows": [], "absent": {}}
    for resolution in options.resolutions:
        rows, absent = measured(resolution, options, found["peak"])
        found["rows"] += rows
        found["absent"][resolution] = absent
    about = {"hardware": records.hardware(options.device), "torch": torch.__version__}
    about["load"] = [load, os.getloadavg()[0]]
    found["about"] = about | records.commit() | {key: getattr(options, key) for key in SETTINGS}
    if options.json:
        records.write_json(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
