"""One row of the table per cell and baseline, from the records of all seeds; and what every job cost."""

from typing import Any

import pandas as pd

from ddpm.errors import UserError
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.measures import baselines, toplines
from ddpm.pipeline.registry import AXES
from ddpm.pipeline.results import Results
from ddpm.pipeline.stage import Job
from ddpm.pipeline.stages import external
from ddpm.pipeline.verdict import degenerate
from ddpm.tables.columns import FINISHED, Columns, columns_of

# What a row's numbers come from.
STAGES = ("train", "sample", "fidelity", "likelihood", "ode_likelihood")
# Stage → the record of one cell.
Records = dict[str, dict]


def _jobs(grid: Grid, cell: Cell) -> list[Job]:
    """The jobs whose records a cell's row is made of."""
    return [(stage, name) for stage, name in grid.own(cell).items() if stage in STAGES]


def _missing(results: Results, cell: Cell) -> tuple[str, str] | None:
    """What keeps a cell out of the table: missing, stale or failed, and why; None where nothing does."""
    return results.lacking(job for job in results.grid.row(cell) if job[1])


def _diverged(cell: Cell, found: Records) -> str:
    """What of a cell has diverged; empty where nothing has."""
    if found["train"]["status"] == "diverged":
        return f"seed {cell.seed}: training, by step {found['train']['result']['steps']}"
    if any(record["status"] == "diverged" for record in found.values()):
        return f"seed {cell.seed}: sampling or bound"
    return ""


def _row(results: Results, columns: Columns, cells: list[Cell]) -> dict:
    """One row of the table from the cells of all its seeds."""
    first, grid = cells[0], results.grid
    row: dict[str, Any] = dict(zip(AXES, first.row, strict=True))
    row |= {"seeds": len({cell.seed for cell in cells}), "sampling_seeds": grid.sampling_seeds}
    if first.reason:
        return row | {"status": "n/a", "reason": first.reason}
    units = "seeds" if grid.sampling_seeds == 1 else "sets of samples"
    if missing := list(filter(None, (_missing(results, cell) for cell in cells))):
        state = max((state for state, _ in missing), key=("missing", "stale", "failed").index)
        return row | {"status": state, "reason": f"{len(missing)} of {len(cells)} {units}; {missing[0][1]}"}
    found = [{stage: results.known(stage, name) for stage, name in _jobs(grid, cell)} for cell in cells]
    sample, fidelity, trained = found[0]["sample"]["result"], found[0]["fidelity"]["result"], results.trained(first)
    row |= {"steps": sample["steps"], "nfe": sample["nfe"], "parameters": trained["parameters"]}
    if diverged := list(filter(None, map(_diverged, cells, found))):
        reason = f"{len(diverged)} of {len(cells)} {units} ({', '.join(dict.fromkeys(diverged))})"
        return row | {"status": "diverged", "reason": reason}
    row |= {
        "topline": "stratified" if grid.is_given_classes(first) else "by chance",
        "samples": sample["images"],
        "images_seen": trained["images_seen"],
        "extractor": fidelity["extractor"],
        "protocol": fidelity.get("protocol"),
    }
    return row | _measured(columns, [cell.seed for cell in cells], found) | _status(results, cells, found)


def _measured(columns: Columns, seeds: list[int], found: list[Records]) -> dict[str, float]:
    """Means over seeds, spreads over them, and intervals of means: of S sets of samples, which are independent, the
    ends lie (Σ_s (mean_s − end_s)²)^½/S from the mean (Zou & Donner 2008).

    The unit is the training seed, whose sampling seeds are averaged first: NAME_std is the spread of these means, and
    NAME_sampling_std that of the sampling seeds of one training seed, (mean of their variances)^½.
    """
    row = {}
    for column, (stage, key) in columns.measures.items():
        of_stage = [(seed, one[stage]["result"]) for seed, one in zip(seeds, found, strict=True) if stage in one]
        there = [(seed, result) for seed, result in of_stage if key in result]
        values = pd.Series([result[key] for _, result in there], [seed for seed, _ in there], dtype=float)
        of_seeds = values.groupby(level=0, sort=False)
        row[column] = of_seeds.mean().mean()
        if column in columns.spreads:
            row[columns.spreads[column]] = of_seeds.mean().std()
        if column in columns.toplined:
            row[f"{column}_sampling_std"] = of_seeds.var().mean() ** 0.5
        if there and (name := columns.details.get(column)) in columns.toplined:
            means = pd.Series([result[name] for _, result in there])
            away = float((means - values.to_numpy()).pow(2).sum() ** 0.5 / len(means))
            row[column] = means.mean() + (away if column == f"{name}_high" else -away)
    return row


def _status(results: Results, cells: list[Cell], found: list[Records]) -> dict:
    """`ok`, or `degenerate` where any seed's samples are none of the data, with the reason."""
    noise, bad = results.noise, []
    for cell, one in zip(cells, found, strict=True):
        if why := degenerate(one["sample"]["result"], one["fidelity"]["result"], noise):
            bad.append(f"seed {cell.seed}: {why}")
    if bad:
        return {"status": "degenerate", "reason": f"{len(bad)} of {len(cells)} seeds ({'; '.join(bad)})"}
    why = results.grid.unbounded(cells[0])
    return {"status": "ok"} | ({"reason": f"no bits/dim: {why}"} if why else {})


def _numbers(columns: Columns, result: dict) -> dict:
    """What stands in a row of a result of fidelity."""
    keys = (*columns.metrics, *columns.details, "extractor", "protocol")
    return {key: result[key] for key in keys if key in result} | {"samples": result["images"]}


def _baseline(results: Results, columns: Columns, name: str) -> dict:
    """A row without a network: real data (ceilings), noise (floor) or a histogram."""
    declared = baselines()[name]
    row = {"objective": declared["title"] or name, "topline": declared["topline"]}
    record = results.valid("fidelity", name)
    if record is None:
        return row | {"status": "missing", "reason": f"fidelity: {results.todo['fidelity', name][0]}"}
    if record["status"] != "ok":  # of the autoencoder
        return row | {"status": record["status"], "reason": "autoencoder: training"}
    result = record["result"]
    row |= _numbers(columns, result)
    if "bits_per_dim" in result:
        row |= {"nll_bits_per_dim": result["bits_per_dim"], "nll_standard_error": result["standard_error"]}
    if name == toplines()["stratified"] and (record := results.valid("data", "")):
        # Known for points of a density in closed form: the bits/dim that a perfect model would have.
        row["nll_bits_per_dim"] = record["result"].get("test_bits_per_dim")
    return row | {"status": "ok"}


def _external(results: Results, columns: Columns, name: str) -> dict:
    """A row of samples that were made elsewhere: no axis of ours says how."""
    called = external(name)
    row: dict[str, Any] = {"objective": called}
    fidelity, taken = results.record("fidelity", name), results.record("external", called)
    why = results.reasons("fidelity", name)
    if why or fidelity is None or taken is None:
        reason = why[0] if why else "their record is missing"
        return row | {"status": "stale", "reason": f"{reason}; run `ddpm evaluate` again"}
    row |= {"topline": "stratified" if taken["result"]["stratified"] else "by chance", "seeds": 1}
    bad = degenerate(taken["result"], fidelity["result"], results.noise)
    state = {"status": "degenerate", "reason": bad} if bad else {"status": "ok"}
    return row | _numbers(columns, fidelity["result"]) | state


def collect(results: Results) -> pd.DataFrame:
    """The whole table: one row per cell, after the baselines; then samples that were made elsewhere."""
    grid, columns = results.grid, columns_of(results.grid.config)
    found = [_baseline(results, columns, name) for name in grid.baselines]
    found += [_row(results, columns, cells) for cells in grid.rows.values()]
    found += [_external(results, columns, name) for name in results.external]
    table = pd.DataFrame(found, columns=columns.all if grid.sampling_seeds == 1 else columns.of_several_sets)
    table["dataset"] = grid.config["data"]["name"]
    _compare_with_toplines(results, table, list(columns.toplined))
    if "histogram" in grid.baselines:
        nll = pd.to_numeric(table["nll_bits_per_dim"])
        table["nll_minus_histogram"] = nll - nll[grid.baselines.index("histogram")]
    whole = ("steps", "nfe", "seeds", "sampling_seeds", "samples", "parameters", "images_seen", "protocol")
    return table.astype({column: "Int64" for column in whole if column in table})


def _compare_with_toplines(results: Results, table: pd.DataFrame, columns: list[str]) -> None:
    """Fill in what the topline of each row has in these columns, and the row as a multiple of it."""
    records = {name: results.valid("fidelity", baseline) for name, baseline in toplines().items()}
    real = {name: record["result"] for name, record in records.items() if record}
    for column in columns:
        table[column] = pd.to_numeric(table[column])
        for part in ("", "_low", "_high"):
            tops = {name: result.get(f"{column}{part}") for name, result in real.items()}
            table[f"{column}_topline{part}"] = pd.to_numeric(table["topline"].map(tops))
        table[f"{column}_over_topline"] = table[column] / table[f"{column}_topline"]


def missing(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not finished; UserError where none is."""
    lacking = table[~table["status"].isin([*FINISHED, "n/a"])]
    if len(lacking) == len(table[table["status"] != "n/a"]):
        (stage, name), (why, *_) = next(iter(results.todo.items()))
        first = f"{stage} {name}".strip()
        raise UserError(f"{results.layout.root}/cells: none is finished ({first}: {why}); run snakemake first")
    return lacking


def costs(results: Results) -> pd.DataFrame:
    """Seconds, memory and device of every job: what differs from run to run, and so is kept out of the table."""
    rows = []
    for stage, name in results.grid.jobs:
        if record := results.valid(stage, name):
            kept = {k: record["costs"][k] for k in ("seconds", "peak_memory_mb")}
            rows.append({"stage": stage, "name": name} | kept | {k: record[k] for k in ("device", "host", "commit")})
    return pd.DataFrame(rows)
