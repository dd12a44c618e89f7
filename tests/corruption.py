"""Random corruptions of a finished tiny tree, each followed by at most two runs: the same bytes, every one named.

    python tests/corruption.py [TRIALS] [--seed SEED] [--snakemake]

Every trial copies a finished tree (one in four times a tree that keeps the results in `replaced/` which are asked for,
or one whose training was interrupted), corrupts one thing in it, half of the time takes a later result away as well, so
that a job must read what is there, and runs, verifies, and runs again where that is needed. A run is what Snakemake
does: the jobs that `Results` would run, in order, until one fails. --snakemake lets Snakemake itself do it, on a tree
that is corrupted in six places at once.
"""

import argparse
import functools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from damage import GONE, KINDS, WEIGHTS, hits, known, names, paired, unread  # beside this file
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from project import ROOT, copy_project, snakemake  # beside this file

from ddpm import cli
from ddpm.pipeline import config, locks, records, running, status
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.hashes import flaws
from ddpm.pipeline.layout import CHARTS, Layout
from ddpm.pipeline.records import canonical
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES

# What the tables and the results are, byte for byte; records and costs differ from run to run in their times.
SAME = ("*.safetensors", "*.csv", "*.md", "*.png")
UNREAD = "nobody: never read, and removed"
TRAINED = "learned/linear/unconditional/seed0"


def grid(**sections: dict) -> Grid:
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    return config.check(config.merge(read, sections))


# ---- runs --------------------------------------------------------------------------------------------------


def forked(work: Callable[[], int | None]) -> tuple[int, str]:
    """Exit status and output of a function in a process of its own, which need not load torch again."""
    with tempfile.TemporaryFile() as said:
        if not (pid := os.fork()):
            code = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
                code = work() or 0
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, code = os.waitpid(pid, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(code), said.read().decode(errors="replace")


def jobs(results: Results) -> dict[tuple[str, str], list[str]]:
    """What Snakemake would run, in order: the arguments of its `ddpm job`."""
    of, found = results.grid, {}
    todo = [job for job in results.todo if job[0] not in AGGREGATES]
    marks = [names[0] for batch, names in of.batches.items() if results.layout.measured(batch) in results.unmarked]
    for stage, name in [*todo, *(("fidelity", name) for name in marks), *results.todo]:
        if stage == "fidelity":
            batch = of.batch_of[name]
            job, code = of.batch(batch)
            found.setdefault((stage, batch), ["--job", canonical(job), "--code", code, "--batch", batch])
        else:
            job, code = of.job(stage, name)
            found.setdefault((stage, name), ["--job", canonical(job), "--code", code])
    return found


class Here:
    """Runs in processes that are forked from this one."""

    def __init__(self, folder: Path):
        self.root = folder / "results/tiny"
        self.grid = grid()
        self.results = lambda: Results(self.grid, Layout(self.root))

    def run(self, of: Grid | None = None) -> tuple[int, str]:
        def work() -> int:
            # Nobody else is here: a lock that nothing tells of is soon taken for dead.
            running.held = functools.partial(locks.held, beat=0.1, stale=0.5)
            results = Results(of or self.grid, Layout(self.root))
            print(*status.plan_lines(results), sep="\n")
            for (stage, name), arguments in jobs(results).items():
                print(f"rule {stage}: {' '.join(map(str, written(results.layout, stage, name)))}", flush=True)
                if code := cli.main(["job", stage, *arguments, "--results", str(self.root), "--device", "cpu"]):
                    return code
            return 0

        return forked(work)

    def verify(self) -> tuple[int, str]:
        def work() -> int:
            found = list(map(str, flaws(self.results())))
            print(*found, sep="\n")
            return bool(found)

        return forked(work)


def written(layout: Layout, stage: str, name: str) -> list[Path]:
    """What Snakemake says that a job writes."""
    if stage == "fidelity":
        return [layout.measured(name)]
    return [*layout.outputs(stage, name), layout.record(stage, name)]


class Snakemake(Here):
    """Runs by Snakemake, in a copy of the project."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folder = folder
        if not (folder / "Snakefile").exists():
            copy_project(folder)

    def run(self, of: Grid | None = None) -> tuple[int, str]:
        done = snakemake(self.folder)
        logs = [path.read_text() for path in sorted((self.root / "logs").rglob("*.log")) if path.is_file()]
        return done.returncode, done.stdout + done.stderr + "".join(logs)

    def verify(self) -> tuple[int, str]:
        call = [sys.executable, "-m", "ddpm", "status", "--hash", "--configfile", "tests/tiny.yaml"]
        done = subprocess.run(call, cwd=self.folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


# ---- trees -------------------------------------------------------------------------------------------------


def finished(folder: Path) -> Path:
    code, said = Here(folder).run()
    assert code == 0, said
    return folder


def replaced(done: Path, folder: Path) -> Path:
    """What the configuration asks for was replaced, and is kept."""
    shutil.copytree(done, folder, symlinks=True)
    other = grid(guidances={"cfg-w1": {"weight": 2.0}}, samplers={"ancestral": {"steps": 5}})
    code, said = Here(folder).run(other)
    assert code == 0, said
    return folder


def interrupted(done: Path, folder: Path) -> Path:
    """A training ended with a checkpoint, and the one before it, but without a result; its lock is there."""
    shutil.copytree(done, folder, symlinks=True)
    layout = Here(folder).results().layout
    for path in (layout.record("train", TRAINED), *layout.outputs("train", TRAINED)):
        path.unlink()

    def work() -> None:
        from ddpm.stages import train as training

        rate = training.learning_rate

        def stopping(step: int, *rest: object) -> float:
            if step == 20:
                os._exit(0)
            return rate(step, *rest)

        training.learning_rate = stopping
        running.run_stage("train", *grid().job("train", TRAINED), str(layout.root), "cpu", checkpoint_seconds=0.0)

    code, said = forked(work)
    assert code == 0 and layout.checkpoint("train", TRAINED).exists(), said
    return folder


def content(root: Path) -> dict[str, bytes]:
    """The bytes of everything that must be the same."""
    paths = (path for pattern in SAME for path in root.rglob(pattern))
    kept = {path.relative_to(root): path for path in paths}
    return {
        str(name): path.read_bytes()
        for name, path in kept.items()
        if name.parts[0] not in ("replaced", "work") and name.name != "costs.csv" and path.is_file()
    }


# ---- trials ------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """One corruption, of a path below the results, and what came of it; `redo` is a record that is deleted as well."""

    tree: str
    kind: str
    path: str
    redo: str = ""
    runs: int = 0
    named: str = ""
    wrong: str = ""
    seconds: float = 0.0
    said: str = ""

    def __str__(self) -> str:
        told = f"{self.tree:11} {self.kind:8} {self.path}{' and ' + self.redo + ' deleted' if self.redo else ''}"
        return f"{told}: {self.wrong or f'{self.runs} runs, named by {self.named}'} ({self.seconds:.0f} s)"


def drawn(trees: dict[str, Path], rng: random.Random) -> Trial:
    """A corruption at random."""
    tree = rng.choices(list(trees), [3, 1, 1][: len(trees)])[0]
    kind = rng.choices(list(KINDS), [WEIGHTS.get(name, 1) for name in KINDS])[0]
    at = Here(trees[tree])
    candidates = hits(at.root)
    if tree != "finished" and rng.random() < 0.7:
        within = {"replaced": "replaced", "interrupted": "work"}[tree]
        candidates = [p for p in candidates if p.relative_to(at.root).parts[0] == within]
    hit, redo = rng.choice([p for p in candidates if p.stat().st_size > 1]), ""
    if rng.random() < 0.5:  # some later job has to read what is there
        later = rng.choice([job for job in at.grid.jobs if job[0] != "data"])
        if paired(hit.relative_to(at.root)):
            later = "table", ""
        taken = Layout(at.root).record(*later)
        # Without its record nothing is known of an output, nor of the mark of its batch.
        marked = later[0] == "fidelity" and hit.relative_to(at.root).parts[0] == "fidelity"
        if taken.is_file() and not marked and hit not in (taken, *Layout(at.root).outputs(*later)):
            redo = str(taken.relative_to(at.root))
    return Trial(tree, kind, str(hit.relative_to(at.root)), redo)


def carry_out(found: Trial, trees: dict[str, Path], place: Path, rng: random.Random) -> Trial:
    """Corrupt a copy, and run until it is what it was."""
    begun = time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trees[found.tree], place, symlinks=True)
    heal([found], Here(place), content(trees["finished"] / "results/tiny"), rng)
    found.seconds = time.monotonic() - begun
    return found


def heal(trials: list[Trial], run: Here, wanted: dict[str, bytes], rng: random.Random) -> None:
    """Corrupt a tree, here and there, and run until it is what it was: one run more than there are corruptions at most.

    A run stops where it finds something corrupt, so that another one finds the next.
    """
    same = {}
    for found in trials:
        hit = run.root / found.path
        before = known(hit)
        changed = KINDS[found.kind](hit, rng) or hit
        found.path = str(changed.relative_to(run.root))
        if found.redo and (run.root / found.redo).is_file():
            (run.root / found.redo).unlink()
        same[found.path] = found.kind in ("flip", "swap") and before is not None and before == known(hit)
    said, runs, everything, first = {"run": "", "verify": ""}, 0, "", ""
    for number in range(1, 2 + len(trials)):
        code, told = run.run()
        dirty, checked = run.verify()
        first = first or told  # before anything was verified
        said["run"] += told
        said["verify"] += checked
        everything += f"---- run {number}: exit {code}\n{told}\n---- verify: exit {dirty}\n{checked}\n"
        results = run.results()
        if not (code or dirty or results.todo or results.unmarked):
            runs = number
            break
    now = content(run.root)
    other = sorted(k for k in wanted.keys() | now.keys() if wanted.get(k) != now.get(k))
    for found in trials:
        by = [who for who, text in said.items() if names(run.root, found.path, text, found.kind in GONE)]
        nobody = "nobody: the same content" if same[found.path] else UNREAD if unread(Path(found.path)) else ""
        found.runs, found.said, found.named = runs, everything, " and ".join(by) or nobody
        if not runs:
            found.wrong = f"NOT HEALED: exit {code}, verify {dirty}"
        elif other:
            found.wrong = f"OTHER BYTES: {', '.join(other)}"
        elif not found.named:
            found.wrong = "NOT NAMED"
        elif found.redo == "table.json" and paired(Path(found.path)) and not names(run.root, found.path, first, True):
            found.wrong = "READ UNSEEN"


def together(tree: Path, place: Path, rng: random.Random, count: int) -> list[Trial]:
    """Several corruptions of one tree, healed by Snakemake: no two in one folder, so that none hides another."""
    begun = time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tree, place, symlinks=True)
    found: dict[Path, Trial] = {}
    while len(found) < count:
        one = drawn({"finished": tree}, rng)
        one.redo = ""
        if one.kind != "file":
            found.setdefault(Path(one.path).parent, one)
    heal(list(found.values()), Snakemake(place), content(tree / "results/tiny"), rng)
    for one in found.values():
        one.seconds = (time.monotonic() - begun) / count
    return list(found.values())


def sketch(*drawn: object) -> None:
    """A picture of one pixel that holds its name, and its twin as SVG."""
    about = PngInfo()
    about.add_text("name", drawn[-1].name)
    with records.atomic(drawn[-1]) as temporary:
        Image.new("L", (1, 1)).save(temporary, "PNG", pnginfo=about)
    if drawn[-1].stem in CHARTS:
        drawn[-1].with_suffix(".svg").write_text(f"<svg><title>{drawn[-1].stem}</title></svg>")


@contextmanager
def sketches() -> Iterator[None]:
    """Of the pictures only each cell's samples are drawn: the others would take longer than all else."""
    from ddpm import figures

    names = [f"{picture}_figure" for picture in (*CHARTS, "samples", "forward", "denoising", "neighbours")]
    real = {name: getattr(figures, name) for name in names}
    try:
        for name in names:
            setattr(figures, name, sketch)
        yield
    finally:
        for name, function in real.items():
            setattr(figures, name, function)


def trees(folder: Path) -> dict[str, Path]:
    """A finished tree, one with kept results, one with an interrupted training; make them within `sketches`."""
    import torch

    torch.set_num_threads(1)
    done = finished(folder / "finished")
    return {
        "finished": done,
        "replaced": replaced(done, folder / "kept"),
        "interrupted": interrupted(done, folder / "stopped"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one trial, and all that was said")
    parser.add_argument("--snakemake", action="store_true", help="let Snakemake run the jobs")
    args = parser.parse_args()
    begun, found = time.monotonic(), []
    with sketches(), tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "trial"
        if args.snakemake:
            tree = copy_project(Path(temporary) / "tree")
            assert snakemake(tree).returncode == 0
        else:
            made = trees(Path(temporary))
        print(f"trees in {time.monotonic() - begun:.0f} s", flush=True)
        for number in range(0, args.trials, 6 if args.snakemake else 1) if args.only is None else [args.only]:
            rng = random.Random(f"{args.seed} {number}")
            some = together(tree, place, rng, 6) if args.snakemake else [carry_out(drawn(made, rng), made, place, rng)]
            found += some
            print("\n".join(f"{number:4} {one}" for one in some), flush=True)
            if any(one.wrong for one in some) or args.only is not None:
                print(some[0].said, flush=True)
    wrong = sum(bool(one.wrong) for one in found)
    print(f"{len(found)} corruptions, seed {args.seed}, {time.monotonic() - begun:.0f} s: {wrong} wrong")
    for what in ("kind", "tree", "runs", "named"):
        print(f"  {what}: " + ", ".join(f"{n} {k}" for k, n in Counter(getattr(o, what) for o in found).most_common()))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
