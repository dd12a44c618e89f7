"""Networks: one class each, below `ddpm.networks.network.Network`, in any module of this package."""

from importlib import import_module
from inspect import Parameter, signature
from pkgutil import iter_modules
from typing import get_type_hints

import torch

from ddpm import extensions
from ddpm.methods import declarations
from ddpm.networks.network import Network
from ddpm.parameters import cast, conflicts


def parameters(network: type[Network]) -> dict[str, Parameter]:
    """The arguments of the constructor that a configuration may set, those that it hands on (**) included."""
    hints, arguments = get_type_hints(network.__init__, include_extras=True), signature(network).parameters
    found: dict[str, Parameter] = {}
    for name, argument in arguments.items():
        if argument.kind is Parameter.KEYWORD_ONLY:
            found[name] = argument.replace(annotation=hints[name])
        elif argument.kind is Parameter.VAR_KEYWORD:
            found = parameters(network.__mro__[1]) | found
    return found


def build(spec: dict, shape: tuple[int, ...], heads: int, classes: int) -> Network:
    """The network that `spec` describes: {"method": name, parameter: value, ...}, and {"modules": files} where it is
    declared in files of the user's own."""
    spec = dict(spec)
    name = spec.pop("method")
    for file in spec.pop("modules", ()):
        extensions.load(file)
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)
    network = Network.named(name)
    known = parameters(network)
    if unknown := sorted(spec.keys() - known):
        raise ValueError(f"network: unknown parameter {unknown[0]!r} of {name}; known are {', '.join(known)}")
    try:
        values = {k: cast(k, p.annotation, spec.get(k, p.default)) for k, p in known.items()}
        for mistake in conflicts(values, declarations(network), ()):
            raise ValueError(mistake)
    except ValueError as e:
        raise ValueError(f"network: {e}") from None
    made = network(shape=shape, heads=heads, classes=classes, **values)
    # On channels-last memory sampling takes about four fifths of the time on a CPU.
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
