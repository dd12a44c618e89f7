"""The command `ddpm`: one cell's stages without Snakemake, the tables, and a check of the configuration.

Snakemake's jobs run the same stages: they pass the job and its code's fingerprint as text instead of a name.
"""

import argparse
import difflib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ddpm import __version__
from ddpm.errors import UserError
from ddpm.pipeline import audit, config, hashes, history, machine, profile, progress, project, records, schema, status
from ddpm.pipeline.checkpoint import SECONDS
from ddpm.pipeline.fingerprints import fingerprint
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.registry import files_of
from ddpm.pipeline.results import Results
from ddpm.pipeline.running import fix_threads, run_stage
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import STAGES, ExternalStage
from ddpm.tables import declared


def _grid(args: argparse.Namespace, here: bool = False) -> Grid:
    """The configuration's grid; `here`: checked for this machine too, or for the cluster that it belongs to."""
    more = [*machine.checks(cluster=bool(shutil.which("sbatch"))), declared.mistakes] if here else []
    return config.check(config.read("config.yaml", *args.configfile), *more)


def _pick(name: str, known: Collection[str], what: str) -> str:
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, 3) or list(known)[:3]
    raise UserError(
        f"{name!r} is no {what} of this configuration; close are {', '.join(close)} (`ddpm check` lists all)"
    )


def _text(job: str) -> str:
    """A job's text: given as it is, in a file (`@FILE`), or on standard input (`-`)."""
    if job == "-":
        return sys.stdin.read()
    return Path(job[1:]).read_text(encoding="utf-8") if job.startswith("@") else job


def init_command(_: argparse.Namespace) -> None:
    """Make this folder a project: a configuration, overlays, profiles, and a Snakefile that runs this package."""
    print(*project.init(Path()), sep="\n")
    print("made; next: `snakemake --cores 8 results/table.csv` makes the table, `ddpm check` lists its cells")


def job_command(args: argparse.Namespace) -> None:
    """What Snakemake calls: one job, or a batch of them (see `Grid.batch`)."""
    job, options = json.loads(_text(args.job)), (args.results, args.device, args.jobs_per_gpu, args.checkpoint_seconds)
    if args.batch is None:
        run_stage(args.stage, job, args.code, *options)
        if args.stage == "table":
            _whole(Layout(Path(args.results)))
        return
    layout, written = Layout(Path(args.results)), {}
    for name in job.pop("names"):
        run_stage(args.stage, {"name": name} | job, args.code, *options)
        written[name] = records.read_record(layout.record(args.stage, name))["digest"]
    history.clear(layout, layout.measured(args.batch))
    records.write_json(layout.measured(args.batch), written)


def _whole(layout: Layout) -> None:
    """A table that Snakemake makes has every cell."""
    found = records.read_record(layout.record("table"))["result"]
    if found["missing"]:
        raise UserError(
            f"{layout.root}: {found['cells']} of {found['of']} cells are there; results were edited or replaced "
            "while Snakemake ran: run it again"
        )


def cell_command(args: argparse.Namespace) -> None:
    """Run one stage of one network or cell, and what it needs, into the tree that Snakemake uses."""
    grid = _grid(args, here=True)
    name = _pick(args.name, grid.names[args.command], STAGES[args.command].called)
    if args.command == "fidelity":
        fix_threads(grid.job("fidelity", name)[0])
        machine.load_extractor(grid.config)
    *before, job = grid.needed(args.command, name)
    _run(grid, before)
    _run(grid, [job], args.again)
    _tell(grid, *job)


def _run(grid: Grid, jobs: Iterable[Job], again: bool = False) -> None:
    """Run these jobs of the grid, one after another."""
    for stage, name in jobs:
        job, code = grid.job(stage, name)
        run_stage(stage, job, code, grid.results, *grid.execution, again=again)


def _needed(grid: Grid, jobs: Iterable[Job]) -> Iterator[Job]:
    """These jobs, each after all that lead to it."""
    return (before for job in jobs for before in grid.needed(*job))


def _tell(grid: Grid, stage: str, name: str) -> None:
    """Print what came out of a job."""
    found = records.read_record(Layout(Path(grid.results)).record(stage, name))
    print(json.dumps({"status": found["status"]} | found["result"], indent=1))


def _samples(args: argparse.Namespace) -> tuple[Path, str]:
    """Where samples lie that were made elsewhere, and what their row is called."""
    source = Path(args.source)
    if not (source.is_dir() or (source.is_file() and source.suffix in (".npz", ".safetensors"))):
        what = "is something else" if source.exists() else "does not exist"
        raise UserError(f"{source}: {what}; it must be a folder of images, an .npz or a .safetensors")
    name = args.called or source.resolve().stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise UserError(f"{name!r} cannot name a row; give 1 to 64 letters, digits, '.', '_', '-' with --as NAME")
    return source, name


def evaluate_command(args: argparse.Namespace) -> None:
    """Measure samples that were made elsewhere as a cell's are, by the same protocol, and put them into the table as a
    row of their own: a folder of images, an .npz with arr_0 of (N, H, W, C) and perhaps labels as arr_1, or a file of
    safetensors as this project stores samples."""
    grid, stage = _grid(args, here=True), STAGES["external"]
    assert isinstance(stage, ExternalStage)
    source, name = _samples(args)
    measured, job = f"external/{name}", stage.job_of(grid, name, str(source))
    fix_threads(job)
    machine.load_extractor(grid.config)
    _run(grid, _needed(grid, stage.parents(name, job).values()))
    run_stage("external", job, fingerprint(stage.roots(job)), grid.results, *grid.execution)
    others = [parent for parent in grid.parents("fidelity", measured).values() if parent[0] != "external"]
    _run(grid, [*_needed(grid, others), ("fidelity", measured)])
    _tell(grid, "fidelity", measured)
    if any(stage == "sample" and Results(grid).valid(stage, cell) for stage, cell in grid.jobs):
        table_command(args)
    else:
        print(f"{grid.results}/table.csv has it once a cell is finished", file=sys.stderr)


def check_command(args: argparse.Namespace) -> None:
    """Check the configuration, and this machine for it, and list what it expands to."""
    grid = _grid(args, here=True)
    for cell in grid.cells:
        print(f"{cell.name}{'   n/a: ' + cell.reason if cell.reason else ''}")
    refused = len(grid.cells) - len(grid.runs)
    print(f"{len(grid.runs)} cells to run on {len(grid.networks)} networks, {refused} n/a")


def _status(results: Results, name: str) -> Iterator[str]:
    """The status of one cell, by name, or of the whole grid."""
    if name:
        cells = {cell.name: cell for cell in results.grid.cells}
        yield from status.cell_lines(results, cells[_pick(name, cells, "cell")])
        return
    yield from status.lines(results)
    if (now := progress.Progress(results).look()).running:
        yield f"{now.percent}% of the work is done, {now}"


def status_command(args: argparse.Namespace) -> None:
    """What is finished, what is not and why, what would run now and what that costs; of one cell, where it is from.

    With --hash every file is hashed first, and what is corrupt is named and set aside, so that the next run makes it
    again.
    """
    results = Results(_grid(args))
    flaws = list(map(str, hashes.flaws(results))) if args.hash else []
    if args.json and not args.name:
        found = status.overview(results) | ({"flaws": flaws} if args.hash else {})
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(*([] if args.json else flaws), *_status(results, args.name), sep="\n")
    if args.estimate:
        from ddpm import estimate  # torch

        print(*estimate.lines(results.grid, results.unfinished), sep="\n")
    if flaws:
        raise UserError(f"{len(flaws)} files were not as they were written: run again, then they are")


def table_command(args: argparse.Namespace) -> None:
    """Write the tables (table.csv, its twin and what lies beside it) of the cells that are there, and say how many.

    Cells that were sampled but not measured, because another cell of their network has failed, are measured first.
    """
    grid = _grid(args)
    todo = Results(grid).todo
    ready = [job for job in todo if job[0] == "fidelity" and todo.keys().isdisjoint(grid.parents(*job).values())]
    _run(grid, ready)
    run_stage("table", *grid.job("table"), grid.results, "cpu")
    layout = Layout(Path(grid.results))
    found = records.read_record(layout.record("table"))["result"]
    print(f"{layout.outputs('table')[0]}: {found['cells']} of {found['of']} cells")


def page_command(args: argparse.Namespace) -> None:
    """Write report.html, the page for a browser, of what is there."""
    grid = _grid(args)
    run_stage("page", *grid.job("page"), grid.results, "cpu")
    print(Layout(Path(grid.results)).output("page"))


def claims_command(args: argparse.Namespace) -> None:
    """Say which claims of the source documents hold here, fail or are undecided, by the results that are there.

    With --decide: plan further seeds for the undecided ones alone, up to a budget, and write the overlay that asks for
    them. Once it has run, the same command with the overlay as last --configfile plans the next look.
    """
    from ddpm.pipeline import looks
    from ddpm.tables import claims_text, verdicts  # numpy and pandas: no other command waits for them

    if args.budget is not None and not args.decide:
        raise UserError(f"--budget: {args.budget:g}; it goes with --decide, without which nothing is planned")
    results = Results(_grid(args))
    for line in looks.lines(results):
        print(line, file=sys.stderr)
    found = verdicts.decide(results)
    if args.decide:
        _decide(args, results, found)
    else:
        print(claims_text.text(found), end="")


def _decide(args: argparse.Namespace, results: Results, verdicts: list) -> None:
    """Say what further seeds would decide claims, what they take, and write the overlay that asks for them."""
    from ddpm.tables import further

    if args.budget is None or not 0 < args.budget < float("inf"):
        raise UserError(f"--budget: {args.budget}; it must be a number of hours of computing, above 0")
    budget = args.budget * 3600
    plan = further.plan(results, verdicts, budget, args.most)
    print(*further.lines(plan, results.grid, budget), sep="\n")
    if not plan.given:
        print("nothing to run")
        return
    read = config.prune(config.read("config.yaml", *args.configfile))
    overlay = further.overlay(results.layout.root, read["grid"], plan)
    files = [*args.configfile, overlay.as_posix()]
    print(f"written: {overlay}")
    print(f"run it:  snakemake --cores {os.cpu_count()} --configfile {' '.join(files)}")
    again = " ".join(f"--configfile {file}" for file in files)
    print(f"then:    ddpm claims --decide --budget {args.budget:g} --most {args.most} {again}")


def figures_command(args: argparse.Namespace) -> None:
    """Draw the pictures of a finished grid."""
    grid = _grid(args)
    run_stage("figures", *grid.job("figures"), grid.results, "cpu")


def audit_command(args: argparse.Namespace) -> None:
    """Say in what the finished rows of the table differ besides what their names say, from their records: parameters,
    images seen, training, network evaluations, N, reference, extractor, seeds, device and versions."""
    found = audit.facts(Results(_grid(args)))
    if not found:
        raise UserError("no row is finished: run snakemake first, or `ddpm status` to see what is there")
    print(audit.text(found))


def profile_command(args: argparse.Namespace) -> None:
    """Say where the time of the jobs in a results folder went: by stage, loading packages, what no job computed in, the
    slowest jobs, and the chain of jobs that no number of cores shortens."""
    root = Path(args.results or _grid(args).results)
    print(*profile.lines(profile.Profile(root)), sep="\n")


def verify_command(args: argparse.Namespace) -> None:
    """Compute again what a results folder holds, and say what does not come out: some images of every cell, drawn by
    chance, from its weights, byte for byte on the same kind of CPU; all metrics from the samples, the likelihoods, the
    data and the feature extractor; the tables from the records. Every file is hashed first; none is changed."""
    from ddpm import spot_checks  # torch

    if args.folder:  # the configuration that its table was made by
        at = Layout(Path(args.folder))
        said = records.read_record(at.record("table"), "table")["job"]["config"]
        grid = Grid(said | {"results": args.folder})
    else:
        grid = _grid(args)
    seed, start = secrets.randbits(32) if args.seed is None else args.seed, time.monotonic()
    count = 0
    for finding in spot_checks.check(Results(grid), seed):
        print(finding, flush=True)
        count += 1
    images = grid.config["sampling"]["images"]
    looked = f"{spot_checks.needed(images)} of {images} images of each of {len(grid.runs)} cells (--seed {seed})"
    print(f"{grid.results}: {looked}, all metrics and tables, in {time.monotonic() - start:.0f} s")
    if count:
        raise UserError(f"{count} findings: this is not what the configuration and the code make")
    print("everything that was computed again came out; networks were not trained again")


def schema_command(args: argparse.Namespace) -> None:
    """Print the JSON schema of config.yaml, for editors: its sections, and the methods with their parameters, those in
    files of your own (`methods`) included."""
    found = config.read("config.yaml", *args.configfile)
    print(json.dumps(schema.editor(files_of(found)), indent=1, ensure_ascii=False))


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="ddpm", description="A benchmark of denoising diffusion.")
    main.add_argument("--version", action="version", version=f"ddpm {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=run.__doc__ if name != "job" else help)
        sub.set_defaults(run=run)
        if name not in ("init", "job"):
            sub.add_argument(
                "--configfile", action="append", default=[], metavar="FILE", help="overlay over config.yaml; repeatable"
            )
        return sub

    add("init", init_command, "make this folder a project, with a configuration to change")
    for stage in filter(lambda stage: stage.called, STAGES.values()):
        sub = add(stage.name, cell_command, f"{stage.description}, e.g. {stage.example}")
        sub.add_argument("name", help=f"{stage.called}, such as {stage.example}; `ddpm check` lists the cells")
        sub.add_argument("--again", action="store_true", help="run even if a valid result is there")
    sub = add("evaluate", evaluate_command, "measure samples that were made elsewhere: a folder, .npz or .safetensors")
    sub.add_argument("source", help="a folder of images, an .npz with arr_0, or a .safetensors with `images`")
    sub.add_argument(
        "--as", dest="called", metavar="NAME", help="the row's name; that of the folder or file, if left out"
    )
    add("check", check_command, "check the configuration and list its cells")
    sub = add("status", status_command, "what is there, what would run now, why, and what it costs")
    sub.add_argument("name", nargs="?", default="", help="one cell: its records, logs, numbers and samples")
    sub.add_argument("--json", action="store_true", help="everything, to be read by a program")
    sub.add_argument("--estimate", action="store_true", help="time some steps of what would run, on this machine")
    sub.add_argument("--hash", action="store_true", help="hash every file first; what is corrupt is set aside")
    add("table", table_command, "write the tables of the cells that are there")
    sub = add("claims", claims_command, "which claims of the source documents hold here")
    sub.add_argument("--decide", action="store_true", help="plan further seeds for the undecided ones alone")
    sub.add_argument("--budget", type=float, metavar="HOURS", help="of computing, for all further seeds together")
    sub.add_argument("--most", type=int, default=24, metavar="SEEDS", help="that a claim may have; 24, if left out")
    add("audit", audit_command, "say in what rows differ besides what their names say")
    sub = add("profile", profile_command, "say where the time of finished jobs went")
    sub.add_argument("results", nargs="?", default="", help="a results folder; the configuration's, if left out")
    sub = add("verify", verify_command, "compute part of a results folder again, and say what does not come out")
    sub.add_argument("folder", nargs="?", default="", metavar="RESULTS", help="of somebody else, with its table.json")
    sub.add_argument("--seed", type=int, help="draws the images; by chance, if left out, so that none is known before")
    add("figures", figures_command, "draw the pictures")
    add("page", page_command, "write the page for a browser")
    add("schema", schema_command, "print the JSON schema of config.yaml, for editors")
    job = add("job", job_command, "what Snakemake calls: a stage with everything given as text")
    job.add_argument("stage", choices=STAGES)
    job.add_argument("--job", required=True, help="its JSON, @FILE that holds it, or - for standard input")
    for option in ("--code", "--results", "--device"):
        job.add_argument(option, required=True)
    job.add_argument("--jobs-per-gpu", type=int, default=1)
    job.add_argument("--checkpoint-seconds", type=float, default=SECONDS)
    job.add_argument("--batch", help="the job is a batch of this name: its `names` instead of one `name`")
    return main


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as e:
        print(f"ddpm: {e}", file=sys.stderr)
        return 2
    except ValueError as e:
        # A method's own check of its parameters.
        if os.environ.get("DDPM_TRACEBACK"):
            raise
        print(f"ddpm: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        where = f" ({e.filename})" if e.filename else ""
        print(f"ddpm: {e.strerror or e}{where}; finished results are untouched", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(
            "ddpm: interrupted; finished results are untouched, a started job goes on from its checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
