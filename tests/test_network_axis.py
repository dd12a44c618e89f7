"""The axis `network`: the default of every block, others beside it, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.records import canonical

ROOT = Path(__file__).parent.parent


def expanded(**overlay: object) -> Grid:
    """The grid of the default configuration with an overlay."""
    return config.check(config.merge(config.read(ROOT / "config.yaml"), overlay))


TWO = {
    "networks": {"big": {"method": "unet", "width": 64, "multipliers": [1, 2]}, "mlp": {"method": "mlp"}},
    "grid": [
        {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none", "cfg-w1"], "sampler": ["ddim"]}
        | {"network": ["unet", "mlp"]},
        {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]},
    ],
}


def test_a_block_names_its_networks_and_the_default_has_no_part_in_names() -> None:
    """The first network serves blocks that name none; its cells are called as where it is the only one."""
    grid, alone = expanded(**TWO), expanded()
    assert list(grid.runs) == [
        "eps/linear/none/ddim/seed0",
        "eps/linear/none/ddim/mlp/seed0",
        "eps/linear/cfg-w1/ddim/seed0",
        "eps/linear/cfg-w1/ddim/mlp/seed0",
    ]
    assert list(grid.networks) == [
        "eps/linear/unconditional/seed0",
        "eps/linear/unconditional/mlp/seed0",
        "eps/linear/conditional/seed0",
        "eps/linear/conditional/mlp/seed0",
    ]
    name, other = list(grid.networks)[:2]
    assert grid.job("train", name) == alone.job("train", name)
    mine, theirs = (grid.job("train", n)[0]["network"] for n in (name, other))
    assert (mine["method"], mine["width"], theirs["method"]) == ("unet", 32, "mlp")
    assert grid.job("sample", "eps/linear/none/ddim/mlp/seed0")[0]["network"] == other
    assert "big" not in grid.job("table")[0]["config"]["networks"]


def test_the_default_is_the_same_however_keys_are_sorted() -> None:
    """The tables' job is text with sorted keys: its grid has the same cells and networks."""
    grid = expanded(**TWO)
    again = Grid(json.loads(canonical(grid.job("table")[0]))["config"] | {"results": "results"})
    assert list(again.runs) == list(grid.runs) and list(again.networks) == list(grid.networks)


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ({"networks": {"unet": {"method": "mlp"}}}, "networks.unet: `network` is called 'unet' as well"),
        ({"networks": {"big": {"method": "unet", "widht": 3}}}, "networks.big.widht: unknown key"),
        (
            {"networks": {"big": {"method": "dit", "size": "S", "blocks": 1}}},
            "networks.big.blocks: unknown key of dit (ddpm-unet and others have it; null takes back",
        ),
        ({"networks": {"big": {"method": "resnet"}}}, "networks.big.method: 'resnet' is unknown"),
        ({"network": None}, "the key 'network' or 'networks' is missing"),
        ({"grid": [TWO["grid"][0]]}, "grid[0].network: 'mlp' is not defined under networks; defined are unet"),
    ],
)
def test_what_is_wrong_with_networks_is_said(overlay: dict, said: str) -> None:
    """A name that stands twice, unknown keys and methods, no network at all, and one that is not defined."""
    with pytest.raises(ConfigError) as caught:
        expanded(**overlay)
    assert any(message.startswith(said) for message in caught.value.messages) and len(caught.value.messages) == 1
