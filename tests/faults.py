"""What clusters do to jobs, done to a real run, and the same results at the end: faults × stages on a real Slurm.

    python tests/faults.py [--fault NAME ...] [--stage NAME ...]

Every trial takes a finished run, removes what one stage made, starts `snakemake --profile slurm` for it, strikes once
the job has a checkpoint, and lets things recover. Then results, bytes and leftovers must be those of the run that
nothing happened to. The job must have gone on from what its checkpoint held when it was struck, so that no more than
one interval is lost; where it survives (a second copy, a folder that lags), its own result must be the one that is
there. Takes about forty minutes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cluster  # beside this file
from cluster import output, running, wait

from ddpm.layout import Layout
from ddpm.lock import STALE, machine

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
# The job of each stage that is struck.
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
        """Start Snakemake anew after it was killed, as its message asks."""
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

    def check(self, position: int | None, struck: str) -> str:
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
        assert files(self.results) == files(self.kept) - {
            "table.csv",
            "table.md",
            "table.json",
            "published.md",
            "costs.csv",
        }
        if position is None:
            assert ours["costs"]["started"] <= struck, "the struck job's result is not the one that is there"
            return "the struck job ended well"
        resumed = [int(n) for n in re.findall(r"going on from this checkpoint, (\d+) done", self.text())]
        assert 0 < position <= max(resumed, default=0), f"lost work: was at {position}, resumed {resumed}"
        return f"struck at {position}, went on from {max(resumed)}"

    def table(self) -> None:
        """The table of these results is the one of the run that nothing happened to."""
        command = [*self.python, "ddpm", "table", "--configfile", "run.yaml"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        for name in ("table.csv", "table.md", "published.md"):
            assert (self.results / name).read_bytes() == (self.kept / name).read_bytes(), name


# ---- the faults: each strikes a job that is under way, and gives the position that must not be lost, if it dies ------


def cancelled(run: Run) -> int:
    """scancel: Snakemake submits the job again."""
    number, _ = run.job()
    position = run.at()
    output("scancel", number)
    return position


def time_limit(run: Run) -> int:
    """The job takes longer than it asked for (it hangs); the next attempt asks for more."""
    position = run.at()
    os.kill(run.process(), signal.SIGSTOP)
    return position


def out_of_memory(run: Run) -> int:
    """Something in the job's cgroup takes all of its memory; the kernel kills the job."""
    number, _ = run.job()
    pid = run.process()
    os.kill(pid, signal.SIGSTOP)  # it would otherwise end before the memory is full
    (group,) = cluster.CGROUPS.glob(f"memory/slurm*/**/job_{number}")
    (step,) = {p.parent for p in group.glob("**/cgroup.procs") if str(pid) in p.read_text().split()}
    position = run.at()
    hog = "import os, sys\nsys.stdin.read()\nblocks = []\nwhile True: blocks.append(bytearray(b'x') * 2**26)\n"
    process = subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")  # so that the job is taken, not this
    (step / "cgroup.procs").write_text(str(process.pid))
    process.stdin.close()
    run.until(lambda: not running(pid), "kill for memory")
    process.kill()
    process.wait()
    return position


def _kill_node(run: Run, jobs_too: bool) -> tuple[str, int]:
    number, node = run.job()
    os.kill(int((cluster.FOLDER / "run" / f"n{node}.pid").read_text()), signal.SIGKILL)
    if jobs_too:
        for procs in cluster.CGROUPS.glob(f"freezer/slurm*/**/job_{number}/**/cgroup.procs"):
            for pid in procs.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        run.until(lambda: not output("pgrep", "-f", rf"slurmstepd: \[{number}\."), "end of the node's jobs", 5)
    return number, node


def lost_node(run: Run) -> int:
    """A node and all on it are gone; Slurm runs the job on another one, which waits for a sign of life in vain."""
    position = run.at()
    number, node = _kill_node(run, jobs_too=True)
    (held,) = run.work.glob("lock-*")
    text = held.read_text()
    assert machine() in text
    held.write_text(text.replace(machine(), "another"))  # all nodes are this machine
    run.until(lambda: output("squeue", "-h", "-t", "PD", "-o", "%A") == number, "requeued job")
    output("scontrol", "update", f"JobId={number}", "StartTime=now")
    run.until(lambda: output("squeue", "-h", "-t", "R", "-o", "%A") == number, "restarted job")
    cluster.start_node(node)
    run.until(lambda: "is dead; taking its place" in run.text(), "lock of the dead", 1.5 * STALE)
    assert "; waiting for it" in run.text()
    return position


def two_copies(run: Run) -> None:
    """The daemon of a node is gone, the job lives: Slurm starts a second copy, which waits for the first one."""
    first = run.process()
    os.kill(first, signal.SIGSTOP)  # it would otherwise end before Slurm gives its node up
    number, node = _kill_node(run, jobs_too=False)
    run.until(lambda: output("squeue", "-h", "-t", "PD", "-o", "%A") == number, "requeued job")
    output("scontrol", "update", f"JobId={number}", "StartTime=now")
    run.until(lambda: f"held by process {first} on" in run.text(), "second copy that waits")
    os.kill(first, signal.SIGCONT)
    run.until(lambda: ": already there" in run.text(), "second copy that steps aside")
    run.ended()
    cluster.start_node(node)


def interrupted(run: Run) -> int:
    """Ctrl-C: Snakemake cancels its jobs."""
    position = run.at()
    run.snakemake.send_signal(signal.SIGINT)
    run.ended()
    run.start()
    return position


def terminated(run: Run) -> None:
    """SIGTERM to Snakemake: it ends when its running jobs have, and is then started again."""
    run.snakemake.send_signal(signal.SIGTERM)
    run.ended()
    run.start()


def killed(run: Run) -> None:
    """SIGKILL to Snakemake: its job lives on, and the new Snakemake submits a second copy beside it."""
    first = run.process()
    os.kill(first, signal.SIGSTOP)
    run.snakemake.send_signal(signal.SIGKILL)
    run.again()
    run.until(lambda: f"held by process {first} on" in run.text(), "second copy that waits")
    os.kill(first, signal.SIGCONT)
    run.until(lambda: ": already there" in run.text(), "second copy that steps aside")


def full_disk(run: Run) -> int:
    """No space, as soon as there is some, until an attempt has failed for it."""
    number, _ = run.job()
    position = run.at()
    filler = run.results / "filler"
    with filler.open("wb", buffering=0) as f:

        def fill() -> None:
            with suppress(OSError):
                while True:
                    f.write(bytes(2**14))

        def ended() -> str:
            return output("squeue", "-h", "-t", "F,CD", "-j", number, "-o", "%t")

        run.until(lambda: fill() or ended(), "attempt that fails")
    filler.unlink()
    assert ended() == "F", "it found room in time"
    return position


def torn_checkpoint(run: Run) -> int:
    """Half a checkpoint, and a job that dies: it is named, and the one before it is used."""
    pid = run.process()
    os.kill(pid, signal.SIGSTOP)
    position = run.at("checkpoint.previous.safetensors")
    path = run.work / "checkpoint.safetensors"
    content = path.read_bytes()
    path.unlink()  # it may be the one before it, too, while the job writes another
    path.write_bytes(content[: len(content) // 2])
    os.kill(pid, signal.SIGKILL)
    run.until(lambda: "checkpoint discarded" in run.text(), "discarded checkpoint")
    return position


def lagging_folder(run: Run) -> None:
    """What the job wrote shows up eight seconds late, as on NFS."""
    hidden, paths = run.folder / "hidden", [run.results / p for p in run.outputs]
    hidden.mkdir(exist_ok=True)
    while not paths[-1].exists():
        time.sleep(0.002)
    for path in reversed(paths):
        path.rename(hidden / path.name)
    time.sleep(8)
    for path in paths:
        (hidden / path.name).rename(path)


FAULTS: dict[str, Callable[[Run], int | None]] = {
    f.__name__.replace("_", " "): f
    for f in (cancelled, time_limit, out_of_memory, lost_node, two_copies, interrupted, terminated, killed, full_disk,
              torn_checkpoint, lagging_folder)
}  # fmt: skip


def trial(run: Run, fault: str, stage: str) -> str:
    """One fault to one stage: how long it took until all was as if nothing had happened, and how the job went on."""
    begun = time.monotonic()
    run.options = ["--set-resources", f"{stage}:runtime=attempt"] if fault == "time limit" else []
    small = fault == "full disk"
    if small:  # a disk of its own
        shutil.rmtree(run.results)
        run.results.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(run.results)], check=True)
    try:
        run.prepare(stage)
        run.start()
        run.underway()
        struck = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        how = run.check(FAULTS[fault](run), struck)
        run.table()
    finally:
        if run.snakemake.poll() is None:
            os.killpg(run.snakemake.pid, signal.SIGKILL)
            run.snakemake.wait()
            shutil.rmtree(run.folder / ".snakemake" / "locks", ignore_errors=True)
        run.said.close()
        subprocess.run(["scancel", "-u", "root"], check=False)
        if small:
            subprocess.run(["umount", "-l", str(run.results)], check=True)
    return f"same bytes after {time.monotonic() - begun:4.0f} s, {how}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--stage", action="append", choices=STAGES)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ddpm-faults"), help="for the run; emptied first")
    args = parser.parse_args()
    if lacking := cluster.missing():
        print(f"no cluster here: {', '.join(lacking)} missing", file=sys.stderr)
        return 2
    failed = 0
    for folder in (args.folder, args.folder.with_suffix(".kept")):
        shutil.rmtree(folder, ignore_errors=True)
    with cluster.cluster():
        run = Run(args.folder)
        run.finish()
        for stage in args.stage or STAGES:
            for fault in args.fault or FAULTS:
                try:
                    print(f"{fault:16} {stage:10} {trial(run, fault, stage)}", flush=True)
                except Exception as e:
                    failed += 1
                    print(f"{fault:16} {stage:10} FAILED: {type(e).__name__}: {e}", flush=True)
    print(f"{failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
