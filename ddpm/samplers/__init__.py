"""From noise to images: every sampler is one `step` from x_t to x_s, s < t, on a grid of times."""

from ddpm.samplers.multistep import DPMSolver, SDEDPMSolver, UniPC
from ddpm.samplers.sampler import Sampler
from ddpm.samplers.singlestep import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    EulerMaruyama,
    EulerODE,
    Heun,
    Langevin,
    PlainLangevin,
    PredictorCorrector,
    Restart,
)

__all__ = [
    "DDIM",
    "AdaptiveODE",
    "Ancestral",
    "DPMSolver",
    "EulerMaruyama",
    "EulerODE",
    "Heun",
    "Langevin",
    "PlainLangevin",
    "PredictorCorrector",
    "Restart",
    "SDEDPMSolver",
    "Sampler",
    "UniPC",
]
