"""A grid on a chain of four steps, and Adam, for tests that compute a stage by a loop of their own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddpm import rng
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute

Tensor = torch.Tensor


ROOT = Path(__file__).parent.parent


SMALL = {"method": "mlp", "width": 16, "depth": 1}


# T = 4 with β = 0.05, 0.2, 0.35, 0.5 once scaled by 1000/T, and ᾱ_0 … ᾱ_4.
BETA = torch.tensor([0.0, 0.05, 0.2, 0.35, 0.5], dtype=torch.float64)


BAR = (1 - BETA).cumprod(0)


MIXED, PLAIN = "mixed/short/conditional/seed0", "v/short/unconditional/seed0"


CELL = "v/short/cfg/steps/seed0"


def grid() -> Grid:
    """Two networks on a chain of four steps: one with everything that training can do, one without."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    read["network"] = SMALL
    own = {
        "schedules": {"short": {"method": "linear", "steps": 4, "beta_first": 2e-4, "beta_last": 2.0e-3}},
        "objectives": {
            "mixed": {"target": "eps", "variance": "learned", "vlb_weight": 0.05, "times": "importance"},
            "v": {"target": "v"},
        },
        "guidances": {"cfg": {"method": "cfg", "weight": 1.5}, "guided": {"method": "classifier", "weight": 1.0}},
        "samplers": {"steps": {"method": "ancestral", "steps": 4, "variance": "large"}, "ddim": {"steps": 2}},
        "training": {
            "steps": 12,
            "batch": 24,
            "warmup": 3,
            "learning_rate": 0.01,
            "decay": "cosine",
            "ema_decay": 0.4,
            "gradient_clip": 0.15,
            "label_dropout": 0.3,
        },
        "guide": {"steps": 6, "batch": 20, "width": 16, "learning_rate": 0.01},
        "sampling": {"images": 50, "batch": 32},
        "compute": {"precision": "float32"},  # to compare with a loop of one's own to all its digits
        "classifier": {"width": 4, "features": 16, "epochs": 2, "batch": 100, "learning_rate": 0.01},
        "grid": [
            {"objective": ["mixed"], "schedule": ["short"], "guidance": ["cfg"], "sampler": ["steps"]},
            {"objective": ["v"], "schedule": ["short"], "guidance": ["cfg", "none"], "sampler": ["steps", "ddim"]},
            {"objective": ["v"], "schedule": ["short"], "guidance": ["guided"], "sampler": ["ddim"]},
        ],
    }
    return config.check(config.merge(read, own))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A tree with the data."""
    found = Layout(tmp_path_factory.mktemp("stages"))
    execute("data", *grid().job("data"), found)
    return found


@pytest.fixture(scope="module")
def digits(layout: Layout) -> dict[str, Tensor]:
    """The stored data, their images as 17 grey levels in [−1, 1]."""
    found = load_file(layout.output("data"))
    return found | {k: found[k].double() / 8 - 1 for k in ("train_images", "test_images")}


def seeded(*parts: object) -> None:
    """What is drawn for these parts next comes from torch's own generator."""
    torch.manual_seed(rng.key(*parts) % 2**63)


class Adam:
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − lr (wd θ + m̂/(√v̂ + 1e-8)) (Kingma & Ba 2015)."""

    def __init__(self, network: nn.Module, beta2: float, decay: float = 0.0):
        self.parameters, self.beta2, self.decay = list(network.parameters()), beta2, decay
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.updates = 0

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float, beta1: float = 0.9) -> None:
        self.updates += 1
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(self.beta2 * v + (1 - self.beta2) * g**2)
            p.sub_(rate * self.decay * p)
            size = (v / (1 - self.beta2**self.updates)).sqrt() + 1e-8
            p.sub_(rate * (m / (1 - beta1**self.updates)) / size)
