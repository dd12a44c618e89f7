"""The methods that the contract is asked of: all that the registry knows, at sizes that are quick."""

import os
from itertools import product
from pathlib import Path

import pytest
import torch
from project import ROOT

from ddpm.parameters import Tolerance, cast
from ddpm.pipeline.registry import KINDS, known

Tensor = torch.Tensor
# Besides ours: a few that ours leave out, and files of the user's own.
NAMED = filter(None, os.environ.get("DDPM_METHODS", "").split(os.pathsep))
FILES = (str(ROOT / "tests/own_methods.py"), *(str(Path(file).resolve()) for file in NAMED))
KNOWN = {kind: known(kind, FILES) for kind in KINDS}


def every(*kinds: str) -> pytest.MarkDecorator:
    """One test for all methods of each kind together, by their names."""
    return pytest.mark.parametrize(
        ",".join(kinds), list(KNOWN[kinds[0]]) if len(kinds) == 1 else list(product(*(KNOWN[kind] for kind in kinds)))
    )


def small(kind: str, name: str, most: int = 4, **given: object) -> dict:
    """The method's specification: whole numbers at most `most` where it takes that, tolerances 1e-3."""
    source = KNOWN[kind][name]
    for parameter, declared in source.parameters.items():
        if declared.annotation == Tolerance:
            given.setdefault(parameter, 1e-3)
        elif type(declared.default) is int and declared.default > most:
            try:
                given.setdefault(parameter, cast(parameter, declared.annotation, most))
            except ValueError:
                continue
    return {"method": name, "modules": source.modules} | given


def column(t: float | Tensor, x: Tensor) -> Tensor:
    """Times, float64, of a shape that broadcasts against the images."""
    return torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
