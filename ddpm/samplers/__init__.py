"""From noise to images: every sampler is one `step` from x_t to x_s, s < t, on a grid of times.

Every file of this folder is imported, so that a sampler in a file of its own is known without a line elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

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

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
