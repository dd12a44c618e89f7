"""What is declared is true: what a configuration's check accepts computes, what it refuses does not."""

import json

import pytest
import torch
from project import said

from ddpm import networks
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.networks.classifier import NoisyClassifier
from ddpm.parameters import conflicts
from ddpm.pipeline.registry import known

# Not in the package, but for the user's own.
ABSENT = ("mnist", "fashion-mnist", "cifar10", "celeba", "lsun", "folder")


@pytest.mark.parametrize("name", [n for n in known("dataset") if n not in ABSENT])
def test_datasets_are_as_large_as_they_declare(name: str) -> None:
    """The sizes that a configuration is checked with are those that are loaded."""
    dataset = data.Dataset.make({"method": name})
    train, test = dataset.load()
    assert (len(train.images), len(test.images)) == (dataset.train, dataset.test)
    assert tuple(train.images.shape[1:]) == tuple(test.images.shape[1:]) == dataset.shape


@pytest.mark.parametrize(
    "spec",
    [
        {"width": 20, "multipliers": [1, 3], "attention": [0, 1]},
        {"width": 1, "multipliers": [1, 4], "attention": [1]},
        {"width": 4, "multipliers": [1, 1, 1, 1, 1, 1], "attention": [5]},
        {"width": 17, "multipliers": [3]},
    ],
)
def test_an_accepted_network_runs(spec: dict) -> None:
    """Whatever passes the check computes, also where an image has been halved to one pixel."""
    assert said(json.dumps({"network": {"multipliers": [1, 2], "attention": []} | spec})) == []
    network = networks.build({"method": "unet"} | spec, (1, 8, 8), 2, 10)
    x = torch.randn(2, 1, 8, 8)
    assert network(x, torch.zeros(2), Condition(torch.tensor([0, 1]))).shape == (2, 2, 8, 8)


@pytest.mark.parametrize("spec", [{"width": 30, "attention": [0]}, {"width": 32, "attention": [9]}])
def test_a_refused_network_is_refused_in_python(spec: dict) -> None:
    """The same declaration where a network is built."""
    with pytest.raises(ValueError, match=r"^network: attention: \d"):
        networks.build({"method": "unet", "multipliers": [1, 2]} | spec, (1, 8, 8), 1, 0)


@pytest.mark.parametrize("width", [1, 16, 24, 50])
def test_a_guide_of_any_width_runs(width: int) -> None:
    """Group normalisation takes one group where groups of 16 channels do not divide the width."""
    network = NoisyClassifier((1, 8, 8), 10, width)
    assert network(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape == (2, 10)


def test_a_parameter_needs_its_use() -> None:
    """What it is used with must be above 0; of none, it is never used; and only where it was written."""
    declared = {"uses": {"a": "b", "c": ""}}

    def wrong(b: float, written: tuple = ("a",)) -> bool:
        return bool(list(conflicts({"a": 0, "b": b, "c": 1}, declared, written)))

    assert not wrong(0.5) and wrong(0.0)
    assert not wrong(0.0, ("b",)) and wrong(1, ("c",))
