"""What a Slurm cluster lacks for the jobs that are about to be submitted, said before anything is. No torch."""

import math
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import UserError

# File systems of one machine: other nodes see them only if it exports them.
LOCAL = {"ext2/ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs", "ramfs"}


@dataclass(frozen=True)
class Request:
    """What one rule's jobs ask Slurm for; minutes and MiB; empty or 0 where nothing is asked."""

    rule: str
    partition: str = ""
    account: str = ""
    runtime: int = 0
    mem_mb: int = 0
    cpus: int = 1
    gpu: int = 0
    gpu_model: str = ""

    def options(self) -> list[str]:
        """As sbatch's options."""
        gpus = f"{self.gpu_model}:{self.gpu}" if self.gpu_model else str(self.gpu)
        given = {"-p": self.partition, "-A": self.account, "-t": self.runtime, "--mem": self.mem_mb}
        given |= {"--gpus": gpus if self.gpu else ""}
        return ["-c", str(self.cpus), *(text for k, v in given.items() if v for text in (k, str(v)))]


@dataclass
class Partition:
    """What one partition has: its limit in minutes, and the most that one of its nodes has."""

    minutes: float = 0
    mem_mb: int = 0
    cpus: int = 0
    gpus: dict[str, int] | None = None
    hosts: frozenset[str] = frozenset()


def _run(*command: str, seconds: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def minutes(text: str) -> float:
    """Slurm's time ([days-]hours:minutes:seconds, or `infinite`) in minutes."""
    if not (parts := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)):
        return math.inf
    days, hours, minute, second = (int(p or 0) for p in parts.groups())
    return days * 1440 + hours * 60 + minute + second / 60


def partitions() -> dict[str, Partition]:
    """This cluster's partitions by name; UserError where there is no cluster."""
    for binary in ("sbatch", "squeue", "sinfo"):
        if not shutil.which(binary):
            raise UserError(
                f"no Slurm on this machine: {binary} is not on the PATH.\n"
                "Run on a login node of the cluster, or here with `snakemake --cores 8`."
            )
    answer = _run("sinfo", "-h", "-N", "-o", "%R|%l|%m|%c|%G|%o")
    if answer.returncode:
        raise UserError(f"Slurm does not answer: {(answer.stderr.strip().splitlines() or ['sinfo failed'])[0]}")
    found: dict[str, Partition] = {}
    for name, limit, memory, cpus, gres, host in (line.split("|") for line in answer.stdout.splitlines()):
        one = found.setdefault(name, Partition(gpus={}))
        one.minutes, one.mem_mb = minutes(limit), max(one.mem_mb, int(memory.rstrip("+")))
        one.cpus, one.hosts = max(one.cpus, int(cpus.rstrip("+"))), one.hosts | {host}
        for model, count in re.findall(r"gpu:(?:([^:(,]+):)?(\d+)", gres):
            one.gpus[model] = max(one.gpus.get(model, 0), int(count))
    return found


def _lacks(request: Request, partition: Partition) -> list[str]:
    """Why no node of the partition can run these jobs."""
    where, found = f"partition {request.partition}", []
    if request.runtime > partition.minutes:
        found.append(f"runtime {request.runtime} minutes, but {where} allows {partition.minutes:g}")
    if request.mem_mb > partition.mem_mb:
        found.append(f"mem_mb {request.mem_mb}, but the largest node of {where} has {partition.mem_mb}")
    if request.cpus > partition.cpus:
        found.append(f"threads {request.cpus}, but the largest node of {where} has {partition.cpus} CPUs")
    if request.gpu and not partition.gpus:
        found.append(f"gpu {request.gpu}, but {where} has none: name another one, or set gpu: 0 or `device: cpu`")
    elif request.gpu_model and request.gpu_model not in partition.gpus:
        found.append(f"gpu_model {request.gpu_model}, but {where} has {', '.join(filter(None, partition.gpus))}")
    elif request.gpu > max(partition.gpus.values(), default=0):
        found.append(f"gpu {request.gpu}, but one node of {where} has {max(partition.gpus.values())}")
    return [f"{request.rule}: {text}" for text in found]


def _refusal(request: Request) -> list[str]:
    """What Slurm itself says against such a job, such as an unknown account; nothing is submitted."""
    answer = _run("sbatch", "--test-only", *request.options(), "--wrap", "true")
    if not answer.returncode:
        return []
    said = [line.split("error: ")[-1] for line in answer.stderr.splitlines() if "error" in line] or ["refused"]
    account = f" (slurm_account: {request.account})" if "ccount" in said[-1] else ""
    return [f"{request.rule}: Slurm refuses it{account}: {said[-1].removeprefix('allocation failure: ')}"]


def _unshared(folder: Path, request: Request, partition: Partition) -> list[str]:
    """Whether another node cannot see this folder; asked only where its file system is one machine's own."""
    if partition.hosts <= {socket.gethostname(), socket.gethostname().split(".")[0], "127.0.0.1", "localhost"}:
        return []
    kind = _run("stat", "-f", "-c", "%T", str(folder)).stdout.strip()
    if kind not in LOCAL:
        return []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-by-all-nodes.") as probe:
        small = Request(request.rule, request.partition, request.account, 1, 100)
        others = ["-x", socket.gethostname().split(".")[0]] if socket.gethostname() in partition.hosts else []
        command = ["srun", "--immediate=20", "-n1", *others, *small.options(), "ls", probe.name]
        answer = _run(*command, seconds=120)
        if answer.returncode and "No such file" in answer.stderr:
            return [
                f"{folder}: lies on {kind} and nodes of {request.partition} do not see it: use a shared file system"
            ]
    return []


def check(requests: set[Request], folder: Path) -> None:
    """UserError with one line for each thing that is missing for these jobs, run in this folder."""
    known, found = partitions(), []
    for request in sorted(requests, key=lambda r: r.rule):
        if request.partition and request.partition not in known:
            found.append(f"slurm_partition: {request.partition!r} is unknown here; `sinfo` lists {', '.join(known)}")
        elif lacking := _lacks(request, known[request.partition]) if request.partition else []:
            found += lacking
        else:
            found += _refusal(request)
    if not found:
        seen: set[str] = set()
        for request in requests:
            if request.partition in known and request.partition not in seen:
                seen.add(request.partition)
                found += _unshared(folder, request, known[request.partition])
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def requests(jobs: Iterable) -> set[Request]:
    """What Snakemake's jobs and groups of jobs ask for, each once."""
    return {
        Request(
            f"group {job.groupid}" if job.is_group() else job.rule.name,
            str(job.resources.get("slurm_partition", "")),
            str(job.resources.get("slurm_account", "")),
            int(job.resources.get("runtime", 0)),
            int(job.resources.get("mem_mb", 0)),
            int(job.threads),
            int(job.resources.get("gpu", 0)),
            str(job.resources.get("gpu_model", "")),
        )
        for job in jobs
        if not job.is_local
    }
