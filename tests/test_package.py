"""The wheel: what is in it, and a project folder that runs from it, far from any clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import ROOT, copy_project

import ddpm
from ddpm import cli
from ddpm.errors import UserError
from ddpm.pipeline import config, project, records
from ddpm.pipeline.layout import Layout

# The wheel is of another version than this clone, so that every record says which of the two made it.
VERSION = f"{ddpm.__version__}+wheel"
CELL = "eps/linear/none/ddim/seed0"
SMALL = {
    "device": "cpu",
    "network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None},
    "training": {"steps": 6, "batch": 16, "warmup": 2},
    "samplers": {"ddim": {"steps": 4}},
    "grid": [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}],
    "sampling": {"images": 24, "batch": 16},
    "classifier": {"width": 4, "features": 8, "epochs": 1},
    "likelihood": {"images": 4, "times": 3},
}


def pip(*arguments: str) -> None:
    """pip as it is here, without an index."""
    run = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-index", "--no-deps"]
    found = subprocess.run(run, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this clone."""
    clone, to = copy_project(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "results/README.md"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    package = clone / "ddpm/__init__.py"
    package.write_text(package.read_text().replace(ddpm.__version__, VERSION))
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(to), str(clone))
    (found,) = to.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed in, below a git repository of somebody else's."""
    repository = tmp_path_factory.mktemp("theirs")
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(repository), *who, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    pip("install", "--target", str(repository / "site"), str(wheel))
    return repository / "site"


class Folder:
    """A project folder of the installed package, and commands in it."""

    def __init__(self, path: Path, site: Path):
        self.path, self.environment = path, os.environ | {"PYTHONPATH": str(site)}

    def run(self, *command: str) -> subprocess.CompletedProcess:
        run = [sys.executable, *command]
        return subprocess.run(run, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=600)

    def said(self, *command: str) -> str:
        """What a command that must succeed prints."""
        found = self.run("-m", *command)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def folder(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """An empty folder after `ddpm init`."""
    made = Folder(tmp_path_factory.mktemp("project"), installed)
    said = made.said("ddpm", "init")
    assert "`snakemake --cores 8 results/table.csv`" in said.splitlines()[-1]
    assert sorted(said.splitlines()[:-1]) == sorted(
        str(path.relative_to(made.path)) for path in made.path.rglob("*") if path.is_file()
    )
    return made


@pytest.fixture(scope="module")
def finished(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder with a smaller config.yaml, after the main job."""
    made = Folder(tmp_path_factory.mktemp("finished"), installed)
    made.said("ddpm", "init")
    path = made.path / "config.yaml"
    path.write_text(yaml.safe_dump(config.merge(config.load(path), SMALL)))
    made.said("snakemake", "--cores", "2", "results/table.csv")
    return made


# ---- what is in it ----------------------------------------------------------------------------------------


def test_the_wheel_holds_what_a_clone_runs_with(wheel: Path) -> None:
    """Every module, and Snakefile, configuration, overlays, rules, schemas, published tables and profiles, as here."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ddpm").rglob("*.py")}
    parts = ["Snakefile", "config.yaml", "slurm/config.yaml", "profiles/default/config.yaml", "results/README.md"]
    parts += [str(path.relative_to(ROOT)) for path in (ROOT / "workflow").rglob("*") if path.is_file()]
    parts += ["envs/ddpm.yaml", "envs/requirements.lock"]
    assert held.keys() == modules | {"ddpm/py.typed"} | {f"ddpm/project/{part}" for part in parts}
    assert all(held[f"ddpm/project/{part}"] == (ROOT / part).read_bytes() for part in parts)


def test_the_distribution(wheel: Path) -> None:
    """Its name, its version, which stands in ddpm/__init__.py alone, its command, and all that a run needs."""
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        said = Parser().parsestr(archive.read(about).decode())
        entries = archive.read(about.replace("METADATA", "entry_points.txt")).decode()
    assert (said["Name"], said["Version"]) == ("ddpm-benchmark", VERSION)
    assert "ddpm = ddpm.cli:main" in entries
    required = {re.match(r"[\w.-]+", line)[0] for line in said.get_all("Requires-Dist")}
    lines = (ROOT / "envs/requirements.in").read_text().splitlines()
    named = {re.match(r"[\w.-]+", line)[0] for line in lines if line and not line.startswith("#")}
    assert required == named - {"setuptools"}  # which builds the wheel


# ---- ddpm init --------------------------------------------------------------------------------------------


def test_the_clone_is_not_what_runs(folder: Folder, installed: Path) -> None:
    """What Python imports there is the installed package, and it finds its own files."""
    script = (
        "import ddpm; from ddpm.pipeline import config, results; print(ddpm.__file__, config.SCHEMA, results.PUBLISHED)"
    )
    found = folder.run("-c", script).stdout.split()
    package = installed / "ddpm"
    assert found == [
        str(package / "__init__.py"),
        str(package / "project/workflow/schemas/config.schema.yaml"),
        str(package / "project/workflow/published"),
    ]


def test_the_configuration_is_the_clones(folder: Folder) -> None:
    """The same file, and so the same cells."""
    assert (folder.path / "config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()
    assert folder.said("ddpm", "check").splitlines()[-1] == "23 cells to run on 7 networks, 1 n/a"


@pytest.mark.parametrize("overlay", ["", *sorted(path.name for path in (ROOT / "workflow/config").glob("*.yaml"))])
def test_what_a_clone_plans_is_planned(folder: Folder, overlay: str) -> None:
    """Everything is the default target; every overlay's jobs and the Slurm profile's are as many as in a clone."""
    below = [overlay.replace("-gpu", "")] if "-gpu" in overlay else []
    layers = [f"workflow/config/{name}" for name in (*below, *filter(None, [overlay]))]
    said = folder.said("snakemake", "-n", *(["--configfile", *layers] if overlay else ["--profile", "slurm"]))
    grid = config.check(config.read(ROOT / "config.yaml", *(ROOT / layer for layer in layers)))
    batched = len(grid.batches) - sum(stage == "fidelity" for stage, _ in grid.jobs)
    expected = len(grid.jobs) + batched + 4  # table, figures, page, everything
    assert re.search(rf"^total +{expected}$", said, re.MULTILINE), said


@pytest.mark.parametrize(
    ("existing", "named"),
    [
        (["config.yaml"], "config.yaml"),
        (["slurm/config.yaml", "Snakefile"], "Snakefile, slurm/config.yaml"),
        (["workflow"], "workflow"),  # a file, where a folder must be
    ],
)
def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, existing: list[str], named: str
) -> None:
    """What exists already is named, all of it, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    for name in existing:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["init"]) == 2
    message = capsys.readouterr().err
    assert message == f"ddpm: {named}: already here, and nothing is overwritten; run it in an empty folder\n"
    assert sorted(tmp_path.rglob("*")) == before and all(Path(name).read_text() == "mine" for name in existing)


def test_a_link_to_nothing_is_in_the_way(tmp_path: Path) -> None:
    """What it points to is not made."""
    (tmp_path / "config.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"^config.yaml: already here"):
        project.init(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_beside_other_files(tmp_path: Path) -> None:
    """Folders that are there already take what is not in them yet."""
    (tmp_path / "results").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    written = project.init(tmp_path)
    assert "results/README.md" in written and all((tmp_path / name).is_file() for name in written)


# ---- a run ------------------------------------------------------------------------------------------------


def test_the_main_job(finished: Folder) -> None:
    """The table is there, made by the installed package in every job, with the clone's code and no commit."""
    table = pd.read_csv(finished.path / "results/table.csv")
    assert list(table["sampler"].dropna()) == ["ddim"] and len(table) == 6
    layout, grid = Layout(finished.path / "results"), config.check(config.load(finished.path / "config.yaml"))
    for stage, name in [*grid.jobs, ("table", "")]:
        record = records.read_record(layout.record(stage, name))
        assert record["versions"]["ddpm"] == VERSION
        assert record["commit"] is None and record["dirty"] is None
        assert (record["job"], record["code"]) == grid.job(stage, name)
    assert "published" in record["inputs"]


def test_a_change_is_seen(finished: Folder) -> None:
    """Only the pictures are left to run; another η reruns that sampler's cell and what follows, and is named."""
    assert "figures" in finished.said("ddpm", "status") and "sample " not in finished.said("ddpm", "status")
    path = finished.path / "config.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump(config.merge(config.load(path), {"samplers": {"ddim": {"eta": 0.5}}})))
    try:
        assert "sampler.eta: 0.0 → 0.5" in finished.said("ddpm", "status")
        planned = finished.said("snakemake", "-n", "--cores", "2", "results/table.csv")
        assert sorted(re.findall(r"^rule (\w+):", planned, re.MULTILINE)) == ["fidelity", "sample", "table"]
        finished.said("ddpm", "fidelity", CELL)
        assert f"fidelity {CELL}: ok" in finished.said("ddpm", "status", CELL)
        assert "sampler.eta" not in finished.said("ddpm", "status")
    finally:
        path.write_text(before)


def test_a_mistake_is_said(finished: Folder) -> None:
    """In one line, by both commands."""
    (finished.path / "wrong.yaml").write_text("training: {stps: 3}\n")
    for command in (["ddpm", "check"], ["snakemake", "-n", "--cores", "1"]):
        found = finished.run("-m", *command, "--configfile", "wrong.yaml")
        said = found.stdout + found.stderr
        assert found.returncode != 0 and "training.stps: unknown key; did you mean steps?" in said


def test_environments_of_jobs_are_refused(folder: Folder) -> None:
    """envs/ddpm.yaml holds what a clone's jobs need: not the package itself."""
    found = folder.run("-m", "snakemake", "-n", "--cores", "1", "--sdm", "conda")
    said = found.stdout + found.stderr
    assert found.returncode != 0 and "--sdm: the environment of envs/ddpm.yaml holds no ddpm" in said


@pytest.mark.parametrize(("package", "base"), [("samplers", "Sampler"), ("datasets.dataset", "Dataset")])
def test_a_file_of_the_package_is_all_that_a_method_takes(package: str, base: str, tmp_path: Path) -> None:
    """A class in a new file of its folder is found by its name, where jobs look for it, without a line elsewhere."""
    shutil.copytree(ROOT / "ddpm", tmp_path / "ddpm", ignore=shutil.ignore_patterns("__pycache__"))
    folder = package.split(".")[0]
    text = f"from ddpm.{folder}.{base.lower()} import {base}\n\n\nclass New({base}):\n    method = 'new'\n"
    (tmp_path / "ddpm" / folder / "of_its_own.py").write_text(text)
    script = f"import ddpm.{folder}; from ddpm.{package} import {base}; print({base}.named('new').__module__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.stdout.strip() == f"ddpm.{folder}.of_its_own", run.stderr
