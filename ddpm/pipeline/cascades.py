"""Cascades of two networks in a configuration, and what is wrong with them. No torch."""

from collections.abc import Iterable, Iterator

from ddpm.pipeline import spaces
from ddpm.pipeline.registry import complete, settled, source_of


def upsamples(network: dict) -> bool:
    """Whether a network of the configuration enlarges the images of another one, its `base`."""
    return bool(source_of("network", network).attributes.get("upsamples"))


def entry(job: dict) -> tuple[str, str] | None:
    """The function that trains a network of a cascade; None for any other's."""
    if "downsample" in job:
        return "ddpm.stages.cascade", "train_base"
    return ("ddpm.stages.cascade", "train_second") if upsamples(job["network"]) else None


def kind(network: dict) -> tuple[bool, bool]:
    """What two networks must have in common to take the same x and condition."""
    return spaces.is_latent(network), upsamples(network)


def mistakes(config: dict, networks: Iterable[tuple[str, dict]], data: dict) -> Iterator[str]:
    """Bases that there are not or that cannot be one, factors that do not divide the images, data that are no pixels.

    networks: where each stands, and what stands there;  data: what the dataset declares (`checks.dataset_of`).
    """
    known, own = settled(config)["networks"], data["space"]["method"]
    for where, value in networks:
        if not upsamples(value) or own == "points":  # where it is refused as a network of images
            continue
        if own != "pixels" or spaces.is_latent(value):
            of, cure = ("latent", "pixels") if own == "pixels" else (own, "another network")
            yield f"{where}.space: {of!r}; {value['method']!r} takes grey levels: it must be {cure}"
            continue
        full, shape = complete(source_of("network", value), value), data["shape"]
        base, factor = full["base"], full["factor"]
        if base not in known:
            yield f"{where}.base: {base!r} is not defined under networks; defined are {', '.join(known)}"
            continue
        if shape and any(side % factor for side in shape[1:]):
            yield f"{where}.factor: {factor}; it must divide the images' height and width, {shape[1]} × {shape[2]}"
            continue
        if upsamples(known[base]):
            yield f"{where}.base: {base!r} enlarges images itself; it must be a network that does not"
        elif spaces.is_latent(known[base]):
            yield f"{where}.base: {base!r} works in latents; it must be a network of pixels"
        elif source_of("network", known[base]).attributes["imported"]:
            yield f"{where}.base: {base!r} was trained elsewhere; it must be a network that is trained on small images"
        elif shape:
            small = (shape[0], *(side // factor for side in shape[1:]))
            yield from spaces.patches(config, [(f"{where}.base", known[base])], small)
