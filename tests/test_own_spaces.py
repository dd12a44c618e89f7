"""A space in a file of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from extending import ROOT, alone  # noqa: F401 - fixtures
from project import DEFAULT, forget

from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical
from ddpm.pipeline.run import execute

SPACE = """
from ddpm.spaces import Pixels


class Inverted(Pixels):
    method = "inverted"

    def encode(self, stored):
        return -super().encode(stored)

    def decode(self, x):
        return super().decode(-x)
"""
NEGATIVES = """
from ddpm.datasets.digits import Digits


class Negatives(Digits):
    method = "negatives"
    space = {"method": "inverted", "levels": 17}
"""


def negatives(space: str = SPACE, **more: object) -> Grid:
    """The tiny grid on digits that have a space of one's own, each in a file of its own."""
    Path("a_space.py").write_text(space)
    Path("some_data.py").write_text(NEGATIVES)
    forget()
    tiny = config.merge(DEFAULT, yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text()))
    return config.check(
        config.merge(tiny, {"methods": ["some_data.py", "a_space.py"], "data": {"name": "negatives"}} | more)
    )


def test_a_space_of_ones_own() -> None:
    """Every job knows its file, and its code counts in all of them; with our data none does."""
    found = negatives()
    assert found.job("data")[0]["data"]["modules"] == ["some_data.py", "a_space.py"]
    codes = {job: found.job(*job)[1] for job in found.jobs}
    assert all(found.job(*job)[0]["space"] == {"method": "inverted", "modules": ["a_space.py"]} for job in codes)
    other = negatives(SPACE.replace("return -super", "return 1 * -super"))
    assert {job for job in codes if codes[job] != other.job(*job)[1]} == set(codes)
    ours = negatives(data={"name": "digits"})
    assert not [job for job in ours.jobs if "space" in ours.job(*job)[0] or "a_space" in canonical(ours.job(*job)[0])]


def test_a_space_is_read_in_another_process(tmp_path: Path) -> None:
    """The stored data say where it is declared, and x of the darkest level is 1 there too."""
    found, layout = negatives(), Layout(Path("out"))
    execute("data", *found.job("data"), layout)
    script = """if True:
        from pathlib import Path
        import torch
        from ddpm.datasets import dataset
        space = dataset.read(Path("out/data/images.safetensors")).space
        print(space.method, float(space.encode(torch.zeros(1, 1, 8, 8)).mean()), space.spec["modules"])
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.split() == ["inverted", "1.0", "['a_space.py']"], run.stderr


def test_a_space_that_there_is_not() -> None:
    """The data and the name."""
    with pytest.raises(ConfigError) as caught:
        negatives("from ddpm.spaces import Pixels\nclass Other(Pixels):\n    method = 'other'\n")
    assert caught.value.messages == ["data.name: 'negatives' has the space 'inverted'; known are pixels, points, other"]
