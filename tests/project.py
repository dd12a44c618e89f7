"""A copy of the project, Snakemake in it as a user runs it, and what it plans."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ddpm.pipeline import config, declarations, fingerprints, registry, source
from ddpm.pipeline.checks import ConfigError

ROOT = Path(__file__).parent.parent
DEFAULT = config.read(ROOT / "config.yaml")
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


def forget() -> None:
    """Empty every cache of what was read from source."""
    for cached in (
        source.read,
        source.path_of,
        fingerprints._reach,
        fingerprints.fingerprint,
        declarations.lineage,
        declarations.describe,
        declarations.found_in,
        declarations.methods,
        registry._composed,
    ):
        cached.cache_clear()


def altered(*changes: tuple[tuple, object], base: dict = DEFAULT) -> dict:
    """A copy of the configuration with other values at some paths."""
    new = copy.deepcopy(base)
    for path, value in changes:
        place = new
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    return new


BASES = {
    "digits": DEFAULT,
    "mnist": config.read(ROOT / "config.yaml", ROOT / "workflow" / "config" / "mnist.yaml"),
    "points": config.read(ROOT / "config.yaml", ROOT / "workflow" / "config" / "toy.yaml"),
}


def said(overlay: str, base: str = "digits", *more: object) -> list[str]:
    """The lines that an overlay is refused with; none where it is accepted."""
    try:
        config.check(config.merge(BASES[base], yaml.safe_load(overlay)), *more)
    except ConfigError as e:
        assert all(len(message.splitlines()) == 1 for message in e.messages)
        return e.messages
    return []
