"""Metrics and feature extractors in a file of one's own."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from extending import ROOT, alone, said  # noqa: F401 - fixtures
from project import DEFAULT, forget

from ddpm import cli
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.records import canonical
from ddpm.tables.columns import columns_of

MEASURES = '''
from dataclasses import dataclass

from ddpm.metrics.extractors import Extractor
from ddpm.metrics.metric import Metric


@dataclass(frozen=True)
class Grey(Metric):
    """The mean of the stored values."""

    method = "grey"
    title = "Grey"
    details = ("twice",)

    def compute(self, evaluator, samples):
        mean = float(samples.images.double().mean())
        return {"grey": mean, "grey_twice": 2 * mean}


@dataclass(frozen=True, eq=False)
class Halves(Extractor):
    """The means of the upper and the lower half."""

    method = "halves"
    counted = 2

    @property
    def hash(self):
        return "halves"

    def __call__(self, images):
        return images.double().unflatten(2, (2, -1)).mean((1, 3, 4))
'''


def measuring(name: str, text: str = MEASURES, **fidelity: object) -> Grid:
    """The default grid, measured with a file of one's own."""
    Path(f"{name}.py").write_text(text)
    forget()
    return config.check(config.merge(DEFAULT, {"methods": [f"{name}.py"], "fidelity": fidelity}))


def test_a_metric_and_an_extractor_of_ones_own() -> None:
    """The job names their file where it needs it, and only there; the table has their columns; their code counts."""
    found = measuring("greys", extractor="halves")
    job = found.job("fidelity", "noise")[0]
    assert job["fidelity"] == {"extractor": "halves", "weights": "", "modules": ["greys.py"]}
    assert "grey" in job["metrics"] and {"grey", "grey_twice"} <= set(columns_of(found.config).all)
    assert "modules" not in canonical(measuring("greys", metrics=["fid", "kid"]).job("fidelity", "noise")[0])
    assert measuring("greys", extractor="halves", metrics=["fid"]).job("fidelity", "noise")[0]["metrics"] == ["fid"]
    codes = {job: found.job(*job)[1] for job in found.jobs}
    for old, new in (("2 * mean", "3 * mean"), ("mean((1, 3, 4))", "amax((1, 3, 4))")):
        other = measuring("greys", MEASURES.replace(old, new), extractor="halves")
        assert {job[0] for job in codes if codes[job] != other.job(*job)[1]} == {"fidelity"}


def test_own_measures_by_hand(capsys: pytest.CaptureFixture) -> None:
    """From the samples to the row of the table: their numbers stand in the record and in table.csv."""
    Path("config.yaml").write_text((ROOT / "config.yaml").read_text())
    Path("by_eye.py").write_text(MEASURES)
    overlay = config.merge(
        yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text()),
        {"methods": ["by_eye.py"], "fidelity": {"extractor": "halves"}, "likelihood": {"images": 4, "times": 3}},
    )
    overlay["grid"] = [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}]
    Path("own.yaml").write_text(yaml.safe_dump(overlay))
    forget()
    cell = "eps/linear/none/ddim/seed0"
    assert cli.main(["fidelity", cell, "--configfile", "own.yaml"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["extractor"] == "halves" and said["grey_twice"] == 2 * said["grey"] > 0 and said["fid"] > 0
    assert cli.main(["likelihood", "eps/linear/unconditional/seed0", "--configfile", "own.yaml"]) == 0
    assert cli.main(["table", "--configfile", "own.yaml"]) == 0
    row = pd.read_csv("results/tiny/table.csv").iloc[-1]
    assert row["grey"] == pytest.approx(said["grey"], abs=1e-4) and row["grey_twice"] == pytest.approx(2 * row["grey"])
    assert " grey |" in Path("results/tiny/table.md").read_text()


@pytest.mark.parametrize(
    ("fidelity", "line"),
    [
        ("metrics: [fid, kd]", "fidelity.metrics: 'kd' is unknown; known are fid, fid_binarized, "),
        ("metrics: [kid]", "fidelity.metrics: 'fid' is missing; every table has it"),
        ("metrics: [fid, sliced_wasserstein]", "fidelity.metrics: 'sliced_wasserstein' wants points, which data.name "),
        ("metrics: some", "fidelity.metrics: 'some'; it must be all, or a list of some of fid, "),
        ("extractor: halves", "fidelity.extractor: 'halves' is unknown; known are classifier, inception, "),
        ("modules: [a.py]", "fidelity.modules: ['a.py']; files of methods are named at the top level"),
    ],
)
def test_measures_that_are_wrong_are_named(fidelity: str, line: str) -> None:
    """The key, what was found, what would be right."""
    (found,) = said(f"fidelity: {{{fidelity}}}")
    assert found.startswith(line)


def test_a_metric_of_a_name_that_is_taken() -> None:
    """Both places are named."""
    Path("again.py").write_text(MEASURES.replace('"grey"', '"fid"'))
    (line,) = said("methods: [again.py]")
    assert line == (
        "methods: the metric 'fid' stands in ddpm.metrics.fid.Fid and in again.py: Grey; give one another name"
    )
