"""The base of the networks that a configuration names."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from ddpm.condition import Condition
from ddpm.methods import Named


class Network(Named, nn.Module):
    """Called as network(x, log_snr, condition) → output of x's height and width, with `heads` times its channels.

    A constructor takes by name `shape`, (C, H, W) of the images or (D,) of points, `heads` (2 where a variance is
    learned) and `classes` (0: unconditional), and by name alone the parameters that a configuration may set, annotated
    and with defaults (see `ddpm.parameters`).
    """

    # Whether it takes images alone; otherwise it takes points too.
    images: ClassVar[bool] = True
    # Whether its condition may have labels.
    labels: ClassVar[bool] = True
    # (resolutions, the list whose entries they number, what those multiply, the heads that share the product evenly).
    attended: ClassVar[tuple[tuple[str, str, str, int], ...]] = ()
    # The parameter that must divide the images' height and width.
    patched: ClassVar[str] = ""
    # A parameter → those that are used only where it is None.
    instead: ClassVar[dict[str, tuple[str, ...]]] = {}
    # (a parameter, the one that it must be a multiple of).
    multiples: ClassVar[tuple[tuple[str, str], ...]] = ()
    # Whether it was trained elsewhere and is read from the user's own files, and which: what they are called in records
    # → (the parameter that says where they lie, the file there).
    imported: ClassVar[bool] = False
    reads: ClassVar[dict[str, tuple[str, str]]] = {}
    # What it needs of other axes: (axis, parameter, value, reason).
    requires: ClassVar[tuple[tuple[str, str, object, str], ...]] = ()
    # How many labels it takes, which the constructor sets; the index `classes` is the null label.
    classes = 0

    def null(self, condition: Condition) -> Condition:
        """The condition with the null label for every image: what it is guided away from, and what training drops
        labels to."""
        if condition.labels is None:
            return condition
        return replace(condition, labels=torch.full_like(condition.labels, self.classes))
