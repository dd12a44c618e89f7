"""One row of the table per cell and baseline, from the records of all seeds; and what every job cost."""

from typing import Any

import pandas as pd

from ddpm.errors import UserError
from ddpm.pipeline.grid import Cell
from ddpm.pipeline.measures import baselines, toplines
from ddpm.pipeline.registry import AXES
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import external
from ddpm.pipeline.verdict import degenerate
from ddpm.tables.columns import FINISHED, Columns, columns_of


def _missing(results: Results, cell: Cell, found: dict[str, dict | None]) -> tuple[str, str] | None:
    """What keeps a cell out of the table: missing, stale or failed, and why; None where nothing does."""
    for stage, record in found.items():
        if record is None:
            name = cell.name if stage in ("sample", "fidelity") else results.grid.network(cell).name
            if failure := results.failure(stage, name):
                return "failed", f"{stage}: {failure.splitlines()[0]}"
            why = results.todo[stage, name][0]
            return "missing" if why.kind == "missing" else "stale", f"{stage}: {why}"
    return None


def _row(results: Results, columns: Columns, cells: list[Cell]) -> dict:
    """One row of the table from the cells of all its seeds."""
    first, grid = cells[0], results.grid
    row: dict[str, Any] = dict(zip(AXES, first.row, strict=True))
    row |= {"seeds": len({cell.seed for cell in cells}), "sampling_seeds": grid.sampling_seeds}
    if first.reason:
        return row | {"status": "n/a", "reason": first.reason}
    units = "seeds" if grid.sampling_seeds == 1 else "sets of samples"
    there: list[dict[str, dict | None]] = []
    for cell in cells:
        network = grid.network(cell).name
        records = {
            "train": results.valid("train", network),
            "sample": results.valid("sample", cell.name),
            "fidelity": results.valid("fidelity", cell.name),
        }
        if grid.is_bounded(cell):
            records["likelihood"] = results.valid("likelihood", network)
        if grid.is_bounded(cell) and network in grid.names["ode_likelihood"]:
            records["ode_likelihood"] = results.valid("ode_likelihood", network)
        there.append(records)
    missing = [why for cell, valid in zip(cells, there, strict=True) if (why := _missing(results, cell, valid))]
    if missing:
        state = max((state for state, _ in missing), key=("missing", "stale", "failed").index)
        return row | {"status": state, "reason": f"{len(missing)} of {len(cells)} {units}; {missing[0][1]}"}
    found = [{stage: record for stage, record in valid.items() if record is not None} for valid in there]
    train, sample = found[0]["train"]["result"], found[0]["sample"]["result"]
    trained = [train] + ([results.known("train", base.name)["result"]] if (base := grid.base_network(first)) else [])
    row |= {"steps": sample["steps"], "nfe": sample["nfe"], "parameters": sum(of["parameters"] for of in trained)}
    diverged = []
    for cell, one in zip(cells, found, strict=True):
        if one["train"]["status"] == "diverged":
            diverged.append(f"seed {cell.seed}: training, by step {one['train']['result']['steps']}")
        elif any(r["status"] == "diverged" for r in one.values()):
            diverged.append(f"seed {cell.seed}: sampling or bound")
    if diverged:
        reason = f"{len(diverged)} of {len(cells)} {units} ({', '.join(dict.fromkeys(diverged))})"
        return row | {"status": "diverged", "reason": reason}
    row |= {
        "topline": "stratified" if grid.is_given_classes(first) else "by chance",
        "samples": sample["images"],
        "images_seen": sum(of["images_seen"] for of in trained),
        "extractor": found[0]["fidelity"]["result"]["extractor"],
        "protocol": found[0]["fidelity"]["result"].get("protocol"),
    }
    return row | _measured(columns, [cell.seed for cell in cells], found) | _status(results, cells, found)


def _measured(columns: Columns, seeds: list[int], found: list[dict[str, dict]]) -> dict[str, float]:
    """Means over seeds, spreads over them, and intervals of means: of S sets of samples, which are independent, the
    ends lie (Σ_s (mean_s − end_s)²)^½/S from the mean (Zou & Donner 2008).

    The unit is the training seed, whose sampling seeds are averaged first: NAME_std is the spread of these means, and
    NAME_sampling_std that of the sampling seeds of one training seed, (mean of their variances)^½.
    """
    row = {}
    for column, (stage, key) in columns.measures.items():
        there = [(s, one) for s, one in zip(seeds, found, strict=True) if stage in one and key in one[stage]["result"]]
        values = pd.Series([one[stage]["result"][key] for _, one in there], [seed for seed, _ in there], dtype=float)
        of_seeds = values.groupby(level=0, sort=False)
        row[column] = of_seeds.mean().mean()
        if column in columns.spreads:
            row[columns.spreads[column]] = of_seeds.mean().std()
        if column in columns.toplined:
            row[f"{column}_sampling_std"] = of_seeds.var().mean() ** 0.5
        if (name := columns.details.get(column)) in columns.toplined and len(values):
            means = pd.Series([one[stage]["result"][name] for _, one in there])
            away = float((means - values.to_numpy()).pow(2).sum() ** 0.5 / len(means))
            row[column] = means.mean() + (away if column == f"{name}_high" else -away)
    return row


def _status(results: Results, cells: list[Cell], found: list[dict[str, dict]]) -> dict:
    """`ok`, or `degenerate` where any seed's samples are none of the data, with the reason."""
    noise = (results.valid("fidelity", "noise") or {}).get("result")
    bad = []
    for cell, one in zip(cells, found, strict=True):
        if why := degenerate(one["sample"]["result"], one["fidelity"]["result"], noise):
            bad.append(f"seed {cell.seed}: {why}")
    if not bad and (why := results.grid.unbounded(cells[0])):
        return {"status": "ok", "reason": f"no bits/dim: {why}"}
    if not bad:
        return {"status": "ok"}
    return {"status": "degenerate", "reason": f"{len(bad)} of {len(cells)} seeds ({'; '.join(bad)})"}


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
    row |= {key: result[key] for key in (*columns.metrics, *columns.details, "extractor", "protocol") if key in result}
    if "bits_per_dim" in result:
        row |= {"nll_bits_per_dim": result["bits_per_dim"], "nll_standard_error": result["standard_error"]}
    if name == toplines()["stratified"] and (record := results.valid("data", "")):
        # Known for points of a density in closed form: the bits/dim that a perfect model would have.
        row["nll_bits_per_dim"] = record["result"].get("test_bits_per_dim")
    return row | {"samples": result["images"], "status": "ok"}


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
    result = fidelity["result"]
    row |= {key: result[key] for key in (*columns.metrics, *columns.details, "extractor", "protocol") if key in result}
    noise = (results.valid("fidelity", "noise") or {}).get("result")
    bad = degenerate(taken["result"], result, noise)
    state = {"status": "degenerate", "reason": bad} if bad else {"status": "ok"}
    return row | {"samples": result["images"]} | state


def collect(results: Results) -> pd.DataFrame:
    """The whole table: one row per cell, after the baselines; then samples that were made elsewhere."""
    grid = results.grid
    rows: dict[tuple, list[Cell]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.row, []).append(cell)
    columns = columns_of(grid.config)
    found = [_baseline(results, columns, name) for name in grid.baselines]
    found += [_row(results, columns, cells) for cells in rows.values()]
    found += [_external(results, columns, name) for name in results.external]
    table = pd.DataFrame(found, columns=columns.all if grid.sampling_seeds == 1 else columns.of_several_sets)
    table["dataset"] = grid.config["data"]["name"]
    for column in columns.toplined:
        table[column] = pd.to_numeric(table[column])
        for part in ("", "_low", "_high"):
            tops = {
                name: record["result"].get(f"{column}{part}")
                for name, baseline in toplines().items()
                if (record := results.valid("fidelity", baseline))
            }
            table[f"{column}_topline{part}"] = pd.to_numeric(table["topline"].map(tops))
        table[f"{column}_over_topline"] = table[column] / table[f"{column}_topline"]
    if "histogram" in grid.baselines:
        nll = pd.to_numeric(table["nll_bits_per_dim"])
        table["nll_minus_histogram"] = nll - nll[grid.baselines.index("histogram")]
    for column in ("steps", "nfe", "seeds", "samples", "parameters", "images_seen", "protocol"):
        table[column] = table[column].astype("Int64")
    if grid.sampling_seeds > 1:
        table["sampling_seeds"] = table["sampling_seeds"].astype("Int64")
    return table


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
