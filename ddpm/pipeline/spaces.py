"""The spaces that networks work in: what is wrong with them, and with networks that do not fit the images. No torch."""

from collections.abc import Collection, Iterable, Iterator

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


def mistakes(config: dict, networks: Collection[tuple[str, dict]], data: dict) -> Iterator[str]:
    """Spaces that the data do not have, and an autoencoder that is missing or does not fit the images.

    networks: where each stands, and what stands there;  data: what the dataset declares (`checks.dataset_of`).
    """
    own = data["space"]["method"]
    for where, value in networks:
        if (space := value.get("space", own)) not in (own, LATENT):
            yield f"{where}.space: {space!r}; it must be {own}, the space of {config['data']['name']!r}, or {LATENT}"
    latent = [where for where, value in networks if is_latent(value)]
    if latent and "autoencoder" not in config:
        yield f"the key 'autoencoder' is missing: {latent[0]}.space is {LATENT}"
    elif latent:
        yield from _undivided("autoencoder.factor", config["autoencoder"]["factor"], data["shape"], "image")


def patches(config: dict, networks: Iterable[tuple[str, dict]], images: tuple[int, ...] | None) -> Iterator[str]:
    """Networks whose patches do not fit the images, or the latents."""
    for where, value in networks:
        source = source_of("network", value)
        if (key := source.attributes["patched"]) and images and len(images) == 3:
            patch, shape = complete(source, value)[key], shape_in(value, config, images)
            yield from _undivided(f"{where}.{key}", patch, shape, LATENT if is_latent(value) else "image")


def _undivided(key: str, factor: int, shape: tuple[int, ...] | None, of: str) -> Iterator[str]:
    """A factor that does not divide height and width of images, or latents, of this shape; of points there are none."""
    if shape and len(shape) == 3 and any(side % factor for side in shape[1:]):
        yield f"{key}: {factor}; it must divide the {of}s' height and width, {shape[1]} × {shape[2]}"
