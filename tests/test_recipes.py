"""The recipes of CONTRIBUTING.md, from their text to the table: each in a copy of a finished tiny grid."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
DDIM, NETWORK = "cells/eps/linear/none/ddim/seed0", "networks/eps/linear/unconditional/seed0"


@dataclass(frozen=True)
class Recipe:
    """What stands in one: files by name, and commands.

    asked: what the contract's tests of it are called;  redone: which records of the finished grid it may replace.
    """

    title: str
    asked: str
    redone: str = r"(table|figures/record|report)\.json"

    @property
    def text(self) -> str:
        return re.search(rf"^### {self.title}$(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    @property
    def files(self) -> dict[str, str]:
        """The first line of a block is its file's name."""
        return {block.split("\n")[0].removeprefix("# "): block for block in self.blocks("python") + self.blocks("yaml")}

    @property
    def commands(self) -> list[str]:
        return "".join(self.blocks("sh")).splitlines()

    def write(self, folder: Path) -> None:
        for name, block in self.files.items():
            assert not (folder / name).exists()
            (folder / name).write_text(block)


RECIPES = [
    Recipe("A sampler", "midpoint"),
    Recipe("An objective", "truncated-snr"),
    Recipe("A network", "stack"),
    Recipe("A data set", "bars"),
    Recipe("A metric", "authenticity", r"(table|figures/record|report|.*fidelity)\.json"),
]


def run(folder: Path, command: str) -> str:
    """As the reader runs it, with this interpreter."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def tiny(command: str) -> str:
    """The command on the tiny grid."""
    before = {"ddpm": "--configfile tests/tiny.yaml --configfile", "snakemake": "--configfile tests/tiny.yaml"}
    return command.replace("--configfile", before[command.split()[0]])


def records(results: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in sorted(results.rglob("*.json"))
        if path.relative_to(results).parts[0] not in ("fidelity", "code", "replaced", "work")
    }


@pytest.fixture(scope="module", params=RECIPES, ids=lambda recipe: recipe.title)
def done(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The recipe followed on top of the finished grid."""
    recipe, folder = request.param, tmp_path_factory.mktemp("recipe") / "project"
    shutil.copytree(tree, folder, symlinks=True)
    recipe.write(folder)
    check, make = recipe.commands
    assert check.startswith("ddpm check") and make.startswith("snakemake")
    assert "cells to run" in run(folder, check)
    run(folder, tiny(check))
    run(folder, tiny(make))
    return recipe, folder


def table(folder: Path, results: str = "results/tiny") -> pd.DataFrame:
    return pd.read_csv(folder / results / "table.csv")


def test_it_is_in_the_table(done: tuple[Recipe, Path]) -> None:
    """The new method's numbers stand beside those that were there."""
    recipe, folder = done
    numbers = ["fid", "fid_over_topline", "nfe", "nll_bits_per_dim", "parameters"]
    if recipe.title == "A data set":
        found = table(folder, "results/bars")
        assert list(found["dataset"]) == ["bars"] * 6 and list(found["objective"])[-1] == "eps"
        assert found["fid"].iloc[0] < found["fid"].iloc[2] and found.iloc[-1][numbers].notna().all()
        return
    found = table(folder)
    cells = found[found["sampler"].notna()]
    assert list(cells["status"]) == ["ok"] * 2 or set(cells["status"]) <= {"ok", "degenerate"}
    assert len(cells) == 2 and cells[numbers].notna().all(axis=None)
    before, new = cells.iloc[0], cells.iloc[1]
    if recipe.title == "A sampler":
        assert (new["sampler"], new["steps"], new["nfe"]) == ("midpoint", 25, 49)
    elif recipe.title == "An objective":
        assert new["objective"] == "truncated"
        pairs = pd.read_csv(folder / "results/tiny/differences.csv")
        assert len(pairs) == 1 and {*pairs["objective"], *pairs["against"].str.split("/").str[0]} == {
            "eps",
            "truncated",
        }
    elif recipe.title == "A network":
        assert (before["network"], new["network"]) == ("unet", "stack")
        assert before["parameters"] != new["parameters"]
    else:
        assert found["authenticity"].iloc[0] == 0 and found["authenticity"].iloc[2] > 0.8
        assert found["authenticity"].notna().all() and "authenticity" in (folder / "results/tiny/table.md").read_text()


def test_nothing_else_is_made_again(done: tuple[Recipe, Path], tree: Path) -> None:
    """Every record of the finished grid is as it was, but those that the new method has a part in."""
    recipe, folder = done
    before, after = (records(of / "results/tiny") for of in (tree, folder))
    changed = {name for name in before if before[name] != after.get(name)}
    assert not [name for name in changed if not re.fullmatch(recipe.redone, name)]
    overlay = yaml.safe_load(recipe.files[next(name for name in recipe.files if name.endswith(".yaml"))])
    own = overlay.get("results", "results/tiny")
    files = [recipe_file for recipe_file in recipe.files if recipe_file.endswith(".yaml")]
    said = json.loads(run(folder, tiny(f"ddpm status --json --configfile {files[0]}")))
    assert (folder / own / "table.csv").is_file() and not said["todo"]


def test_the_contract_asks_it(done: tuple[Recipe, Path]) -> None:
    """As the text says: through DDPM_METHODS, or, of a file in the package, by itself."""
    recipe, folder = done
    own = [name for name in recipe.files if name.endswith(".py") and not name.startswith("ddpm/")]
    environment = os.environ | {"PYTHONPATH": str(folder), "DDPM_METHODS": ":".join(own)}
    files = [str(ROOT / "tests" / name) for name in ("test_contract.py", "test_contract_data.py")]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *files, "-k", recipe.asked, "--rootdir", str(ROOT)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 and re.search(r"\d+ passed|^s*\.", found.stdout, re.MULTILINE), found.stdout
