"""How long `snakemake -n` and `ddpm status` take on a finished grid: python benchmarks/parse.py 1000 10000 (cells)

The grid is real, its results are not: every job has a record that says what the configuration asks for, and outputs of
one byte.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from ddpm.pipeline import config, records
from ddpm.pipeline.grid import environment
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, write_json
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES

ROOT = Path(__file__).parent.parent
# Not synced to the disk one by one: these results are thrown away.
records.os.fsync = lambda _: None


def overlay(cells: int, folder: Path) -> Path:
    """A grid of `cells` cells on a hundredth as many networks."""
    networks = cells // 100
    sections = {
        "results": str(folder.name),
        "objectives": {f"o{i}": {"target": "eps"} for i in range(networks)},
        "samplers": {f"s{i}": {"method": "ddim", "steps": 10 + i} for i in range(100)},
    }
    block = {"objective": list(sections["objectives"]), "schedule": ["linear"], "guidance": ["none"]}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(sections | {"grid": [block | {"sampler": list(sections["samplers"])}]}))
    return path


def finish(path: Path, root: Path) -> None:
    """Records and outputs of every job."""
    grid = config.check(config.read(ROOT / "config.yaml", path))
    layout, outputs = Layout(root), {}
    for stage, name in grid.jobs:
        job, code = grid.job(stage, name)
        recorder = Recorder(stage, job, code, {})
        recorder.record["inputs"] = {of: outputs[parent] for of, parent in grid.parents(stage, name).items()}
        recorder.record["versions"] |= environment(stage, job)
        files = layout.outputs(stage, name)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        recorder.finish(layout.record(stage, name), files)
        outputs[stage, name] = records.sha256(files[0]) if files else ""
    for batch, names in grid.batches.items():
        digests = {name: records.read_record(layout.record("fidelity", name))["digest"] for name in names}
        write_json(layout.measured(batch), digests)
    figures = [layout.root / "figures" / f"{n}.png" for n in ("samples", "training", "forward", "denoising")]
    for stage in AGGREGATES:
        files = layout.outputs(stage) or [*figures, *(layout.cell(n) / "samples.png" for n in grid.runs)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        recorder = Recorder(stage, *grid.job(stage), {})
        recorder.record["inputs"] = Results(grid, layout).inputs(stage)
        recorder.finish(layout.record(stage), files, cells=len(grid.runs), of=len(grid.runs), missing=0)


def timed(*command: str) -> tuple[float, str]:
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return time.monotonic() - start, found.stdout


def main() -> None:
    for cells in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=f"parse{cells}-") as folder:
            root = Path(folder)
            path = overlay(cells, root)
            try:
                finish(path, root)
                dry, said = timed("snakemake", "-n", "--configfile", str(path))
                assert "Nothing to be done" in said, said
                status, said = timed("ddpm", "status", "--configfile", str(path))
                assert "nothing to run" in said, said
            finally:
                path.unlink()
            print(f"{cells} cells: snakemake -n {dry:.1f} s, ddpm status {status:.1f} s")


if __name__ == "__main__":
    main()
