"""What a cluster lacks is said before anything is submitted: on clusters of the tests' own making."""

import os
import socket
from pathlib import Path

import pytest

from ddpm.errors import UserError
from ddpm.pipeline import preflight
from ddpm.pipeline.preflight import Request

BAD_ACCOUNT = "Invalid account or account/partition combination"
NODES = "main|1:00:00|16000|8|gpu:a100:4|far1\nmain|1:00:00|32000|16|(null)|far2\ncpu|infinite|64000+|64|(null)|far3\n"
GOOD = Request("train", "main", "lab", 60, 16000, 8, 4, "a100")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that answer as a cluster's do; `tests` in the folder holds what sbatch --test-only was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "sinfo", f"printf '{NODES}'")
    program(folder, "squeue", "")
    program(folder, "scontrol", "echo 'MinJobAge               = 300 sec'")
    program(folder, "sacctmgr", "printf '  lab\\n  other\\n'")
    program(folder, "sbatch", f'echo "$@" >> {tmp_path}/asked')
    program(folder, "srun", f'echo "$@" >> {tmp_path}/ran; ls "$(eval echo \\${{$#}})"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def refused(folder: Path, *requests: Request) -> list[str]:
    with pytest.raises(UserError) as found:
        preflight.check(set(requests), [folder])
    return str(found.value).splitlines()


def test_what_fits_is_not_refused(slurm: Path) -> None:
    """The largest request that one node can serve; Slurm itself was asked with exactly these options."""
    preflight.check({GOOD}, [slurm])
    wanted = "--test-only -N 1 -c 8 -p main -A lab -t 60 --mem 16000 --gpus a100:4 --wrap true\n"
    assert (slurm / "asked").read_text() == wanted


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("train", "gpus"), "slurm_partition: 'gpus' is unknown here; `sinfo` lists main, cpu"),
        (Request("train", "main", runtime=61), "train: runtime 61 minutes, but partition main allows 60"),
        (
            Request("train", "main", mem_mb=32001),
            "train: mem_mb 32001, but the largest node of partition main has 32000",
        ),
        (
            Request("train", "main", runtime=61, attempt=4),
            "train: runtime 61 minutes in attempt 4, but partition main allows 60; "
            '`runtime: "min(…, 60)"` in slurm/config.yaml keeps to it',
        ),
        (
            Request("train", "main", mem_mb=32001, attempt=2),
            "train: mem_mb 32001 in attempt 2, but the largest node of partition main has 32000; "
            '`mem_mb: "min(…, 32000)"` in slurm/config.yaml keeps to it',
        ),
        (Request("train", "main,gpus"), "slurm_partition: 'gpus' is unknown here; `sinfo` lists main, cpu"),
        (
            Request("train", "cpu,main", mem_mb=64001),
            "train: mem_mb 64001, but the largest node of partition cpu has 64000",
        ),
        (
            Request("train", account="lab,lub"),
            "slurm_account: The given account lub appears to be invalid. Available accounts: ",
        ),
        (Request("train", "main", cpus=17), "train: threads 17, but the largest node of partition main has 16 CPUs"),
        (Request("train", "main", gpu=5), "train: gpu 5, but one node of partition main has 4"),
        (Request("train", "main", gpu=1, gpu_model="h200"), "train: gpu_model h200, but partition main has a100"),
        (
            Request("train", "cpu", gpu=1),
            "train: gpu 1, but partition cpu has none: name another one, or set gpu: 0 or `device: cpu`",
        ),
    ],
    ids=[
        "partition",
        "time",
        "memory",
        "time of the last attempt",
        "memory of the last attempt",
        "one of several partitions",
        "each of several partitions",
        "account",
        "threads",
        "GPUs",
        "kind of GPU",
        "no GPU",
    ],
)
def test_what_does_not_fit_is_named(slurm: Path, request_: Request, message: str) -> None:
    """One line: rule, key, value, and what the cluster has."""
    (line,) = refused(slurm, GOOD, request_)
    assert line == message if "account" not in message else line.startswith(message)


@pytest.mark.parametrize(
    "request_",
    [
        Request("train", "cpu,main", gpu=4, gpu_model="a100"),  # Slurm takes the one that fits
        Request("train", "main", runtime=61, qos="long"),  # which may lift a partition's limit: Slurm is asked
        Request("train", account="lab, other"),
    ],
)
def test_what_is_unusual_is_not_refused(slurm: Path, request_: Request) -> None:
    """Slurm allows it, so it passes."""
    preflight.check({request_}, [slurm])
    assert "-A lab -" in (slurm / "asked").read_text() or not request_.account


def test_jobs_that_are_forgotten(slurm: Path) -> None:
    """A cluster whose finished jobs may be gone before Snakemake has seen them end, unless accounting is asked."""
    program(slurm / "bin", "scontrol", "echo 'MinJobAge               = 0 sec'")  # none is ever forgotten
    preflight.check({GOOD}, [slurm])
    program(slurm / "bin", "scontrol", "echo 'MinJobAge               = 120 sec'")
    (line,) = refused(slurm, GOOD)
    assert line.startswith("slurm-status-command: squeue, but this cluster forgets jobs 120 s after their end")
    preflight.check({GOOD}, [slurm], "sacct")


def test_slurm_that_hangs(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which of its programs, and after how long."""
    program(slurm / "bin", "sinfo", "exec sleep 5")
    run = preflight._run
    monkeypatch.setattr(preflight, "_run", lambda *command: run(*command, seconds=0.2))
    (line,) = refused(slurm, GOOD)
    assert line == "Slurm does not answer: `sinfo -h -N -o %R|%l|%m|%c|%G|%o` took more than 0.2 s"


def test_everything_is_said_at_once(slurm: Path) -> None:
    """One line per mistake, the same one once."""
    wrong = Request("train", "gpus"), Request("sample", "gpus"), Request("data", "main", runtime=99, mem_mb=10**6)
    assert len(refused(slurm, *wrong)) == 3


def test_what_slurm_itself_refuses(slurm: Path) -> None:
    """An account, a limit of the user's: Slurm's own words, with the key."""
    program(
        slurm / "bin", "sbatch", "echo 'sbatch: error: Invalid account or account/partition combination' >&2; exit 1"
    )
    (line,) = refused(slurm, GOOD)
    assert line == f"train: Slurm refuses it (slurm_account: lab): {BAD_ACCOUNT}"


@pytest.mark.parametrize("binary", ["sbatch", "squeue", "sinfo"])
def test_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binary: str) -> None:
    """The program that is missing and what would run here."""
    for name in {"sbatch", "squeue", "sinfo"} - {binary}:
        program(tmp_path, name, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = refused(tmp_path, GOOD)
    assert first == f"no Slurm on this machine: {binary} is not on the PATH."
    assert "snakemake --cores 8" in second


def test_slurm_that_does_not_answer(slurm: Path) -> None:
    """A cluster that is down: its own first line."""
    program(slurm / "bin", "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert refused(slurm, GOOD) == ["Slurm does not answer: slurm_load_partitions: Unable to contact slurm controller"]


def test_a_folder_that_nodes_do_not_see(slurm: Path) -> None:
    """On a file system of this machine alone, a node is asked; it answers that nothing is there."""
    program(slurm / "bin", "stat", "echo xfs")
    program(slurm / "bin", "srun", "for last; do :; done; echo \"ls: cannot access '$last': No such file\" >&2; exit 2")
    wanted = f"{slurm}: lies on xfs and nodes of main do not see it: use a shared file system"
    assert refused(slurm, GOOD) == [wanted]


def test_a_program_that_nodes_do_not_see(slurm: Path) -> None:
    """An environment on this machine's own disk, results and clone on a shared one: the file is named."""
    python = slurm / "python"
    python.touch()
    program(slurm / "bin", "stat", f"case $4 in {python}) echo ext4;; *) echo nfs;; esac")
    program(slurm / "bin", "srun", f"echo \"ls: cannot access '{python}': No such file or directory\" >&2; exit 2")
    with pytest.raises(UserError) as found:
        preflight.check({GOOD}, [slurm, python])
    assert str(found.value) == f"{python}: lies on ext4 and nodes of main do not see it: use a shared file system"


@pytest.mark.parametrize("kind", ["xfs", "nfs"])
def test_a_folder_that_nodes_see(slurm: Path, kind: str) -> None:
    """A local file system that is exported is fine; a network file system is not even asked for. Nothing is left."""
    program(slurm / "bin", "stat", f"echo {kind}")
    preflight.check({GOOD}, [slurm])
    assert (slurm / "ran").exists() == (kind == "xfs")
    assert sorted(p.name for p in slurm.iterdir()) == sorted(["asked", "bin", *(["ran"] if kind == "xfs" else [])])


def test_a_cluster_of_this_machine_sees_its_folders(slurm: Path) -> None:
    """All nodes are this host: nobody is asked."""
    program(slurm / "bin", "sinfo", f"echo 'main|1:00:00|16000|8|gpu:a100:4|{socket.gethostname()}'")
    program(slurm / "bin", "stat", "echo xfs")
    preflight.check({GOOD}, [slurm])
    assert not (slurm / "ran").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30:00", 30), ("1:00:00", 60), ("2-00:00:00", 2880), ("1-12:30:30", 2190.5), ("infinite", float("inf"))],
)
def test_times(text: str, expected: float) -> None:
    """Slurm's times in minutes."""
    assert preflight.minutes(text) == expected
