"""The methods that the contract is asked of: all that the registry knows, at sizes that are quick."""

import os
import weakref
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image
from project import ROOT
from sklearn.datasets import load_digits

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


@cache
def pictures() -> str:
    """A folder of scikit-learn's digits as PNG files, a sub-folder for each."""
    folder = TemporaryDirectory()
    weakref.finalize(pictures, folder.cleanup)
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = Path(folder.name, str(label))
        place.mkdir(exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(place / f"{i:04}.png")
    return folder.name


def small(kind: str, name: str, most: int = 4, **given: object) -> dict:
    """The method's specification: whole numbers at most `most` where it takes that, tolerances 1e-3."""
    source = KNOWN[kind][name]
    if (kind, name) == ("network", "dit"):
        given |= {"width": 8, "depth": 2, "attention_heads": 2}
    if (kind, name) == ("dataset", "folder"):
        given |= {"path": pictures(), "size": 8, "channels": 1, "labels": True, "test_share": 0.5}
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
