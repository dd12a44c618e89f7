"""Differences in bits/dim between the networks of a grid, image by image, with errors of their own. No torch.

Networks of one seed see the same noise on the same test images (ddpm/stages/likelihood.py), so what is hard for one
image or draw is hard for both, and the error of a difference is smaller than that of either number.
"""

import pandas as pd

from ddpm.pipeline.grid import Network
from ddpm.pipeline.results import Results
from ddpm.tables.markdown import markdown

AXES = ["objective", "schedule", "network"]
COLUMNS = ["measure", *AXES, "against", "seeds", "images", "difference", "standard_error", "std"]
# Stage → what `measure` calls it: the column of the table that it explains.
MEASURES = {"likelihood": "nll_bits_per_dim", "ode_likelihood": "nll_ode_bits_per_dim"}

EXPLANATION = """
## Differences in bits/dim

Each network minus the best one, image by image: networks of one seed see the same noise on the same test images.
`standard_error` is over test images and the noise of the draw; `std`, of several seeds, is the spread over them.

"""


def differences(results: Results) -> pd.DataFrame:
    """One row per objective, schedule and measure: its bits/dim minus those of the best, which has the lowest mean.

    With d_si the difference of image i under the networks of seed s and d_i its mean over the S seeds: `difference` is
    the mean of d_i over the N images, `standard_error` sd(d_i)/√N, which holds the images' spread and the noise of the
    draw, for these networks; `std` is the spread over seeds of the mean of d_si over i, which holds the chance of
    training as well. Seeds that only one of the two has do not count. Networks without a valid, finite result for every
    seed are left out: the table says why.
    """
    rows = []
    for stage, measure in MEASURES.items():
        read = {of: _read(results, stage, networks) for of, networks in _networks(results, stage).items()}
        found = {of: images for of, images in read.items() if images is not None}
        if not found:
            continue
        several = len({architecture for *_, architecture in found}) > 1
        best = min(found, key=lambda of: found[of].to_numpy().mean())
        for of, images in found.items():
            if of != best:
                shared = images.columns.intersection(found[best].columns)
                paired = images[shared] - found[best][shared]
                each = paired.mean(axis="columns")
                row: dict[str, object] = {
                    "measure": measure,
                    **dict(zip(AXES, of, strict=True)),
                    "against": "/".join(best if several else best[:2]),
                }
                row |= {"seeds": paired.shape[1], "images": len(paired), "difference": each.mean()}
                rows.append(row | {"standard_error": each.std() / len(each) ** 0.5, "std": paired.mean().std()})
    return pd.DataFrame(rows, columns=COLUMNS)


def _networks(results: Results, stage: str) -> dict[tuple[str, ...], list[Network]]:
    """Objective, schedule and architecture → their networks, one per seed."""
    grid = results.grid
    found: dict[tuple[str, ...], list[Network]] = {}
    for name in grid.names[stage]:
        network = grid.networks[name]
        found.setdefault((network.objective, network.schedule, network.architecture), []).append(network)
    return found


def _read(results: Results, stage: str, networks: list[Network]) -> pd.DataFrame | None:
    """Bits/dim of every image (row) for every seed (column); None where a network has no valid, finite result."""
    found = {}
    for network in networks:
        record = results.valid(stage, network.name)
        if record is None or record["status"] != "ok":
            return None
        read = pd.read_csv(results.layout.output(stage, network.name, "images"), index_col="image")
        found[network.seed] = read["bits_per_dim"]
    return pd.DataFrame(found)


def text(pairs: pd.DataFrame) -> str:
    """The differences between networks in bits/dim as Markdown, where there are any."""
    return EXPLANATION + markdown(pairs.dropna(axis="columns", how="all"), 4) if len(pairs) else ""
