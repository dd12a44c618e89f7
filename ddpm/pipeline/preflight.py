"""What a Slurm cluster lacks for the jobs that are about to be submitted, said before anything is. No torch."""

import logging
import math
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddpm.errors import UserError

# File systems of one machine: other nodes see them only if it exports them.
LOCAL = {"ext2/ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs", "ramfs"}
# Snakemake asks for the state of its jobs this many seconds apart, at most (the executor's plugin fixes it).
POLL = 180


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
    qos: str = ""
    constraint: str = ""
    attempt: int = 1

    @property
    def partitions(self) -> list[str]:
        """Those of which any one will do."""
        return [name for name in self.partition.split(",") if name]

    @property
    def again(self) -> str:
        """Which attempt it is, in a message; empty of the first."""
        return f" in attempt {self.attempt}" if self.attempt > 1 else ""

    def options(self) -> list[str]:
        """As sbatch's options."""
        gpus = f"{self.gpu_model}:{self.gpu}" if self.gpu_model else str(self.gpu)
        account = re.split(r"[,\s]+", self.account)[0]  # of several the executor's plugin takes the first
        given = {"-p": self.partition, "-A": account, "-t": self.runtime, "--mem": self.mem_mb}
        given |= {"--gpus": gpus if self.gpu else "", "--qos": self.qos, "-C": self.constraint}
        return ["-N", "1", "-c", str(self.cpus), *(text for k, v in given.items() if v for text in (k, str(v)))]


@dataclass
class Partition:
    """What one partition has: its limit in minutes, and the most that one of its nodes has."""

    minutes: float = 0
    mem_mb: int = 0
    cpus: int = 0
    gpus: dict[str, int] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()


def _run(*command: str, seconds: float = 60) -> subprocess.CompletedProcess:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(f"Slurm does not answer: `{' '.join(command)}` took more than {seconds:g} s") from None


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
        one = found.setdefault(name, Partition())
        one.minutes, one.mem_mb = minutes(limit), max(one.mem_mb, int(memory.rstrip("+")))
        one.cpus, one.hosts = max(one.cpus, int(cpus.rstrip("+"))), one.hosts | {host}
        for model, count in re.findall(r"gpu:(?:([^:(,]+):)?(\d+)", gres):
            one.gpus[model] = max(one.gpus.get(model, 0), int(count))
    return found


def _lacks(request: Request, partition: Partition) -> list[str]:
    """Why no node of the partition can run these jobs."""
    where, again, found = f"partition {request.partition}", request.again, []

    def grows(key: str, limit: float) -> str:
        return f'; `{key}: "min(…, {limit:g})"` in slurm/config.yaml keeps to it' if again else ""

    if request.runtime > (most := partition.minutes) and not request.qos:  # which may lift the partition's limit
        found.append(f"runtime {request.runtime} minutes{again}, but {where} allows {most:g}{grows('runtime', most)}")
    if request.mem_mb > (most := partition.mem_mb):
        found.append(
            f"mem_mb {request.mem_mb}{again}, but the largest node of {where} has {most}{grows('mem_mb', most)}"
        )
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
    """What Slurm itself says against such a job; nothing is submitted."""
    answer = _run("sbatch", "--test-only", *request.options(), "--wrap", "true")
    if not answer.returncode:
        return []
    said = [line.split("error: ")[-1] for line in answer.stderr.splitlines() if "error" in line] or ["refused"]
    account = f" (slurm_account: {request.account})" if "ccount" in said[-1] else ""
    return [
        f"{request.rule}: Slurm refuses it{request.again}{account}: {said[-1].removeprefix('allocation failure: ')}"
    ]


def _wrong_accounts(names: set[str]) -> list[str]:
    """What the executor's plugin would say of these accounts at every submission."""
    from snakemake_executor_plugin_slurm.accounts import validate_account

    found = []
    for name in sorted({part for of in names for part in re.split(r"[,\s]+", of) if part}):
        try:
            validate_account(name, logging.Logger("accounts", logging.ERROR))
        except Exception as e:
            found.append(f"slurm_account: {' '.join(str(e).split())}")
    return found


def _forgets() -> list[str]:
    """Whether this cluster may forget a finished job before Snakemake has asked squeue for it."""
    found = re.search(r"MinJobAge\s*=\s*(\d+)", _run("scontrol", "show", "config").stdout)
    if not found or int(found[1]) == 0 or int(found[1]) > POLL:  # 0: never
        return []
    return [
        f"slurm-status-command: squeue, but this cluster forgets jobs {found[1]} s after their end (MinJobAge), and "
        f"Snakemake looks up to {POLL} s apart: set it to sacct; without accounting, have MinJobAge raised"
    ]


def _probe(stack: ExitStack, path: Path) -> str:
    """The file that shows whether a node sees `path`: a new one in a folder, for as long as `stack` lasts."""
    if not path.is_dir():
        return str(path)
    return stack.enter_context(tempfile.NamedTemporaryFile(dir=path, prefix=".seen-by-all-nodes.")).name


def _unshared(paths: list[Path], request: Request, partition: Partition) -> list[str]:
    """What other nodes cannot see of folders and files; asked only where a file system is one machine's own."""
    here = socket.gethostname()
    if partition.hosts <= {here, here.split(".")[0], "127.0.0.1", "localhost"}:
        return []
    with ExitStack() as stack:
        probes: dict[str, tuple[Path, str]] = {}
        for path in paths:
            kind = _run("stat", "-f", "-c", "%T", str(path)).stdout.strip()
            if kind in LOCAL:
                probes[_probe(stack, path)] = path, kind
        if not probes:
            return []
        small = Request(request.rule, request.partition, request.account, 1, 100, qos=request.qos)
        others = ["-x", here.split(".")[0]] if here in partition.hosts else []
        command = ["srun", "--immediate=20", "-n1", *others, *small.options(), "ls", *probes]
        said = _run(*command, seconds=120).stderr.splitlines()
        return [
            f"{path}: lies on {kind} and nodes of {request.partition} do not see it: use a shared file system"
            for probe, (path, kind) in probes.items()
            if any(probe in line and "No such file" in line for line in said)
        ]


def check(requests: set[Request], paths: list[Path], status_command: str = "squeue") -> None:
    """UserError with one line for each thing that is missing for these jobs, which read and write below `paths`."""
    known = partitions()
    found = [*_unfit(requests, known), *_wrong_accounts({r.account for r in requests})]
    found += _forgets() if status_command == "squeue" else []
    if not found:
        first = {name: request for request in requests for name in request.partitions}
        for name, request in sorted(first.items()):
            found += _unshared(paths, replace(request, partition=name), known[name])
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))


def _unfit(requests: set[Request], known: dict[str, Partition]) -> Iterator[str]:
    """What no partition has, or Slurm refuses, of each rule in the first attempt that has any."""
    lacking = set()
    for request in sorted(requests, key=lambda r: (r.rule, r.attempt)):
        if unknown := [name for name in request.partitions if name not in known]:
            yield f"slurm_partition: {unknown[0]!r} is unknown here; `sinfo` lists {', '.join(known)}"
        elif request.rule not in lacking:
            # Of several partitions Slurm takes any one that fits.
            each = (_lacks(replace(request, partition=name), known[name]) for name in request.partitions)
            if reasons := min(each, key=len, default=[]) or _refusal(request):
                lacking.add(request.rule)
                yield from reasons


def _request(job: Any, qos: str) -> Request:
    """What one of Snakemake's jobs, or a group of them, asks for in the attempt that it is at."""
    asked = job.resources
    return Request(
        f"group {job.groupid}" if job.is_group() else job.rule.name,
        str(asked.get("slurm_partition", "")),
        str(asked.get("slurm_account", "")),
        int(asked.get("runtime", 0)),
        int(asked.get("mem_mb", 0)),
        int(job.threads),
        int(asked.get("gpu", 0)),
        str(asked.get("gpu_model", "")),
        str(asked.get("qos", "") or qos),
        str(asked.get("constraint", "")),
        job.attempt,
    )


def requests(jobs: Iterable, qos: str | None = None) -> set[Request]:
    """What Snakemake's jobs and groups of jobs ask for, each once, in their first and in their last attempt.

    qos: that of jobs which name none.
    """
    found = {_request(job, qos or ""): job for job in jobs if not job.is_local}
    last = set()
    for job in found.values():
        job.attempt = 1 + job.restart_times
        last.add(_request(job, qos or ""))
        job.attempt = 1
    return found.keys() | last
