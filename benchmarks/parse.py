"""How long `snakemake -n` and `ddpm status` take on a finished grid: python benchmarks/parse.py 1000 10000 (cells)

The grid is real, its results are not: every job has a record that says what the configuration asks for, and outputs of
one byte. They lie in a folder of `ddpm init` that is thrown away.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from ddpm.pipeline import config, project, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import RESULTS, Recorder, write_json
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES, STAGES

ROOT = Path(__file__).parent.parent
# Not synced to the disk one by one: these results are thrown away.
records.os.fsync = lambda _: None


def configure(cells: int, folder: Path) -> None:
    """A project in `folder`, whose config.yaml has a grid of `cells` cells on a hundredth as many networks."""
    project.init(folder)
    path, networks = folder / "config.yaml", cells // 100
    sections = {
        "objectives": {f"o{i}": {"target": "eps"} for i in range(networks)},
        "samplers": {f"s{i}": {"method": "ddim", "steps": 10 + i} for i in range(100)},
    }
    block = {"objective": list(sections["objectives"]), "schedule": ["linear"], "guidance": ["none"]}
    sections["grid"] = [block | {"sampler": list(sections["samplers"])}]
    path.write_text(yaml.safe_dump(config.merge(config.load(path), sections)))


def finish(folder: Path) -> None:
    """Records and outputs of every job."""
    grid = config.check(config.load(folder / "config.yaml"))
    layout, outputs = Layout(folder / grid.results), {}
    for stage, name in grid.jobs:
        job, code = grid.job(stage, name)
        recorder = Recorder(stage, job, code, {})
        recorder.record["inputs"] = {of: outputs[parent] for of, parent in grid.parents(stage, name).items()}
        recorder.record["versions"] |= STAGES[stage].environment(job)
        files = layout.outputs(stage, name)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        recorder.finish(layout.record(stage, name), files, **dict.fromkeys(RESULTS.get(stage, ()), 1))
        outputs[stage, name] = records.sha256(files[0]) if files else ""
    for batch, names in grid.batches.items():
        digests = {name: records.read_record(layout.record("fidelity", name))["digest"] for name in names}
        write_json(layout.measured(batch), digests)
    for stage in AGGREGATES:
        files = layout.outputs(stage) or layout.pictures(grid.pictures, grid.runs)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        recorder = Recorder(stage, *grid.job(stage), {})
        recorder.record["inputs"] = Results(grid, layout).inputs(stage)
        recorder.finish(layout.record(stage), files, cells=len(grid.runs), of=len(grid.runs), missing=0)


def timed(folder: Path, *command: str) -> tuple[float, str]:
    """Seconds of a command in the folder, run by this clone's package, and what it says."""
    start, environment = time.monotonic(), os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", *command]
    found = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return time.monotonic() - start, found.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="+", type=int, help="sizes of grids, in hundreds")
    for cells in parser.parse_args().cells:
        if cells < 100 or cells % 100:
            parser.error(f"{cells} cells; it must be a multiple of 100")
        with tempfile.TemporaryDirectory(prefix=f"parse{cells}-") as name:
            folder = Path(name)
            configure(cells, folder)
            finish(folder)
            dry, said = timed(folder, "snakemake", "-n")
            assert "Nothing to be done" in said, said
            status, said = timed(folder, "ddpm", "status")
            assert "nothing to run" in said, said
            print(f"{cells} cells: snakemake -n {dry:.1f} s, ddpm status {status:.1f} s")


if __name__ == "__main__":
    main()
