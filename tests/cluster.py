"""A throw-away Slurm cluster on this machine: three nodes with two fake GPUs each, on loopback, as root.

    python tests/cluster.py start | stop | restart-node N

Needs Debian's slurmctld, slurmd, slurm-client, munge and slurm-wlm-basic-plugins, and no systemd. All files lie in
one folder; only /etc/slurm gets links to them, because the executor's inner srun forgets SLURM_CONF.
"""

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("/tmp/ddpm-cluster")
ETC = Path("/etc/slurm")
NODES, CPUS, MEMORY_MB, GPUS, PORT = 3, 4, 16000, 2, 21817
BINARIES = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "munged")
CGROUPS = Path("/sys/fs/cgroup")


def missing() -> list[str]:
    """What this machine lacks for a cluster."""
    lacking = [b for b in BINARIES if not shutil.which(b)]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Until the condition holds; TimeoutError names what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds:g} s; logs in {FOLDER / 'log'}")
        time.sleep(0.05)


def output(*command: str) -> str:
    """What a Slurm command prints; empty where it fails."""
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return found.stdout.strip() if found.returncode == 0 else ""


def running(pid: int) -> bool:
    """Alive and no zombie: the first process of a container may reap late."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _pid(name: str) -> int | None:
    try:
        pid = int((FOLDER / "run" / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if running(pid) else None


def memory_is_limited() -> bool:
    """Whether cgroups (version 1) can be written: then a job that takes too much memory is killed, as on a cluster."""
    return all(os.access(CGROUPS / part / "cgroup.procs", os.W_OK) for part in ("freezer", "memory", "cpuset"))


def _configure() -> None:
    host, limited = socket.gethostname().split(".")[0], memory_is_limited()
    confine = "yes" if limited else "no"
    lines = {
        "ClusterName": "throwaway",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": PORT,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={FOLDER}/run/munge.socket",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "ProctrackType": "proctrack/cgroup" if limited else "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if limited else "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=2,sched_interval=2,batch_sched_delay=0",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "JobCompType": "jobcomp/none",
        "GresTypes": "gpu",
        "ReturnToService": 2,  # a node that is back is used again
        "SlurmdTimeout": 10,  # seconds until a silent node is lost
        "KillWait": 3,
        "MinJobAge": 600,  # squeue shows a finished job for so long
        "StateSaveLocation": FOLDER / "state",
        "SlurmdSpoolDir": FOLDER / "spool" / "%n",
        "SlurmctldPidFile": FOLDER / "run" / "slurmctld.pid",
        "SlurmdPidFile": FOLDER / "run" / "%n.pid",
        "SlurmctldLogFile": FOLDER / "log" / "slurmctld.log",
        "SlurmdLogFile": FOLDER / "log" / "%n.log",
        "SlurmdParameters": "config_overrides",
    }
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    for n in range(1, NODES + 1):
        text += (
            f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + n} CPUs={CPUS} "
            f"RealMemory={MEMORY_MB} Gres=gpu:fake:{GPUS} State=UNKNOWN\n"
        )
    text += "PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=1-00:00:00 State=UP\n"
    files = {
        "slurm.conf": text,
        "gres.conf": f"Name=gpu Type=fake File={FOLDER}/dev/gpu[0-{GPUS - 1}]\n",
        "cgroup.conf": f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={CGROUPS}\nConstrainRAMSpace={confine}\n",
    }
    for name, content in files.items():
        (FOLDER / "etc" / name).write_text(content)
        link = ETC / name
        if link.exists() and not (link.is_symlink() and link.readlink().is_relative_to(FOLDER)):
            raise FileExistsError(f"{link}: this machine's own Slurm; it is left alone")
        link.unlink(missing_ok=True)
        link.symlink_to(FOLDER / "etc" / name)
    for n in range(GPUS):  # /dev/null by another name: Slurm counts them, nothing opens them
        os.mknod(FOLDER / "dev" / f"gpu{n}", 0o20666, os.makedev(1, 3))
    key = FOLDER / "munge" / "key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))


def _daemon(*command: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    environment["SLURM_CONF"] = str(FOLDER / "etc" / "slurm.conf")
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=30)


def start_node(n: int) -> None:
    """Start a node's daemon (anew), and wait until the cluster uses it."""
    (FOLDER / "spool" / f"n{n}").mkdir(exist_ok=True)
    _daemon("slurmd", "-N", f"n{n}")
    wait(lambda: state(n) in ("idle", "mixed", "allocated"), 30, f"node n{n}")


def state(n: int) -> str:
    """A node's state as sinfo says it."""
    return output("sinfo", "-h", "-n", f"n{n}", "-o", "%T").rstrip("*")


def start() -> None:
    """From nothing to three idle nodes."""
    stop()
    for name, mode in {"etc": 0o755, "run": 0o755, "log": 0o755, "state": 0o755, "spool": 0o755, "dev": 0o755}.items():
        (FOLDER / name).mkdir(parents=True, mode=mode)
    (FOLDER / "munge").mkdir(mode=0o700)
    FOLDER.chmod(0o755)
    ETC.mkdir(exist_ok=True)
    _configure()
    run, munge = FOLDER / "run", FOLDER / "munge"
    _daemon(
        "munged", f"--key-file={munge}/key", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
        f"--log-file={FOLDER}/log/munged.log", f"--seed-file={munge}/seed", "--num-threads=4",
    )  # fmt: skip
    _daemon("slurmctld", "-c")
    wait(lambda: "UP" in output("scontrol", "ping"), 30, "slurmctld")
    for n in range(1, NODES + 1):
        start_node(n)


def _cancel() -> None:
    """End all jobs."""
    subprocess.run(["scancel", "-u", "root"], capture_output=True, timeout=30)
    for name in range(1, NODES + 1):  # a job of a dead node never ends by itself
        if not _pid(f"n{name}"):
            output("scontrol", "update", f"NodeName=n{name}", "State=DOWN", "Reason=stop")
    try:
        wait(lambda: not output("squeue", "-h", "-t", "R,CG,PD"), 15, "empty queue")
    except TimeoutError as e:
        print(e, file=sys.stderr)


def stop() -> None:
    """Cancel what runs, end the daemons, and leave nothing behind."""
    if _pid("slurmctld"):
        _cancel()
    for name in [*(f"n{n}" for n in range(1, NODES + 1)), "slurmctld", "munged"]:
        if pid := _pid(name):
            os.kill(pid, signal.SIGTERM)
            try:
                wait(lambda pid=pid: not running(pid), 10, f"end of {name}")
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
    for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
        link = ETC / name
        if link.is_symlink() and link.readlink().is_relative_to(FOLDER):
            link.unlink()
    for folder in sorted(CGROUPS.glob("*/slurm_n[0-9]*/**/"), key=lambda p: -len(p.parts)):
        try:
            folder.rmdir()
        except OSError:
            continue  # another controller's name for the same folder, or already gone
    shutil.rmtree(FOLDER, ignore_errors=True)


@contextmanager
def cluster() -> Iterator[None]:
    """A cluster for as long as the context lasts; another process's is waited for."""
    with FOLDER.with_suffix(".lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        start()
        try:
            yield
        finally:
            stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start")
    commands.add_parser("stop")
    commands.add_parser("restart-node").add_argument("node", type=int, choices=range(1, NODES + 1))
    args = parser.parse_args()
    if lacking := missing():
        print(f"no cluster here: {', '.join(lacking)} missing", file=sys.stderr)
        return 2
    match args.command:
        case "start":
            start()
        case "stop":
            stop()
        case "restart-node":
            start_node(args.node)
    return 0


if __name__ == "__main__":
    sys.exit(main())
