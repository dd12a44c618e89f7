"""Methods in a file of one's own, and configurations that name it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from project import DEFAULT, forget

from ddpm.pipeline import config
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.grid import Grid

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
