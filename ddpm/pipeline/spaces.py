"""The spaces that networks work in: what is wrong with them, and with networks that do not fit the images. No torch."""

from collections.abc import Iterable, Iterator

from ddpm.pipeline.registry import complete, source_of

LATENT = "latent"


def is_latent(network: dict) -> bool:
    """Whether a network of the configuration works in latents: its key `space` says so."""
    return network is not None and network.get("space") == LATENT


def shape_in(network: dict, config: dict, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of x, for images of this shape, in the space that a network works in."""
    if not is_latent(network):
        return shape
    settings = config["autoencoder"]
    return (settings["channels"], *(side // settings["factor"] for side in shape[1:]))


def mistakes(config: dict, networks: Iterable[tuple[str, dict]], data: dict) -> Iterator[str]:
    """Spaces that the data do not have, and an autoencoder that is missing or does not fit the images.

    networks: where each stands, and what stands there;  data: what the dataset declares (`checks.dataset_of`).
    """
    own, shape, latent = data["space"]["method"], data["shape"], ""
    for where, value in networks:
        space = value.get("space", own)
        if space not in (own, LATENT):
            yield f"{where}.space: {space!r}; it must be {own}, the space of {config['data']['name']!r}, or {LATENT}"
        elif is_latent(value):
            latent = latent or where
    if not latent:
        return
    if "autoencoder" not in config:
        yield f"the key 'autoencoder' is missing: {latent}.space is {LATENT}"
        return
    factor = config["autoencoder"]["factor"]
    if shape and len(shape) == 3 and any(side % factor for side in shape[1:]):
        said = "it must divide the images' height and width"
        yield f"autoencoder.factor: {factor}; {said}, {shape[1]} × {shape[2]}"


def patches(config: dict, networks: Iterable[tuple[str, dict]], images: tuple[int, ...] | None) -> Iterator[str]:
    """Networks whose patches do not fit the images, or the latents."""
    for where, value in networks:
        source = source_of("network", value)
        if (key := source.attributes["patched"]) and images and len(images) == 3:
            patch, shape = complete(source, value)[key], shape_in(value, config, images)
            if any(side % patch for side in shape[1:]):
                of = LATENT if is_latent(value) else "image"
                yield f"{where}.{key}: {patch}; it must divide the {of}s' height and width, {shape[1]} × {shape[2]}"
