"""The configuration: every mistake gets its message, and a job's text changes exactly when its result may."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.records import canonical
from ddpm.pipeline.stage import BASELINES

ROOT = Path(__file__).parent.parent
DEFAULT = config.read(ROOT / "config.yaml")


def altered(*changes: tuple[tuple, object], base: dict = DEFAULT) -> dict:
    """A copy of the configuration with other values at some paths."""
    new = copy.deepcopy(base)
    for path, value in changes:
        place = new
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    return new


def mistakes(wrong: dict) -> list[str]:
    """The messages that a configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        config.check(wrong)
    assert str(caught.value) == "\n".join(caught.value.messages)
    return caught.value.messages


def jobs(grid: Grid) -> dict[tuple[str, str], str]:
    """The canonical text of every job of a grid but the aggregating ones, by stage and name."""
    names = [("data", ""), ("classifier", "")]
    names += [("train", n) for n in grid.networks] + [("likelihood", n) for n in grid.names["likelihood"]]
    names += [("sample", n) for n in grid.runs] + [("fidelity", n) for n in [*grid.runs, *BASELINES]]
    return {(stage, name): canonical(grid.job(stage, name)[0]) for stage, name in names}


def changed(new: dict, old: dict = DEFAULT) -> set[tuple[str, str]]:
    """The jobs that two configurations with the same cells do not share."""
    before, after = jobs(config.check(old)), jobs(config.check(new))
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


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
    "unknown network": (("network", "method"), "resnet", ["network.method", "'resnet'", "mlp, unet"]),
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
    """Each one names its own results folder, so that no two trees mix."""
    grid = config.check(config.read(ROOT / "config.yaml", path))
    assert grid.runs
    assert grid.results != DEFAULT["results"]


# ---- jobs -------------------------------------------------------------------------------------------------


def reversed_keys(value: object) -> object:
    """The same mapping with every level's keys in the opposite order."""
    if isinstance(value, dict):
        return {k: reversed_keys(v) for k, v in reversed(value.items())}
    return [reversed_keys(v) for v in value] if isinstance(value, list) else value


def test_order_of_keys_changes_no_job() -> None:
    """Canonical text does not depend on how the file is laid out."""
    turned = reversed_keys(DEFAULT)
    assert list(turned) != list(DEFAULT)
    assert changed(turned) == set()
    assert canonical(config.check(turned).job("table")[0]) == canonical(config.check(DEFAULT).job("table")[0])


def test_repeating_defaults_changes_no_job() -> None:
    """A parameter that is written out at its default, where something uses it, is the same job as one that is not."""
    grid, full = config.check(DEFAULT), copy.deepcopy(DEFAULT)
    for section, axis in (
        ("objectives", "objective"),
        ("schedules", "schedule"),
        ("guidances", "guidance"),
        ("samplers", "sampler"),
    ):
        for name in full[section]:
            unused = {"gamma", "sigma_data", "level_mean", "level_std", *(["vlb_weight"] if name != "learned" else [])}
            full[section][name] = {k: v for k, v in grid.axis(axis, name).items() if k not in unused}
    full["network"] = grid.job("train", next(iter(grid.networks)))[0]["network"]
    assert full["objectives"]["x0"].keys() > DEFAULT["objectives"]["x0"].keys()
    assert changed(full) == set()


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        (("guidances", "cfg-w1", "weight"), 1),
        (("samplers", "ddim", "eta"), 0),
        (("objectives", "learned", "vlb_weight"), 1),
        (("schedules", "cosine", "offset"), 1),
        (("training", "gradient_clip"), 1),
        (("training", "learning_rate"), 1),
        (("training", "ema_decay"), 0),
        (("classifier", "learning_rate"), 1),
    ],
    ids=lambda v: ".".join(v) if isinstance(v, tuple) else str(v),
)
def test_a_whole_number_is_the_same_job_as_its_float(path: tuple, whole: int) -> None:
    """1 and 1.0 mean the same where a float is declared."""
    assert changed(altered((path, whole)), altered((path, float(whole)))) == set()


@pytest.mark.parametrize(
    "path",
    [("training", "steps"), ("seeds", 0), ("sampling", "images"), ("classifier", "epochs"), ("threads",)],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_float_for_a_count_is_refused_or_the_same_job(path: tuple) -> None:
    """2.0 where a count is meant either is the same job as 2, or a mistake; a job that fails later it is not."""
    new = altered((path, 2.0))
    try:
        config.check(new)
    except ConfigError as e:
        assert all("2.0" in message for message in e.messages)
    else:
        assert changed(new, altered((path, 2))) == set()


@pytest.mark.parametrize(
    ("one", "other", "stage"),
    [
        (("guidances", "cfg-w1", "weight"), ("guidances", "cfg-w5", "weight"), "sample"),
        (("samplers", "ancestral", "steps"), ("samplers", "ddim", "steps"), "sample"),
        (("training", "batch"), ("training", "warmup"), "train"),
        (("classifier", "width"), ("classifier", "features"), "classifier"),
        (("likelihood", "images"), ("likelihood", "times"), "likelihood"),
    ],
    ids=lambda v: ".".join(v) if isinstance(v, tuple) else v,
)
def test_swapping_two_values_changes_the_jobs(one: tuple, other: tuple, stage: str) -> None:
    """The same set of numbers under exchanged keys is another job."""

    def at(path: tuple) -> object:
        place = DEFAULT
        for part in path:
            place = place[part]
        return place

    assert at(one) != at(other)
    found = changed(altered((one, at(other)), (other, at(one))))
    assert found and {s for s, _ in found} == {stage}


def of_axis(number: int, value: str) -> Callable[[str, str], bool]:
    """Whether a part of a job's name is this one."""
    return lambda stage, name: name.split("/")[number] == value if "/" in name else False


# The stages that run a network's own code, which their jobs name.
MODEL = {"train", "sample", "likelihood"}
EFFECTS = {
    "a sampler": (("samplers", "ddim", "steps"), 10, {"sample"}, of_axis(3, "ddim")),
    "a guidance": (("guidances", "cfg-w5", "weight"), 4.0, {"sample"}, of_axis(2, "cfg-w5")),
    "a schedule": (("schedules", "cosine", "offset"), 0.01, MODEL, of_axis(1, "cosine")),
    "an objective": (("objectives", "learned", "vlb_weight"), 0.1, MODEL, of_axis(0, "learned")),
    "label dropout": (("training", "label_dropout"), 0.2, {"train"}, of_axis(2, "conditional")),
    "training": (("training", "steps"), 1000, {"train"}, lambda stage, name: True),
    "the network": (("network", "width"), 8, MODEL, lambda stage, name: True),
    "the number of samples": (("sampling", "images"), 800, {"sample", "fidelity"}, lambda stage, name: True),
    "the bound": (("likelihood", "times"), 10, {"likelihood"}, lambda stage, name: True),
    "the classifier": (("classifier", "epochs"), 1, {"classifier"}, lambda stage, name: True),
    "the data's split": (("data", "seed"), 1, {"data", "classifier", "train"}, lambda stage, name: True),
    "the precision": (("compute", "precision"), "float32", {"train", "sample"}, lambda stage, name: True),
    "whether to compile": (("compute", "compile"), True, {"train", "sample"}, lambda stage, name: True),
    "the device": (("device",), "cpu", set(), lambda stage, name: True),
    "jobs per GPU": (("jobs_per_gpu",), 3, set(), lambda stage, name: True),
    "the time between checkpoints": (("checkpoint_seconds",), 5, set(), lambda stage, name: True),
    "the folder": (("results",), "elsewhere", set(), lambda stage, name: True),
}


@pytest.mark.parametrize(("path", "value", "stages", "which"), EFFECTS.values(), ids=EFFECTS.keys())
def test_a_change_touches_exactly_the_jobs_that_it_concerns(
    path: tuple, value: object, stages: set[str], which: Callable[[str, str], bool]
) -> None:
    """What reruns directly after one change; what follows from it reruns through its inputs."""
    expected = {key for key in jobs(config.check(DEFAULT)) if key[0] in stages and which(*key)}
    assert bool(expected) == bool(stages)
    assert changed(altered((path, value))) == expected


def test_two_seeds_are_two_jobs() -> None:
    """Every seed trains and samples its own."""
    grid = config.check(altered((("seeds",), [3, 8])))
    assert {n.seed for n in grid.networks.values()} == {3, 8}
    one, two = (grid.job("train", f"eps/linear/unconditional/seed{s}")[0] for s in (3, 8))
    assert {k for k in one if one[k] != two[k]} == {"name", "seed"}


# ---- cells ------------------------------------------------------------------------------------------------


def test_a_pair_that_cannot_work_carries_its_reason() -> None:
    """Learned variance under DDIM is a row with a reason and no job; its network serves the other sampler."""
    grid = config.check(DEFAULT)
    refused = [c for c in grid.cells if c.reason]
    assert [c.row for c in refused] == [("learned", "linear", "none", "ddim", "unet")]
    assert "variance" in refused[0].reason and "sampler" in refused[0].reason
    assert refused[0].name not in grid.runs
    assert "learned/linear/none/ancestral/seed0" in grid.runs
    assert "learned/linear/unconditional/seed0" in grid.networks


def test_a_network_that_only_refused_cells_would_use_is_not_trained() -> None:
    """No training for cells that are not run."""
    only = {"objective": ["learned"], "schedule": ["cosine"], "guidance": ["none"], "sampler": ["ddim"]}
    grid = config.check(altered((("grid",), [*DEFAULT["grid"], only])))
    assert "learned/cosine/unconditional/seed0" not in grid.networks
    assert ("learned", "cosine", "none", "ddim", "unet") in [c.row for c in grid.cells]


def test_all_guidance_weights_share_one_conditional_network() -> None:
    """The cells of three weights and their samplers sample from one network, trained with label dropout."""
    grid = config.check(DEFAULT)
    guided = [c for c in grid.runs.values() if c.guidance.startswith("cfg")]
    assert len(guided) == 8
    assert {grid.network(c).name for c in guided} == {"score/linear/conditional/seed0"}
    job, _ = grid.job("train", "score/linear/conditional/seed0")
    assert job["conditional"] and job["training"]["label_dropout"] == DEFAULT["training"]["label_dropout"]
    plain, _ = grid.job("train", "score/linear/unconditional/seed0")
    assert not plain["conditional"] and "label_dropout" not in plain["training"]
    assert grid.network(grid.runs["score/linear/none/ddim/seed0"]).name == "score/linear/unconditional/seed0"


def test_size_of_the_default_grid() -> None:
    """5 × 2 + 2 + 3 × 2 + 3 × 2 cells, one of them n/a, on 7 networks, 6 of which are likelihood models."""
    grid = config.check(DEFAULT)
    assert len(grid.cells) == 24
    assert len(grid.runs) == 23
    assert len(grid.networks) == 7
    assert len(grid.names["likelihood"]) == 6
    assert "score/linear/conditional/seed0" not in grid.names["likelihood"]


def test_blocks_are_united_in_the_order_of_the_configuration() -> None:
    """A cell of two blocks is built once, where it first stands; seeds follow each other."""
    first = {"objective": ["x0", "eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}
    second = {"objective": ["eps", "mu"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}
    grid = config.check(altered((("grid",), [first, second]), (("seeds",), [1, 0])))
    assert [(c.objective, c.seed) for c in grid.cells] == [
        ("x0", 1),
        ("x0", 0),
        ("eps", 1),
        ("eps", 0),
        ("mu", 1),
        ("mu", 0),
    ]


def test_needed_jobs_come_in_an_order_that_can_be_run() -> None:
    """What leads to a cell's fidelity: data, its own network, its samples, the classifier, itself last."""
    grid = config.check(DEFAULT)
    cell = "score/linear/cfg-w1/ddim/seed0"
    assert grid.needed("fidelity", cell) == [
        ("data", ""),
        ("train", "score/linear/conditional/seed0"),
        ("sample", cell),
        ("classifier", ""),
        ("fidelity", cell),
    ]
    assert grid.needed("fidelity", "real") == [("data", ""), ("classifier", ""), ("fidelity", "real")]
