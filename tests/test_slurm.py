"""`snakemake --profile slurm` on a real cluster of three nodes: the bytes of the local run, also through faults.

Skipped where Slurm is not installed, unless DDPM_REQUIRE_SLURM is set. tests/faults.py holds the whole matrix.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cluster
import pytest
from fault_injection import Run, files
from faults import trial

from ddpm.errors import UserError
from ddpm.pipeline import preflight
from ddpm.pipeline.preflight import Request

if cluster.missing() and not os.environ.get("DDPM_REQUIRE_SLURM"):
    pytest.skip(f"no cluster here: {', '.join(cluster.missing())} missing", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A cluster, and a project whose run is finished by the local executor."""
    assert not cluster.missing()
    with cluster.cluster():
        run = Run(tmp_path_factory.mktemp("slurm") / "project")
        run.finish()
        yield run


def test_the_whole_graph_gives_the_same_bytes(run: Run) -> None:
    """Table, weights, samples and pictures of a run on the cluster; no lock, checkpoint or temporary file is left."""
    shutil.rmtree(run.results)
    fast = ["--slurm-init-seconds-before-status-checks", "1"]
    run.call("results/run/table.csv", "--profile", "slurm", *fast)
    assert files(run.results) == files(run.kept)
    compared = [
        n
        for n in files(run.kept)
        if n.endswith((".safetensors", ".md", "table.csv", "loss.csv", "terms.csv", "likelihood.csv"))
    ]
    assert len(compared) > 6
    for name in compared:
        assert (run.results / name).read_bytes() == (run.kept / name).read_bytes(), name
    assert not (run.results / "work").exists()


@pytest.mark.parametrize(
    ("fault", "stage"), [("cancelled", "train"), ("two copies", "sample"), ("killed", "likelihood")]
)
def test_nothing_is_lost(run: Run, fault: str, stage: str) -> None:
    """The same bytes after the fault, from the last checkpoint on."""
    trial(run, fault, stage)


def test_what_this_cluster_lacks(run: Run) -> None:
    """A real Slurm's answers: what it has passes, what it has not is named; nothing is submitted."""
    before = cluster.output("squeue", "-h", "-t", "all")
    good = Request("train", "main", "lab", 60, cluster.MEMORY_MB, cluster.CPUS, cluster.GPUS, "fake")
    preflight.check({good}, [Path.cwd()])
    wrong = {
        Request("train", "gpus"),
        Request("sample", "main", gpu=1, gpu_model="a100"),
        Request("data", "main", runtime=1441),
        Request("guide", "main", mem_mb=cluster.MEMORY_MB + 1, attempt=4),
    }
    with pytest.raises(UserError) as found:
        preflight.check(wrong, [Path.cwd()])
    assert str(found.value).splitlines() == [
        "data: runtime 1441 minutes, but partition main allows 1440",
        "guide: mem_mb 16001 in attempt 4, but the largest node of partition main has 16000; "
        '`mem_mb: "min(…, 16000)"` in slurm/config.yaml keeps to it',
        "sample: gpu_model a100, but partition main has fake",
        "slurm_partition: 'gpus' is unknown here; `sinfo` lists main",
    ]
    assert cluster.output("squeue", "-h", "-t", "all") == before


def test_a_wrong_partition_is_said_before_submission(run: Run) -> None:
    """Through Snakemake: the message, no traceback, no job."""
    before = cluster.output("squeue", "-h", "-t", "all")
    shutil.rmtree(run.results, ignore_errors=True)
    wrong = ["--default-resources", "slurm_partition=gpus", "mem_mb=100", "runtime=5", "slurm_account=ci"]
    command = run.command(*wrong, "--profile", "slurm")
    found = subprocess.run(command, cwd=run.folder, capture_output=True, text=True)
    said = found.stdout + found.stderr
    assert found.returncode != 0 and "slurm_partition: 'gpus' is unknown here; `sinfo` lists main" in said
    assert "Traceback" not in said
    assert cluster.output("squeue", "-h", "-t", "all") == before
