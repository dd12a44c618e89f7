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

ROOT = Path(__file__).parent.parent
PARTS = (
    "Snakefile",
    "config.yaml",
    "ddpm",
    "workflow",
    "envs",
    "profiles",
    "slurm",
    "tests/tiny.yaml",
    "tests/tiny-mnist.yaml",
)


def copy_project(to: Path) -> Path:
    """The project's own files, without results."""
    for part in PARTS:
        target = to / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, target)
    return to


def command(*arguments: str, files: tuple[str, ...] = ("tests/tiny.yaml",), cores: int = 2) -> list[str]:
    # Of a repeated --configfile only the last counts: all files go to one flag.
    return [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments, "--configfile", *files]


def snakemake_files(folder: Path, *files: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(files=files), cwd=folder, capture_output=True, text=True, timeout=600)


def snakemake(folder: Path, *arguments: str, overlay: str = "", cores: int = 2) -> subprocess.CompletedProcess:
    files = ("tests/tiny.yaml", overlay) if overlay else ("tests/tiny.yaml",)
    run = command(*arguments, files=files, cores=cores)
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=600)


def planned(folder: Path, overlay: str = "") -> list[tuple[str, str]]:
    """(rule, its wildcards) of every job of a dry run."""
    run = snakemake(folder, "-n", overlay=overlay)
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = re.split(r"\n(?=(?:local)?rule )", run.stdout)
    found = []
    for job in jobs[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", job)[1]
        wildcards = re.search(r"wildcards: \w+=(\S+)", job)
        found.append((rule, wildcards[1] if wildcards else ""))
    return sorted(j for j in found if j[0] != "all")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny grid."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_table(tree: Path) -> None:
    """The table has its rows in order, every cell is ok or n/a with a reason, and real data is nearest."""
    table = pd.read_csv(tree / "results/tiny/table.csv", keep_default_na=False, na_values=[""])
    assert list(table["objective"]) == ["real data", "noise", "eps", "eps", "learned", "learned", "score"]
    assert list(table["status"]) == ["ok"] * 5 + ["n/a", "ok"]
    assert "variance" in table.loc[5, "reason"]
    assert table.loc[0, "fid_over_topline"] == 1
    assert table["fid"].idxmin() == 0
    assert list(table["nfe"].dropna()) == [4, 4, 4, 8]
    assert table.loc[[2, 3, 4], "nll_bits_per_dim"].notna().all()
    assert table.loc[6, ["nll_bits_per_dim"]].isna().all()


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
    }
    for path in found:
        content = (results / path).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 500


def test_second_run_does_nothing(tree: Path) -> None:
    """A finished tree has nothing to do, also after its sources were touched."""
    for source in (tree / "ddpm").rglob("*.py"):
        source.touch()
    assert planned(tree) == []


def test_same_bytes_on_other_cores(tree: Path, tmp_path: Path) -> None:
    """A second run from scratch, on one core, gives the same table and the same weights, byte for byte."""
    other = copy_project(tmp_path / "other")
    run = snakemake(other, cores=1)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("table.csv", "table.md", "published.md", "figures/samples.png", "figures/denoising.png"):
        assert (other / "results/tiny" / name).read_bytes() == (tree / "results/tiny" / name).read_bytes(), name
    for path in (tree / "results/tiny").rglob("*.safetensors"):
        twin = other / path.relative_to(tree)
        assert twin.read_bytes() == path.read_bytes(), path


def test_rerun_of_one_sampler(tree: Path) -> None:
    """A parameter of DDIM reruns its cells and what follows from them, and nothing else."""
    (tree / "eta.yaml").write_text("samplers: {ddim: {eta: 0.5}}\n")
    cells = ["eps/linear/none/ddim/seed0", "score/cosine/cfg-w1/ddim/seed0"]
    batches = ["eps/linear/unconditional/seed0", "score/cosine/conditional/seed0"]
    wanted = [("fidelity", b) for b in batches] + [("figures", "")] + [("sample", c) for c in cells] + [("table", "")]
    assert planned(tree, "eta.yaml") == wanted


def test_rerun_after_code_change(tree: Path) -> None:
    """DDIM's own code reruns DDIM's cells (figures.py draws with samplers, so it follows); a comment nothing."""
    path = tree / "ddpm/samplers.py"
    text = path.read_text()
    try:
        path.write_text(text.replace("class DDIM", "# A remark.\nclass DDIM"))
        assert planned(tree) == []
        path.write_text(text.replace("self.eta**2 *", "1.0 * self.eta**2 *"))
        assert text != path.read_text()
        assert {rule for rule, _ in planned(tree)} == {"sample", "fidelity", "table", "figures"}
        assert [c for rule, c in planned(tree) if rule == "sample"] == [
            "eps/linear/none/ddim/seed0",
            "score/cosine/cfg-w1/ddim/seed0",
        ]
    finally:
        path.write_text(text)


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
        command(), cwd=other, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    done = other / "results/tiny/networks/eps/linear/unconditional/seed0/weights.safetensors"
    deadline = time.monotonic() + 120
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


def readme_blocks() -> list[str]:
    """The README's Python examples."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_library_example(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's use as a library gives images of the trained network in [−1, 1]."""
    monkeypatch.chdir(tree)
    names: dict = {}
    exec(readme_blocks()[0].replace('Path("results")', 'Path("results/tiny")'), names)
    images = names["images"]
    assert images.shape == (16, 1, 8, 8)
    assert -1 <= images.min() < images.max() <= 1
    assert images.std() > 0.1


def test_readme_new_sampler(tree: Path) -> None:
    """The README's example of a new method, put into its file, is a sampler of the grid that runs."""
    path = tree / "ddpm/samplers.py"
    text = path.read_text()
    (tree / "jump.yaml").write_text(
        "results: results/jump\nsamplers: {jump: {method: jump, steps: 3}}\n"
        "grid: [{objective: [eps], schedule: [linear], guidance: [none], sampler: [jump]}]\n"
    )
    try:
        path.write_text(f"{text}\n\n{readme_blocks()[1]}")
        run = snakemake(tree, "results/jump/table.csv", overlay="jump.yaml")
        assert run.returncode == 0, run.stdout + run.stderr
        table = pd.read_csv(tree / "results/jump/table.csv")
        assert list(table["sampler"].dropna()) == ["jump"]
        assert list(table["status"]) == ["ok"] * 3
        assert table["nfe"].iloc[2] == 3
    finally:
        path.write_text(text)
