"""A finished run in a folder of its own, one of whose jobs is made again on a cluster, with a fault injected."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cluster import output, running, wait

from ddpm.pipeline.layout import Layout
from ddpm.pipeline.stages import TableStage

ROOT = Path(__file__).parent.parent
PARTS = ("Snakefile", "config.yaml", "ddpm", "workflow", "envs", "profiles", "slurm")
NETWORK, CELL = "eps/linear/unconditional/seed0", "eps/linear/none/ddim/seed0"
OVERLAY = """
results: results/run
checkpoint_seconds: 0.5
network: {width: 16, multipliers: [1, 2]}
training: {steps: 1500, batch: 32, warmup: 4}
samplers: {ddim: {steps: 100}}
grid: [{objective: [eps], schedule: [linear], guidance: [none], sampler: [ddim]}]
sampling: {images: 800, batch: 8}
classifier: {width: 4, features: 16, epochs: 1}
likelihood: {images: 400, times: 120, batch: 8}
"""
# The job of each stage that the fault happens to.
STAGES = {"train": NETWORK, "sample": CELL, "likelihood": NETWORK}
# The job of each stage takes some twenty seconds, many times KillWait; a trial that takes this long has failed.
SECONDS = 400


def files(root: Path) -> set[str]:
    """All files of a results folder but those that were replaced."""
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith("replaced/")}


class Run:
    """A project folder with a finished run, to which faults happen."""

    def __init__(self, folder: Path):
        self.folder, self.results, self.kept = folder, folder / "results" / "run", folder.with_suffix(".kept")
        self.python = [sys.executable, "-m"]
        self.options: list[str] = []
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / part, folder / part)
        (folder / "run.yaml").write_text(OVERLAY)

    def command(self, *arguments: str) -> list[str]:
        return [*self.python, "snakemake", *arguments, "--configfile", "run.yaml"]

    def call(self, *arguments: str) -> None:
        """Snakemake to its end; an error of it is one of the trial."""
        found = subprocess.run(self.command(*arguments), cwd=self.folder, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]

    def finish(self) -> None:
        """The run that nothing happens to, on this machine."""
        self.call("results/run/table.csv", "--cores", "2")
        shutil.copytree(self.results, self.kept)

    # ---- one trial --------------------------------------------------------------------------------------------

    def prepare(self, stage: str) -> None:
        """As it was, without what this stage made."""
        for path in sorted(self.results.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.kept, self.results, dirs_exist_ok=True)
        self.stage, name = stage, STAGES[stage]
        layout = Layout(self.results)
        paths = [*layout.outputs(stage, name), layout.record(stage, name)]
        self.outputs = [str(p.relative_to(self.results)) for p in paths]
        self.work, self.log = layout.work(stage, name), layout.log(stage, name)
        self.log.unlink(missing_ok=True)
        for path in self.outputs:
            (self.results / path).unlink()

    def start(self) -> None:
        """Snakemake with the profile, as a user starts it, asked for this stage's result."""
        fast = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20"]
        arguments = [*self.options, "--profile", "slurm", *fast, f"results/run/{self.outputs[-1]}"]
        self.said = (self.folder / "said.log").open("a")
        self.snakemake = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, stdout=self.said, stderr=self.said, start_new_session=True
        )

    def at(self, name: str = "checkpoint.safetensors") -> int:
        """How much the checkpoint holds; 0 where there is none."""
        path = self.work / name
        try:
            header = path.read_bytes()
            size = int.from_bytes(header[:8], "little")
            about = json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["about"])
            return json.loads(about["state"])["at"]
        except (OSError, ValueError, KeyError):
            return 0

    def text(self) -> str:
        """What the job's attempts have said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def until(self, condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
        wait(lambda: bool(condition()), seconds, f"{what} ({self.stage})")

    def underway(self) -> None:
        """Until the job has written two checkpoints."""
        self.until(lambda: self.at() or self.snakemake.poll() is not None, "first checkpoint")
        assert self.snakemake.poll() is None, (self.folder / "said.log").read_text()[-3000:]
        first = self.at()
        self.until(lambda: self.at() > first, "second checkpoint")

    def ended(self) -> int:
        """Until Snakemake has ended; its exit status."""
        self.until(lambda: self.snakemake.poll() is not None, "end of Snakemake")
        return self.snakemake.returncode

    def again(self) -> None:
        """Start Snakemake again after it was killed, as its message asks."""
        self.ended()
        self.call("--profile", "slurm", "--unlock")
        self.start()

    def job(self) -> tuple[str, int]:
        """The running Slurm job of this stage and its node's number."""
        self.until(lambda: output("squeue", "-h", "-t", "R", "-o", "%A"), "running job")
        number, node = output("squeue", "-h", "-t", "R", "-o", "%A %N").splitlines()[0].split()
        return number, int(node[1:])

    def process(self) -> int:
        """The process that holds the stage's lock: the job itself."""
        for path in sorted(self.work.glob("lock-*")):
            pid = json.loads(path.read_text())["pid"]
            if running(pid):
                return pid
        raise AssertionError(f"no live job of {self.stage}")

    # ---- what must hold ---------------------------------------------------------------------------------------

    def check(self, position: int | None, when: str) -> str:
        """The results of the run that nothing happened to, and nothing left over.

        A job that had come to `position` went on from there or later; without one, it has survived. Gives which.
        """
        assert self.ended() == 0, (self.folder / "said.log").read_text()[-3000:]
        self.until(lambda: not output("squeue", "-h", "-t", "R,CG,PD"), "empty queue")
        self.until(lambda: not self.work.exists(), "released lock", 30)
        for path in self.outputs[:-1]:
            assert (self.results / path).read_bytes() == (self.kept / path).read_bytes(), path
        ours, theirs = (json.loads((r / self.outputs[-1]).read_text()) for r in (self.results, self.kept))
        for key in ("job", "code", "inputs", "outputs", "status", "result"):
            assert ours[key] == theirs[key], key
        assert files(self.results) == files(self.kept) - {TableStage.record, *TableStage.files.values()}
        if position is None:
            assert ours["costs"]["started"] <= when, "the result of the job with the fault is not the one that is there"
            return "the job with the fault ended well"
        resumed = [int(n) for n in re.findall(r"going on from this checkpoint, (\d+) done", self.text())]
        assert 0 < position <= max(resumed, default=0), f"lost work: was at {position}, resumed {resumed}"
        return f"fault at {position}, went on from {max(resumed)}"

    def table(self) -> None:
        """The table of these results is the one of the run that nothing happened to."""
        command = [*self.python, "ddpm", "table", "--configfile", "run.yaml"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        for name in set(TableStage.files.values()) - {"costs.csv"}:
            assert (self.results / name).read_bytes() == (self.kept / name).read_bytes(), name
