"""Cells and jobs: what a grid holds, and a job's text that changes exactly when its result may."""

import copy
from collections.abc import Callable

import pytest
from project import DEFAULT, altered

from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.records import canonical
from ddpm.pipeline.stage import BASELINES


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
    "training": (("training", "steps"), 900, {"train"}, lambda stage, name: True),
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
