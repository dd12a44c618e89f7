"""The smallest real grid end to end through Snakemake, in a copy of the project, as a user runs it."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from project import ROOT, command, copy_project, snakemake


def test_table(tree: Path) -> None:
    """The table has its rows in order, and real data is nearest. Networks of 24 steps make noise: `degenerate`."""
    table = pd.read_csv(tree / "results/tiny/table.csv", keep_default_na=False, na_values=[""])
    real = ["real data", "real data, classes by chance"]
    reference = [*real, "noise", "histogram", "class-histogram"]
    assert list(table["objective"]) == [*reference, "eps", "eps", "learned", "learned", "score"]
    assert list(table["status"]) == ["ok"] * 5 + ["degenerate"] * 3 + ["n/a", "degenerate"]
    assert table["reason"].str.contains("times as far from the test split as noise is")[[5, 6, 7, 9]].all()
    assert "variance" in table.loc[8, "reason"]
    assert list(table.loc[:1, "fid_over_topline"]) == [1, 1]
    assert table["fid"].idxmin() == 0
    assert list(table["nfe"].dropna()) == [4, 4, 4, 8]
    assert table.loc[[2, 3, 4], "nll_bits_per_dim"].tolist() == [4.0875, 2.4361, 2.2633]
    assert table.loc[[5, 6, 7], "nll_bits_per_dim"].notna().all()
    assert table.loc[9, ["nll_bits_per_dim"]].isna().all()


def test_pictures(tree: Path) -> None:
    """Every picture is a PNG of some size, one grid of samples per cell among them."""
    results = tree / "results/tiny"
    found = sorted(p.relative_to(results) for p in results.rglob("*.png"))
    assert len([p for p in found if p.parts[0] == "cells"]) == 4
    assert {p.name for p in found if p.parts[0] == "figures"} == {
        "samples.png",
        "training.png",
        "forward.png",
        "denoising.png",
        "comparison.png",
        "bound.png",
        "schedules.png",
        "neighbours.png",
    }
    for path in found:
        content = (results / path).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 500


def test_snakemakes_own_report(tree: Path, tmp_path: Path) -> None:
    """`snakemake --report` makes its page of a finished tree, with tables and every figure under their captions."""
    run = snakemake(tree, "--report", str(tmp_path / "report.html"))
    assert run.returncode == 0, run.stdout + run.stderr
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("table.csv", "published.md", "claims.md", *(p.name for p in tree.glob("results/tiny/figures/*.png"))):
        assert f'"name": "{name}"' in made, name


def test_same_bytes_on_other_cores(tree: Path, tmp_path: Path) -> None:
    """A second run from scratch, on one core, gives the same table and the same weights, byte for byte."""
    other = copy_project(tmp_path / "other")
    run = snakemake(other, cores=1)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("table.csv", "table.md", "published.md", "claims.md", "figures/samples.png", "figures/denoising.png"):
        assert (other / "results/tiny" / name).read_bytes() == (tree / "results/tiny" / name).read_bytes(), name
    for path in (tree / "results/tiny").rglob("*.safetensors"):
        twin = other / path.relative_to(tree)
        assert twin.read_bytes() == path.read_bytes(), path


def test_mistake_in_configuration(tree: Path) -> None:
    """A wrong configuration ends with its message, not with a traceback or the schema."""
    (tree / "wrong.yaml").write_text("trainig: {steps: 3}\n")
    run = snakemake(tree, "-n", overlay="wrong.yaml")
    said = run.stdout + run.stderr
    assert run.returncode != 0
    assert "trainig: unknown key; did you mean training?" in said
    assert "Traceback" not in said and "$schema" not in said


def test_interrupt_leaves_finished_results(tree: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle: what is finished stays, the next run completes to the same table."""
    other = copy_project(tmp_path / "interrupted")
    process = subprocess.Popen(
        command(),
        cwd=other,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that put the tests in the background has them ignore SIGINT, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    done = other / "results/tiny/networks/eps/linear/unconditional/seed0/weights.safetensors"
    deadline = time.monotonic() + 600
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    before = done.read_bytes()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert done.read_bytes() == before
    assert not (other / "results/tiny/table.csv").exists()
    run = snakemake(other, "results/tiny/table.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    assert done.read_bytes() == before
    assert (other / "results/tiny/table.csv").read_bytes() == (tree / "results/tiny/table.csv").read_bytes()


def test_slurm_profile_plans(tree: Path) -> None:
    """`snakemake --profile slurm` finds its profile and plans, with no cluster at hand."""
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--profile", "slurm", "--configfile", "tests/tiny.yaml"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def written_commands() -> list[str]:
    """The Snakemake commands of the README and of the overlays' first lines."""
    texts = [p.read_text() for p in (ROOT / "README.md", *sorted((ROOT / "workflow/config").glob("*.yaml")))]
    return sorted({c.strip() for t in texts for c in re.findall(r"^(?:#   )?snakemake ([^#\n]+)", t, re.MULTILINE)})


@pytest.mark.parametrize("written", written_commands())
def test_written_commands(tree: Path, written: str) -> None:
    """Every command that a reader may copy plans as it is written."""
    run = [sys.executable, "-m", "snakemake", "-n", *written.split()]
    found = subprocess.run(run, cwd=tree, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "total" in found.stdout


def readme_block(word: str) -> str:
    """The README's one Python example that has this word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    return block


def test_readme_library_example(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's use as a library gives images of the trained network in [−1, 1]."""
    monkeypatch.chdir(tree)
    names: dict = {}
    exec(readme_block("load_denoiser").replace('Path("results")', 'Path("results/tiny")'), names)
    images = names["images"]
    assert images.shape == (16, 1, 8, 8)
    assert -1 <= images.min() < images.max() <= 1
    assert images.std() > 0.1


def test_readme_new_sampler(tree: Path) -> None:
    """The README's example of a new method, in a file of its own, is a sampler of the grid that runs."""
    (tree / "my_methods.py").write_text(readme_block("(Sampler)"))
    (tree / "jump.yaml").write_text(
        "results: results/jump\nmethods: [my_methods.py]\nsamplers: {jump: {method: jump, steps: 3}}\n"
        "grid: [{objective: [eps], schedule: [linear], guidance: [none], sampler: [jump]}]\n"
    )
    run = snakemake(tree, "results/jump/table.csv", overlay="jump.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    table = pd.read_csv(tree / "results/jump/table.csv")
    assert list(table["sampler"].dropna()) == ["jump"]
    assert list(table["status"]) == [*["ok"] * 5, "degenerate"]
    assert table["nfe"].iloc[5] == 3


def test_a_node_uses_what_a_cancelled_copy_finished(tree: Path, tmp_path: Path) -> None:
    """Snakemake would delete a job's outputs and its log before it runs it: a valid result is left, not made again."""
    network, tree = "eps/linear/unconditional/seed0", shutil.copytree(tree, tmp_path / "node")
    folder, log = tree / "results/tiny/networks" / network, tree / f"results/tiny/logs/train/{network}.log"
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert {"record.json", "weights.safetensors", "loss.csv"} <= before.keys()
    said = log.read_text()
    # As the executor's plugin starts it there.
    node = ["--mode", "remote", "--target-jobs", f"train:network={network}", "--allowed-rules", "train", "--force"]
    run = snakemake(tree, *node, "--nolock", "--no-hooks", "--ignore-incomplete")
    assert run.returncode == 0, run.stdout + run.stderr
    assert log.read_text().startswith(said) and "record.json: already there" in log.read_text().removeprefix(said)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(("gpu", "device"), [(0, "cpu"), (1, "cuda")])
def test_a_node_computes_on_what_the_job_was_given(tree: Path, gpu: int, device: str) -> None:
    """`gpu: 0` in a profile is the CPU, also on a node whose GPUs the job would see, or where config.yaml wants one."""
    (tree / "cuda.yaml").write_text("device: cuda\n")
    node = ["--mode", "remote", "--target-jobs", "likelihood:network=eps/linear/unconditional/seed0"]
    node += ["--allowed-rules", "likelihood", "--force", "--set-resources", f"likelihood:gpu={gpu}", "--nolock"]
    run = snakemake(tree, *node, "-n", "--printshellcmds", overlay="cuda.yaml")
    assert run.returncode == 0 and f" --device {device} " in run.stdout + run.stderr, run.stdout + run.stderr
