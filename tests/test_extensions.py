"""Methods in a user's own files: found, checked, carried by jobs, imported by them and fingerprinted like ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from extending import HELPERS, METHODS, OVERLAY, ROOT, alone, grid, said, write  # noqa: F401 - fixtures
from project import DEFAULT, forget

from ddpm import cli, networks
from ddpm.extensions import load
from ddpm.objectives import Objective
from ddpm.pipeline import config, fingerprints, machine
from ddpm.pipeline.records import canonical
from ddpm.samplers import Sampler

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
