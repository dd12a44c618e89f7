"""The base of the networks that a configuration names."""

from typing import ClassVar

from torch import nn

from ddpm.methods import Named


class Network(Named, nn.Module):
    """Called as network(x, log_snr, y) → output of x's height and width, with `heads` times its channels.

    A constructor takes by name `shape`, (C, H, W) of the images or (D,) of points, `heads` (2 where a variance is
    learned) and `classes` (0: unconditional), and by name alone the parameters that a configuration may set, annotated
    and with defaults (see `ddpm.parameters`).
    """

    # Whether it takes images alone; otherwise it takes points too.
    images: ClassVar[bool] = True
    # (levels, the list whose entries they number, what those multiply, the heads that share the product evenly).
    attended: ClassVar[tuple[tuple[str, str, str, int], ...]] = ()
    # How many labels it takes, which the constructor sets; the index `classes` is the null label.
    classes = 0
