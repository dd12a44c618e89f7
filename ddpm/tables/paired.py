"""Differences between rows of a table, image by image, with errors of their own: in bits/dim between the networks of a
grid, in FID between the cells of one network. No torch.

Networks of one seed see the same noise on the same test images (ddpm/stages/likelihood.py), and cells of one network
start from the same noise (ddpm/stages/paired.py), so what is hard for one image or draw is hard for both, and the error
of a difference is smaller than that of either number.
"""

from collections.abc import Iterator

import pandas as pd

from ddpm.pipeline.grid import Cell, Network
from ddpm.pipeline.registry import AXES as ALL
from ddpm.pipeline.results import Results
from ddpm.tables.columns import columns_of
from ddpm.tables.markdown import markdown

AXES = ["objective", "schedule", "network"]
COLUMNS = ["measure", *ALL, "against", "seeds", "images", "difference", "standard_error", "std"]
# Stage → what `measure` calls it: the column of the table that it explains.
MEASURES = {"likelihood": "nll_bits_per_dim", "ode_likelihood": "nll_ode_bits_per_dim"}

EXPLANATION = """
## Differences in bits/dim

Each network minus the best one, image by image: networks of one seed see the same noise on the same test images.
`standard_error` is over test images and the noise of the draw; `std`, of several seeds, is the spread over them.

"""

OF_SAMPLES = """
## Differences in FID

Each cell minus the best one of its network, image by image: cells of one network start from the same noise and have the
same labels. `standard_error` is over images, for the networks that were trained; `std`, of several seeds, is the spread
over them.

"""


def differences(results: Results) -> pd.DataFrame:
    """Those in bits/dim, then those in FID."""
    return pd.DataFrame([*of_networks(results), *of_cells(results)], columns=COLUMNS)


def of_networks(results: Results) -> list[dict]:
    """One row per objective, schedule and measure: its bits/dim minus those of the best, which has the lowest mean.

    With d_si the difference of image i under the networks of seed s and d_i its mean over the S seeds: `difference` is
    the mean of d_i over the N images, `standard_error` sd(d_i)/√N, which holds the images' spread and the noise of the
    draw, for these networks; `std` is the spread over seeds of the mean of d_si over i, which holds the chance of
    training as well. Seeds that only one of the two has do not count. Networks without a valid, finite result for every
    seed are left out: the table says why.
    """
    rows: list[dict] = []
    for stage, measure in MEASURES.items():
        read = {of: _read(results, stage, networks) for of, networks in _networks(results, stage).items()}
        found = {of: images for of, images in read.items() if images is not None}
        best = min(found, key=lambda of: found[of].to_numpy().mean(), default=())
        several = len({architecture for *_, architecture in found}) > 1
        for of in (of for of in found if of != best):
            shared = found[of].columns.intersection(found[best].columns)
            paired = found[of][shared] - found[best][shared]
            each = paired.mean(axis="columns")
            rows.append(
                {"measure": measure}
                | dict(zip(AXES, of, strict=True))
                | {"against": "/".join(best if several else best[:2])}
                | {"seeds": paired.shape[1], "images": len(paired), "difference": each.mean()}
                | {"standard_error": each.std() / len(each) ** 0.5, "std": paired.mean().std()}
            )
    return rows


def of_cells(results: Results) -> list[dict]:
    """One row per metric and row of the table: its distance minus that of the best row of its network whose classes
    come the same way, which has the lowest mean.

    With d_s the difference of seed s, the mean over its sampling seeds, `difference` is the mean over the S seeds that
    both have, `standard_error` the root of Σ e²/n² over the n pairs of sets, with e that over images
    (`ddpm.stages.paired`), whose noise every set draws anew, and `std` the spread of d_s. Rows without a valid, finite
    result for every seed are left out.
    """
    grid = results.grid
    groups: dict[tuple, dict[tuple[str, ...], list[Cell]]] = {}
    for cell in grid.runs.values() if grid.names["paired"] else ():
        of = groups.setdefault((*grid.network(cell).parts, grid.is_given_classes(cell)), {})
        of.setdefault(cell.row, []).append(cell)
    measures = columns_of(grid.config).toplined
    return [row for measure in measures for group in groups.values() for row in _of_group(results, measure, group)]


def _of_group(results: Results, measure: str, group: dict[tuple[str, ...], list[Cell]]) -> Iterator[dict]:
    """Rows of one network minus the best of them."""
    read = {row: found for row, cells in group.items() if (found := _distances(results, measure, cells))}
    best = min(read, key=lambda row: sum(read[row].values()) / len(read[row]), default=())
    for row in (row for row in read if row != best):
        if known := _errors(results, measure, group[row], group[best]):
            sets = pd.Series([read[row][of] - read[best][of] for of in known])
            each = sets.groupby([seed for seed, _ in known]).mean()
            error = sum(e**2 for e in known.values()) ** 0.5 / len(known)
            named = {"measure": measure, **dict(zip(ALL, row, strict=True)), "against": "/".join(best[2:4])}
            of_all = {"seeds": len(each), "images": results.grid.config["sampling"]["images"]}
            yield named | of_all | {"difference": each.mean(), "standard_error": error, "std": each.std()}


def _distances(results: Results, measure: str, cells: list[Cell]) -> dict[tuple[int, int], float]:
    """Seed and sampling seed → the distance of a row; empty where one of them has no valid, finite result."""
    found = {}
    for cell in cells:
        record = results.valid("fidelity", cell.name)
        if record is None or record["status"] != "ok" or measure not in record["result"]:
            return {}
        found[cell.seed, cell.sampling] = record["result"][measure]
    return found


def _errors(results: Results, measure: str, one: list[Cell], other: list[Cell]) -> dict[tuple[int, int], float]:
    """Seed and sampling seed → the standard error of the difference of two rows, of those that both have."""
    others, found = {(cell.seed, cell.sampling): cell.name for cell in other}, {}
    for cell in (cell for cell in one if (cell.seed, cell.sampling) in others):
        if record := results.valid("paired", results.grid.network(cell).name):
            errors = record["result"]["standard_errors"].get(measure, {})
            a, b = cell.name, others[cell.seed, cell.sampling]
            error = errors.get(a, {}).get(b, errors.get(b, {}).get(a))
            if error is not None:
                found[cell.seed, cell.sampling] = error
    return found


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
    """The differences as Markdown, where there are any: a section for bits/dim, and one for FID."""
    bits = pairs["measure"].isin(MEASURES.values())
    sections = ((EXPLANATION, pairs[bits]), (OF_SAMPLES, pairs[~bits]))
    return "".join(said + markdown(of.dropna(axis="columns", how="all"), 4) for said, of in sections if len(of))
