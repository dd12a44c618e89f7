"""What clusters do to jobs, done to a real run, and the same results at the end: faults × stages on a real Slurm.

    python tests/faults.py [--fault NAME ...] [--stage NAME ...]

Every trial takes a finished run, removes what one stage made, starts `snakemake --profile slurm`, injects one fault
once the job has a checkpoint, and lets things recover. Then results, bytes and leftovers must be those of the run that
nothing happened to. The job must have gone on from what its checkpoint held when the fault came, so that no more than
one interval is lost; where it survives (a second copy, a folder that lags), its own result must be the one that is
there. Takes about forty minutes.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cluster  # beside this file
from cluster import output, running
from fault_injection import STAGES, Run

from ddpm.pipeline.locks import STALE, machine

# ---- the faults: each happens to a job under way, and gives the position that must not be lost, if it dies -----------


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
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        how = run.check(FAULTS[fault](run), when)
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs of a shell ignore
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
