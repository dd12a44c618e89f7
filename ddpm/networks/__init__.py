"""Networks: called as network(x, log_snr, y) → output of x's height and width.

`ddpm.networks.<name>` holds the class whose `method` is that name. Its constructor takes the images' shape
(C, H, W), the number of heads (2 where a variance is learned), the number of classes (0: unconditional),
and then the parameters that the configuration may set, within what the class may declare of them (`limits` and the
others of `ddpm.methods`, and `attended`).
"""

from importlib import import_module
from inspect import signature

import torch
from torch import nn

from ddpm.limits import conflicts


def build(spec: dict, shape: tuple[int, ...], heads: int, classes: int) -> nn.Module:
    """The network that `spec` describes: {"method": name, parameter: value, ...}."""
    spec = dict(spec)
    name = spec.pop("method")
    module = import_module(f"ddpm.networks.{name}")
    network = next(c for c in vars(module).values() if getattr(c, "method", None) == name)
    defaults = {name: p.default for name, p in signature(network).parameters.items()}
    for mistake in conflicts(defaults | spec, vars(network), ()):
        raise ValueError(f"network: {mistake}")
    # On channels-last memory sampling takes about four fifths of the time on a CPU.
    return network(shape, heads, classes, **spec).to(memory_format=torch.channels_last)
