"""A benchmark of denoising diffusion: objective × schedule × guidance × sampler.

Importing the package imports no torch; its modules are loaded when they are first named.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = (
    "baselines",
    "catalogue",
    "checkpoint",
    "config",
    "data",
    "denoiser",
    "devices",
    "errors",
    "fidelity",
    "figures",
    "grid",
    "guidance",
    "kept",
    "likelihood",
    "lock",
    "methods",
    "networks",
    "noise",
    "objectives",
    "parallel",
    "preflight",
    "provenance",
    "results",
    "running",
    "samplers",
    "sampling",
    "schedules",
    "source",
    "status",
    "tables",
    "training",
)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"ddpm.{name}")
    raise AttributeError(f"module 'ddpm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
