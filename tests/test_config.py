"""The configuration: files, overlays, and a message for every mistake."""

from pathlib import Path

import pytest
from project import DEFAULT, ROOT, altered

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError


def mistakes(wrong: dict) -> list[str]:
    """The messages that a configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        config.check(wrong)
    assert str(caught.value) == "\n".join(caught.value.messages)
    return caught.value.messages


# ---- mistakes ---------------------------------------------------------------------------------------------

MISTAKES = {
    # path, value, what the message must name: the key, the value and what would be right
    "unknown top-level key": (("sceds",), [0], ["sceds", "unknown", "seeds"]),
    "unlike any top-level key": (("foo",), 1, ["foo", "unknown", "schedules", "sampling"]),
    "misspelt nested key": (("training", "stps"), 9, ["training.stps", "unknown", "steps"]),
    "misspelt key of a block": (("grid", 0, "samplr"), ["ddim"], ["grid[0].samplr", "unknown", "sampler"]),
    "text for a count": (("training", "steps"), "many", ["training.steps", "'many'", "integer"]),
    "quoted number": (("sampling", "batch"), "12", ["sampling.batch", "'12'", "integer"]),
    "truth for a count": (("threads",), True, ["threads", "True", "integer"]),
    "half a step": (("training", "steps"), 20.5, ["training.steps", "20.5", "integer"]),
    "one name for a list": (("grid", 0, "objective"), "eps", ["grid[0].objective", "'eps'", "array"]),
    "list for a mapping": (("samplers",), ["ddim"], ["samplers", "['ddim']", "object"]),
    "too few": (("sampling", "images"), 1, ["sampling.images", "1", "2"]),
    "no steps": (("training", "steps"), 0, ["training.steps", "0", "1"]),
    "negative seed": (("seeds",), [-1], ["seeds[0]", "-1", "0"]),
    "repeated seed": (("seeds",), [1, 1], ["seeds", "[1, 1]", "unique"]),
    "2e-4 in training": (("training", "learning_rate"), "2e-4", ["training.learning_rate", "'2e-4'", "2.0e-4"]),
    "1e-4 in a method": (
        ("schedules", "linear", "beta_first"),
        "1e-4",
        ["schedules.linear.beta_first", "'1e-4'", "float", "2.0e-4"],
    ),
    "rate that no float holds": (
        ("training", "learning_rate"),
        10**400,
        ["training.learning_rate", "1000", "a finite number"],
    ),
    "whole number that no float holds": (
        ("schedules", "linear", "beta_last"),
        10**400,
        ["schedules.linear.beta_last", "1000", "it must be float"],
    ),
    "infinite rate": (("training", "learning_rate"), float("inf"), ["training.learning_rate", "inf"]),
    "rate that is no number": (("training", "learning_rate"), float("nan"), ["training.learning_rate", "nan"]),
    "unknown device": (("device",), "gpu", ["device", "'gpu'", "auto, cpu, cuda"]),
    "unknown decay": (("training", "decay"), "linear", ["training.decay", "'linear'", "constant, cosine"]),
    "unknown target": (
        ("objectives", "eps", "target"),
        "epsilon",
        ["objectives.eps.target", "'epsilon'", "eps, score"],
    ),
    "unknown method": (("samplers", "ddim", "method"), "dimm", ["samplers.ddim.method", "'dimm'", "ancestral, ddim"]),
    "unknown network": (("network", "method"), "resnet", ["network.method", "'resnet'", "mlp, super-resolution, unet"]),
    "unknown dataset": (
        ("data", "name"),
        "cifar",
        ["data.name", "'cifar'", " digits, folder, lsun, mnist"],
    ),
    "list for a target": (("objectives", "eps", "target"), ["eps"], ["objectives.eps.target", "['eps']"]),
    "list for a method": (("samplers", "ddim", "method"), ["ddim"], ["samplers.ddim.method", "['ddim']"]),
    "unknown parameter of a sampler": (("samplers", "ddim", "etta"), 0.1, ["samplers.ddim.etta", "unknown", "eta"]),
    "unknown parameter of a target": (("objectives", "x0", "weight"), 1, ["objectives.x0.weight", "unknown", "target"]),
    "unknown parameter of the network": (("network", "witdh"), 8, ["network.witdh", "unknown", "width"]),
    "unknown parameter of the data": (("data", "sed"), 8, ["data.sed", "unknown", "seed"]),
    "text for a whole number": (("samplers", "ddim", "steps"), "50", ["samplers.ddim.steps", "'50'", "int"]),
    "text for a list": (("network", "multipliers"), "12", ["network.multipliers", "'12'", "int"]),
    "text inside a list": (("network", "multipliers"), [1, "two"], ["network.multipliers", "'two'", "int"]),
    "parameter out of bounds": (("samplers", "ddim", "eta"), 3.0, ["samplers.ddim.eta", "3.0", "0 … 1"]),
    "parameter that is none of its choices": (
        ("samplers", "ancestral", "variance"),
        "medium",
        ["samplers.ancestral.variance", "'medium'", "small, large"],
    ),
    "weighting that is none": (
        ("objectives", "eps", "weighting"),
        "vbl",
        ["objectives.eps.weighting", "'vbl'", "simple, vlb"],
    ),
    "parameters in the wrong order": (
        ("schedules", "linear", "beta_first"),
        0.5,
        ["schedules.linear.beta_first", "0.5", "beta_last, 0.02"],
    ),
    "sliced matching of noise": (
        ("objectives", "eps", "matching"),
        "sliced",
        ["objectives.eps.target", "'eps'", "'sliced'", "'score'"],
    ),
    "no time to diffuse": (("schedules", "cosine", "steps"), 1, ["schedules.cosine.steps", "1", "2"]),
    "more steps than T": (("samplers", "ddim", "steps"), 1001, ["'ddim'", "1001", "T = 1000"]),
    "undefined objective": (("grid", 0, "objective"), ["epz"], ["grid[0].objective", "'epz'", "eps"]),
    "undefined schedule": (("grid", 1, "schedule"), ["sine"], ["grid[1].schedule", "'sine'", "cosine"]),
    "undefined guidance": (("grid", 2, "guidance"), ["cfg-w2"], ["grid[2].guidance", "'cfg-w2'", "cfg-w1"]),
    "undefined sampler": (("grid", 0, "sampler"), ["ddmi"], ["grid[0].sampler", "'ddmi'", "ddim"]),
    "empty block": (("grid", 0, "sampler"), [], ["grid[0].sampler", "[]"]),
}


@pytest.mark.parametrize(("path", "value", "named"), MISTAKES.values(), ids=MISTAKES.keys())
def test_each_mistake_gives_one_short_message(path: tuple, value: object, named: list[str]) -> None:
    """Key, value and remedy stand in one message of at most three lines."""
    found = mistakes(altered((path, value)))
    if path[0] not in ("samplers", "schedules") or path[-1] != "steps":
        # A sampler with more steps than T is wrong in every block that joins the two.
        assert len(found) == 1
    assert len(found[0].splitlines()) <= 3
    for part in named:
        assert part in found[0]
    assert "valid under" not in found[0]


@pytest.mark.parametrize("missing", ["seeds", "grid", "network"])
def test_missing_section_is_named(missing: str) -> None:
    """A configuration without a section says which one."""
    (message,) = mistakes({k: v for k, v in DEFAULT.items() if k != missing})
    assert repr(missing) in message and "missing" in message


@pytest.mark.parametrize("key", ["target", "method"])
def test_missing_method_is_named(key: str) -> None:
    """An axis value without its method says which value and which key."""
    section = "objectives" if key == "target" else "samplers"
    (message,) = mistakes(altered(((section, "new"), {"steps": 3})))
    assert f"{section}.new" in message and repr(key) in message


HOSTILE = ["../x", "a,b", "a b", "", ".x", "-x", "a/b", "a\n", "ä", "x" * 65]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("section", ["objectives", "samplers"])
def test_names_that_are_no_path_parts_are_refused(section: str, name: str) -> None:
    """A name becomes a folder: nothing but short names of letters, digits, '.', '_' and '-' passes."""
    value = DEFAULT[section]["eps" if section == "objectives" else "ddim"]
    found = mistakes(altered(((section, name), value)))
    assert len(found) == 1
    assert section in found[0] and repr(name) in found[0]
    assert "64" in found[0] if len(name) > 64 else "letters, digits" in found[0]


@pytest.mark.parametrize("folder", ["../x", "/x", "a/../b", "..", ".", "a b", "a//b", "", "a\n", "-x", "a\\b"])
def test_results_stay_below_the_project(folder: str) -> None:
    """`results` is a relative path without '..' and without characters that a shell would read."""
    found = mistakes(altered((("results",), folder)))
    assert len(found) == 1
    assert found[0].startswith("results: ") and repr(folder) in found[0]
    assert "path" in found[0] or "folder" in found[0]
    assert "(^|/)" not in found[0]


def test_mistakes_of_form_are_reported_all_at_once() -> None:
    """Two unknown keys, two missing ones and two wrong types are six messages."""
    wrong = altered(
        (("foo",), 1),
        (("bar",), 2),
        (("training", "steps"), "x"),
        (("device",), "gpu"),
    )
    del wrong["seeds"], wrong["likelihood"]
    found = mistakes(wrong)
    for part in ("foo", "bar", "training.steps", "device", "'seeds'", "'likelihood'"):
        assert sum(part in message.split(";")[0] for message in found) == 1, part
    assert len(found) == 6


def test_mistakes_of_content_are_reported_all_at_once() -> None:
    """Wrong methods, parameters and names of all sections come together."""
    wrong = altered(
        (("samplers", "ddim", "eta"), "x"),
        (
            (
                "objectives",
                "v",
            ),
            {"target": "velocity"},
        ),
        (("data", "name"), "q"),
        (("grid", 1, "sampler"), ["euler", "milstein"]),
    )
    found = mistakes(wrong)
    for part in ("samplers.ddim.eta", "objectives.v.target", "data.name", "'euler'", "'milstein'"):
        assert sum(part in message for message in found) == 1, part
    assert len(found) == 5


# ---- files and overlays -----------------------------------------------------------------------------------


def test_overlay_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    """Later files win; mappings merge at every depth, lists and plain values are replaced."""
    (tmp_path / "a.yaml").write_text("training: {steps: 7}\nseeds: [1, 2]\nsamplers: {slow: {method: ddim, steps: 9}}")
    (tmp_path / "b.yaml").write_text("training: {batch: 3}\nseeds: [5]")
    merged = config.read(ROOT / "config.yaml", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert merged["training"] == DEFAULT["training"] | {"steps": 7, "batch": 3}
    assert merged["seeds"] == [5]
    assert merged["samplers"] == DEFAULT["samplers"] | {"slow": {"method": "ddim", "steps": 9}}
    assert merged["schedules"] == DEFAULT["schedules"]


def test_merge_leaves_its_arguments_alone() -> None:
    """Merging builds a new mapping."""
    base, overlay = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert config.merge(base, overlay) == {"a": {"b": 1, "c": 2}}
    assert (base, overlay) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_null_takes_a_key_back() -> None:
    """An overlay can change a method although the base gives parameters that only the old one has."""
    overlay = {"network": {"method": "mlp", "width": 16, "multipliers": None, "blocks": None, "attention": None}}
    grid = config.check(config.merge(DEFAULT, overlay))
    job, _ = grid.job("train", "eps/linear/unconditional/seed0")
    assert job["network"]["method"] == "mlp" and job["network"]["width"] == 16 and "blocks" not in job["network"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: {b", "YAML"),
        (b"- a\n- b", "list"),
        (b"", "NoneType"),
        (b"a: \xff\xfe", "YAML"),
    ],
    ids=["torn", "list", "empty", "binary"],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """What was read is no mapping: one short message with the file's name."""
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.read(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that does not exist is named."""
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such configuration file"):
        config.read(tmp_path / "nowhere.yaml")


OVERLAYS = sorted((ROOT / "workflow" / "config").glob("*.yaml"), key=lambda p: p.name)


@pytest.mark.parametrize("path", [*OVERLAYS, ROOT / "tests" / "tiny.yaml"], ids=lambda p: p.stem)
def test_every_overlay_that_is_shipped_is_valid(path: Path) -> None:
    """Each one names its own results folder, so that no two trees mix; that of a GPU lies on top of another."""
    below = [path.with_name(path.name.replace("-gpu", ""))] if path.stem.endswith("-gpu") else []
    grid = config.check(config.read(ROOT / "config.yaml", *below, path))
    assert grid.runs
    assert grid.results != DEFAULT["results"]
    # The page and Snakemake's report have a caption below each picture.
    assert [name for name in grid.pictures if not (ROOT / "workflow" / "report" / f"{name}.rst").exists()] == []
