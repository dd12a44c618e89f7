"""Autoguidance in the graph: a cell with two networks of the grid."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from project import ROOT
from torch import nn

from ddpm.denoiser import Denoiser
from ddpm.pipeline import config, records
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.samplers import Sampler
from ddpm.stages import sample
from ddpm.tables.rows import collect

CELL = "eps/linear/auto/ddim/seed0"
OWN, WORSE = "eps/linear/conditional/seed0", "eps/linear/conditional/small/seed0"
SMALL = {"method": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": []}


def tiny(**changes: object) -> Grid:
    read = config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")
    own = {
        "networks": {"small": SMALL},
        "guidances": {"auto": {"method": "autoguidance", "guide_network": "small", "weight": 1.0}},
        "grid": [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["auto", "cfg-w0"], "sampler": ["ddim"]}],
    }
    return config.check(config.merge(config.merge(read, own), changes))


def test_the_graph() -> None:
    """The other network is trained, for this cell alone, whose job says what it is; others stay as they are."""
    grid = tiny()
    assert list(grid.networks) == grid.names["train"] == [OWN, WORSE] and next(iter(grid.runs)) == CELL
    needed = [("data", ""), ("train", OWN), ("train", WORSE), ("sample", CELL)]
    assert grid.needed("sample", CELL) == needed
    job, other = (grid.job("sample", name)[0] for name in grid.runs)
    assert job["network"] == OWN and job["guide_network"] == WORSE
    assert job["guide_model"]["network"]["multipliers"] == [1] and job["model"]["network"]["multipliers"] == [1, 2]
    assert not {"guide_network", "guide_model"} & other.keys()
    # What aggregates are told is enough to find it.
    assert Grid(grid.used).jobs == grid.jobs and grid.used["networks"].keys() == {"unet", "small"}
    assert grid.names["likelihood"] == [] and grid.is_given_classes(grid.runs[CELL])


@pytest.mark.parametrize(
    ("guidance", "network", "message"),
    [
        (
            {"guide_network": "tiny"},
            ["unet"],
            "guide_network: 'tiny' is not defined under networks; defined are unet, small",
        ),
        ({"guide_network": ""}, ["unet"], "guide_network: '' is not defined under networks; defined are unet, small"),
        ({}, ["unet", "small"], "guide_network: 'small' cannot guide itself; it must be another network than those of"),
    ],
)
def test_mistakes(guidance: dict, network: list[str], message: str) -> None:
    """A network that is not there, and one that would guide itself, once for all blocks."""
    block = {
        "objective": ["eps"],
        "schedule": ["linear"],
        "guidance": ["auto"],
        "sampler": ["ddim"],
        "network": network,
    }
    with pytest.raises(ConfigError) as raised:
        tiny(guidances={"auto": guidance}, grid=[block, block | {"schedule": ["cosine"]}])
    (found,) = raised.value.messages
    assert found.startswith(f"guidances.auto.{message}")


def test_a_guided_cell(tmp_path: Path) -> None:
    """Both networks' weights are its inputs and count as its cost; two evaluations per step; samples other than the
    network's own."""
    own = {"fidelity": {"extractor": "identity", "metrics": ["fid"]}}
    grid, layout = tiny(training={"steps": 6, "warmup": 0}, sampling={"images": 70}, **own), Layout(tmp_path)
    for stage, name in [*grid.row(grid.runs[CELL]), ("sample", "eps/linear/cfg-w0/ddim/seed0")]:
        execute(stage, *grid.job(stage, name), layout)
    record = records.read_record(layout.record("sample", CELL))
    assert record["result"]["nfe"] == 2 * 4
    assert record["inputs"]["weights"] == records.sha256(layout.output("train", OWN))
    assert record["inputs"]["guide_weights"] == records.sha256(layout.output("train", WORSE))
    files = [layout.output("sample", name) for name in grid.runs]
    assert files[0].read_bytes() != files[1].read_bytes()
    results = Results(grid, layout)
    row = collect(results).set_index("guidance").loc["auto"]
    trained = [records.read_record(layout.record("train", name)) for name in (OWN, WORSE)]
    assert row["parameters"] == sum(of["result"]["parameters"] for of in trained)
    assert row["images_seen"] == 2 * 6 * grid.config["training"]["batch"]
    assert results.trained(grid.runs[CELL])["seconds"] == sum(of["costs"]["seconds"] for of in trained)
    without = results.trained(grid.runs["eps/linear/cfg-w0/ddim/seed0"])
    assert without["parameters"] == trained[0]["result"]["parameters"] < row["parameters"]


def test_neither_network_stays_compiled_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of torch's compiler: one that notes whose compiled form is called."""
    used: set[nn.Module] = set()
    found: list[set] = []
    real = sample.chain

    def compile(network: nn.Module, **options: object) -> Callable:
        return lambda *given: used.add(network) or network(*given)

    def short(denoiser: Denoiser, sampler: Sampler, name: str, index: torch.Tensor, *rest: Any) -> Iterator:
        used.clear()
        for k, x in enumerate(real(denoiser, sampler, name, index, *rest)):
            if len(index) > 8 and k == 2:
                found.append({*used})
                raise MemoryError
            yield x
        found.append({*used})

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(sample, "chain", short)
    small = {
        "training": {"steps": 2, "warmup": 0},
        "sampling": {"images": 16, "batch": 16},
        "classifier": {"features": 8},
    }
    grid, layout = tiny(**small, compute={"compile": True}), Layout(tmp_path)
    for stage, name in grid.needed("sample", CELL):
        execute(stage, *grid.job(stage, name), layout)
    assert [len(networks) for networks in found] == [2, 0, 0]
    used_then = records.read_record(layout.record("sample", CELL))["result"]["compute"]
    assert used_then["images_at_once"] == 8 and used_then["compiled"] is True  # it was, once
