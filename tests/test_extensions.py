"""Methods in a user's own files: found, checked, carried by jobs, imported by them and fingerprinted like ours."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from test_checks import DEFAULT
from test_source import forget

from ddpm import cli, networks
from ddpm.extensions import load
from ddpm.objectives import Objective
from ddpm.pipeline import config, fingerprints, machine
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import canonical
from ddpm.pipeline.run import execute
from ddpm.samplers import Sampler
from ddpm.tables.columns import columns_of

ROOT = Path(__file__).parent.parent
METHODS = '''
"""Methods of my own."""
from dataclasses import dataclass

import torch
from torch import nn

from ddpm.datasets.digits import Digits
from ddpm.networks.network import Network
from ddpm.objectives import Weighting
from ddpm.parameters import Count, Fraction
from ddpm.samplers import DDIM, Sampler
from ddpm.schedules import like
from {helpers} import scaled


@dataclass(frozen=True)
class Jump(Sampler):
    """x_s = α_s x̂0 + σ_s z: forget the direction."""

    method = "jump"
    share: Fraction = 1.0

    def step(self, denoiser, x_t, t, s, condition, noise):
        alpha, sigma = like(x_t, denoiser.schedule.alpha(s), denoiser.schedule.sigma(s))
        return scaled(alpha * denoiser(x_t, t, condition).x0) + self.share * sigma * noise()


class Other(DDIM):
    method = "other"


class Flat(Weighting):
    """1 for x̂0."""

    method = "flat"

    def of_x0(self, schedule, t):
        return torch.ones_like(t)


class Few(Digits):
    method = "few"


class Line(Network):
    """One convolution."""

    method = "line"

    def __init__(self, shape, heads=1, classes=0, *, size: Count = 3):
        super().__init__()
        self.classes = classes
        self.layer = nn.Conv2d(shape[0], heads * shape[0], size, padding="same")

    def forward(self, x, log_snr, condition=None):
        return self.layer(x)
'''
HELPERS = "def scaled(x):\n    return 1.0 * x\n\n\ndef never(x):\n    return x\n"
OVERLAY = """
methods: [{file}]
data: {{name: few}}
network: {{method: line, width: null, multipliers: null, blocks: null, attention: null, size: 3}}
objectives: {{eps: {{target: eps, weighting: flat}}}}
samplers: {{jump: {{method: jump, steps: 4, share: 1}}}}
grid: [{{objective: [eps, x0], schedule: [linear], guidance: [none], sampler: [jump, ddim]}}]
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder, and an interpreter that has not seen it before."""
    forget()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget()


def write(folder: str, name: str) -> str:
    """The methods in a file of this name, and what they import beside it."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.py").write_text(METHODS.format(helpers=f"{name}_helpers"))
    (place / f"{name}_helpers.py").write_text(HELPERS)
    return (place / f"{name}.py").as_posix()


def grid(file: str) -> Grid:
    forget()
    return config.check(config.merge(DEFAULT, yaml.safe_load(OVERLAY.format(file=file))))


def said(overlay: str, *more: object) -> list[str]:
    forget()
    with pytest.raises(ConfigError) as caught:
        config.check(config.merge(DEFAULT, yaml.safe_load(overlay)), *more)
    return caught.value.messages


CELL, NETWORK = "eps/linear/none/jump/seed0", "eps/linear/unconditional/seed0"


def test_jobs_carry_the_file(tmp_path: Path) -> None:
    """Where a method is not ours, and only there; a job is all that is needed to make the method."""
    file = write("mine", "carried")
    found = grid(file)
    job = found.job("sample", CELL)[0]
    assert job["sampler"] == {"method": "jump", "modules": [file], "steps": 4, "spacing": "uniform", "share": 1.0}
    assert job["model"]["network"] == {"method": "line", "modules": [file], "size": 3}
    assert job["model"]["objective"]["modules"] == found.job("data")[0]["data"]["modules"] == [file]
    assert "modules" not in canonical(job["guidance"]) + canonical(job["model"]["schedule"])
    assert "modules" not in found.job("train", "x0/linear/unconditional/seed0")[0]["objective"]
    assert "methods" not in found.job("table")[0]["config"]
    script = """if True:
        import json, sys
        from ddpm import networks
        from ddpm.objectives import Objective
        from ddpm.samplers import Sampler

        job = json.load(sys.stdin)
        model = job["model"]
        network = networks.build(model["network"], (1, 8, 8), 1, 0)
        print(Sampler.make(job["sampler"]).share, Objective.make(model["objective"]).weighting.method)
        print(sum(p.numel() for p in network.parameters()))
    """
    run = subprocess.run([sys.executable, "-c", script], input=canonical(job), capture_output=True, text=True)
    assert run.stdout.split() == ["1.0", "flat", "10"], run.stderr


def codes(file: str) -> dict[tuple[str, str], str]:
    found = grid(file)
    return {job: found.job(*job)[1] for job in found.jobs}


def test_own_code_counts_like_ours() -> None:
    """By function and class, through what the file imports beside it; comments and the folder do not count."""
    file = write("mine", "counted")
    before = codes(file)
    write("elsewhere/deeper", "counted")
    assert codes("elsewhere/deeper/counted.py") == before

    def changed(path: str, old: str, new: str) -> set[tuple[str, str]]:
        text = Path(path).read_text()
        assert text.count(old) == 1
        Path(path).write_text(text.replace(old, new))
        after = codes(file)
        Path(path).write_text(text)
        return {job for job in before if before[job] != after[job]}

    jump = {job for job in before if job[0] == "sample" and "jump" in job[1]}
    helpers = file.replace(".py", "_helpers.py")
    assert changed(file, '"""One convolution."""', '"""A convolution."""') == set()
    assert changed(file, "forget the direction.", "forget it.") == set()
    assert changed(file, "self.share * sigma", "sigma * self.share") == jump
    assert changed(helpers, "1.0 * x", "x * 1.0") == jump
    assert changed(helpers, "    return x", "    return -x") == set()
    assert changed(file, "class Other(DDIM):", "class Other(Jump):") == set()
    assert changed(file, "return torch.ones_like(t)", "return 2 * torch.ones_like(t)") == {("train", NETWORK)}
    assert {s for s, _ in changed(file, "return self.layer(x)", "return -self.layer(x)")} == {
        "train",
        "sample",
        "likelihood",
    }
    assert changed(file, '    method = "few"', '    method = "few"\n    levels = 17') == {("data", "")}


def test_a_package_of_methods() -> None:
    """A folder: every module of it, whose relative imports are followed."""
    package = Path("lib/packed")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "samplers.py").write_text(METHODS.format(helpers=".inner.helpers"))
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "helpers.py").write_text(HELPERS)
    found = grid("lib/packed")
    job, code = found.job("sample", CELL)
    assert job["sampler"]["modules"] == ["lib/packed/samplers.py"]
    assert (
        Sampler.make(job["sampler"]).share == 1 and type(Sampler.make(job["sampler"])).__module__ == "packed.samplers"
    )
    (package / "inner" / "helpers.py").write_text(HELPERS.replace("1.0 * x", "x * 1.0"))
    assert grid("lib/packed").job("sample", CELL)[1] != code
    names = fingerprints.parts(frozenset({("lib/packed/samplers.py", "Jump")}))
    assert {"packed.samplers.Jump", "packed.inner.helpers.scaled", "ddpm.samplers.sampler.Sampler"} <= names.keys()


def test_a_cell_by_hand(capsys: pytest.CaptureFixture) -> None:
    """A sampler, a weighting, a network and a dataset of a file of one's own through every stage."""
    Path("config.yaml").write_text((ROOT / "config.yaml").read_text())
    small = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text()) | {"network": {}, "grid": []}
    overlay = config.merge(small, yaml.safe_load(OVERLAY.format(file=write(".", "by_hand"))))
    Path("own.yaml").write_text(yaml.safe_dump(overlay))
    forget()
    assert cli.main(["fidelity", CELL, "--configfile", "own.yaml"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["images"] == 40
    assert cli.main(["status", CELL, "--configfile", "own.yaml"]) == 0
    assert cli.main(["schema", "--configfile", "own.yaml"]) == 0
    assert '"const": "jump"' in capsys.readouterr().out


# ---- metrics and extractors -------------------------------------------------------------------------------

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


# ---- spaces -----------------------------------------------------------------------------------------------

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


# ---- mistakes -------------------------------------------------------------------------------------------------

FILES = {
    "absent": (None, "methods: absent.py: no such file; it must be one of Python, or the folder of a package"),
    "torn": ("class A(:\n", "methods: torn.py: is no file of Python: line 1: invalid syntax"),
    "nothing": (
        "X = 1\n",
        "methods: nothing.py declares no method; one is a class below Schedule, Guidance, Sampler, ",
    ),
    "typed": (
        "from torch import Tensor\nfrom ddpm.samplers import DDIM\nclass A(DDIM):\n    method = 'a'\n    x: Tensor = 0",
        "methods: typed.py: A.x: Tensor is no annotation of a parameter (NameError: Tensor); it must be made of",
    ),
    "taken": (
        "from ddpm.samplers import DDIM\nclass Mine(DDIM):\n    method = 'ddim'\n",
        "methods: the sampler 'ddim' stands in ddpm.samplers.singlestep.DDIM and in taken.py: Mine; "
        "give one another name",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_wrong_is_named(name: str) -> None:
    """In one line, beside every other mistake."""
    content, line = FILES[name]
    if content is not None:
        Path(f"{name}.py").write_text(content)
    found = said(f"{{methods: [{name}.py], seeds: [x]}}")
    assert len(found) == 2 and found[0].startswith("seeds[0]: 'x'")
    assert found[1].startswith(line) and len(found[1].splitlines()) == 1


def test_two_files_of_one_name() -> None:
    """Both places are named."""
    for name in ("first", "second"):
        Path(f"{name}.py").write_text("from ddpm.samplers import DDIM\nclass A(DDIM):\n    method = 'a'\n")
    assert said("methods: [first.py, second.py]") == [
        "methods: the sampler 'a' stands in first.py: A and in second.py: A; give one another name"
    ]


def test_a_file_that_cannot_be_imported() -> None:
    """It is found before anything runs, where jobs are about to; and where a job makes its method."""
    text = "import nowhere_at_all\nfrom ddpm.samplers import DDIM\nclass A(DDIM):\n    method = 'a'\n"
    Path("failing.py").write_text(text)
    checks = machine.checks(cluster=True)
    assert config.check(config.merge(DEFAULT, {"methods": ["failing.py"]}))
    found = said("methods: [failing.py]", *checks)
    assert len(found) == 1 and found[0].startswith(
        "methods: failing.py: cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all' ("
    )
    assert found[0].endswith("failing.py, line 1)")
    with pytest.raises(Exception, match=r"^failing\.py: cannot be imported: ModuleNotFoundError"):
        Sampler.make({"method": "a", "modules": ["failing.py"]})


@pytest.mark.parametrize("name", ["json", "numpy"])
def test_a_file_of_another_modules_name(name: str) -> None:
    """One of them would hide the other."""
    Path(f"{name}.py").write_text("from ddpm.samplers import DDIM\nclass A(DDIM):\n    method = 'a'\n")
    (line,) = said(f"methods: [{name}.py]")
    assert line.startswith(f"methods: {name}.py: its name is that of another module, ") and line.endswith("; rename it")


def test_files_are_named_at_the_top_level() -> None:
    """What a job says of a method is no key of a configuration."""
    for overlay in (
        "samplers: {ddim: {modules: [a.py]}}",
        "objectives: {eps: {modules: [a.py]}}",
        "network: {modules: [a.py]}",
        "data: {modules: [a.py]}",
    ):
        (line,) = said(overlay)
        assert line.endswith(".modules: ['a.py']; files of methods are named at the top level, under methods")
    assert said("methods: mine.py") == ["methods: 'mine.py' is of type str; it must be array"]


def test_a_parameter_of_an_own_method_is_checked() -> None:
    """As one of ours is."""
    file = write(".", "checked")
    assert said(f"{{methods: [{file}], samplers: {{j: {{method: jump, share: 2, etta: 1}}}}}}") == [
        "samplers.j.etta: unknown key; known are steps, spacing, share",
        "samplers.j.share: 2.0; it must lie in 0 … 1",
    ]


def test_loading_twice_is_loading_once() -> None:
    """A file's classes are made once in a process."""
    file = write(".", "twice")
    load(file)
    load(file)
    assert sum(m.method == "jump" and m.__module__ == "twice" for m in Sampler.all()) == 1
    assert torch.equal(Objective.make({"target": "x0"}).weight(None, torch.ones(1)), torch.ones(1).double())
    assert networks.build({"method": "line", "modules": [file]}, (1, 8, 8), 2, 0)(torch.zeros(1, 1, 8, 8), None).shape
