"""Records → tables: table.csv and its Markdown twin, published numbers beside ours, differences in bits/dim, costs."""

import pandas as pd
import yaml

from ddpm.errors import UserError
from ddpm.pipeline.catalogue import continuous
from ddpm.pipeline.grid import Cell, Grid
from ddpm.pipeline.results import PUBLISHED, Results
from ddpm.pipeline.run import Outcome, Run
from ddpm.pipeline.verdict import degenerate
from ddpm.tables import paired

COLUMNS = [
    "dataset",
    "objective",
    "schedule",
    "guidance",
    "sampler",
    "steps",
    "nfe",
    "seeds",
    "samples",
    "fid",
    "fid_std",
    "fid_over_topline",
    "fid_binarized",
    "fid_binarized_std",
    "fid_binarized_over_topline",
    "topline",
    "fid_topline",
    "fid_topline_low",
    "fid_topline_high",
    "fid_binarized_topline",
    "fid_binarized_topline_low",
    "fid_binarized_topline_high",
    "fid_train",
    "sliced_wasserstein",
    "nll_bits_per_dim",
    "nll_std",
    "nll_standard_error",
    "nll_ode_bits_per_dim",
    "nll_ode_std",
    "nll_ode_standard_error",
    "nll_minus_histogram",
    "label_accuracy",
    "diversity",
    "parameters",
    "images_seen",
    "extractor",
    "status",
    "reason",
]
# Column → (stage, key in its result): what is averaged over seeds.
MEASURES = {
    "fid": ("fidelity", "fid"),
    "fid_binarized": ("fidelity", "fid_binarized"),
    "fid_train": ("fidelity", "fid_train"),
    "sliced_wasserstein": ("fidelity", "sliced_wasserstein"),
    "label_accuracy": ("fidelity", "label_accuracy"),
    "diversity": ("fidelity", "diversity"),
    "nll_bits_per_dim": ("likelihood", "bound_bits_per_dim"),
    "nll_standard_error": ("likelihood", "standard_error"),
    "nll_ode_bits_per_dim": ("ode_likelihood", "bits_per_dim"),
    "nll_ode_standard_error": ("ode_likelihood", "standard_error"),
}
SPREADS = {
    "fid": "fid_std",
    "fid_binarized": "fid_binarized_std",
    "nll_bits_per_dim": "nll_std",
    "nll_ode_bits_per_dim": "nll_ode_std",
}
# Topline → the baseline that it is, the first row or the second; a row is divided by that of its kind.
TOPLINES = {"stratified": "real", "by chance": "real-by-chance"}


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


def _row(results: Results, cells: list[Cell]) -> dict:
    """One row of the table from the cells of all its seeds."""
    first, grid = cells[0], results.grid
    row = dict(zip(("objective", "schedule", "guidance", "sampler"), first.row, strict=True))
    row["seeds"] = len(cells)
    if first.reason:
        return row | {"status": "n/a", "reason": first.reason}
    found = []
    for cell in cells:
        network = grid.network(cell).name
        of = {
            "train": results.valid("train", network),
            "sample": results.valid("sample", cell.name),
            "fidelity": results.valid("fidelity", cell.name),
        }
        if not grid.is_guided(cell):
            of["likelihood"] = results.valid("likelihood", network)
        if not grid.is_guided(cell) and network in grid.names["ode_likelihood"]:
            of["ode_likelihood"] = results.valid("ode_likelihood", network)
        found.append(of)
    missing = [why for cell, of in zip(cells, found, strict=True) if (why := _missing(results, cell, of))]
    if missing:
        state = max((state for state, _ in missing), key=("missing", "stale", "failed").index)
        return row | {"status": state, "reason": f"{len(missing)} of {len(cells)} seeds; {missing[0][1]}"}
    train, sample = found[0]["train"]["result"], found[0]["sample"]["result"]
    row |= {"steps": sample["steps"], "nfe": sample["nfe"], "parameters": train["parameters"]}
    diverged = []
    for cell, of in zip(cells, found, strict=True):
        if of["train"]["status"] == "diverged":
            diverged.append(f"seed {cell.seed}: training, by step {of['train']['result']['steps']}")
        elif any(r["status"] == "diverged" for r in of.values()):
            diverged.append(f"seed {cell.seed}: sampling or bound")
    if diverged:
        reason = f"{len(diverged)} of {len(cells)} seeds ({', '.join(diverged)})"
        return row | {"status": "diverged", "reason": reason}
    row |= {
        "topline": "stratified" if grid.is_given_classes(first) else "by chance",
        "samples": sample["images"],
        "images_seen": train["images_seen"],
        "extractor": found[0]["fidelity"]["result"]["extractor"],
    }
    for column, (stage, key) in MEASURES.items():
        values = pd.Series(
            [of[stage]["result"][key] for of in found if stage in of and key in of[stage]["result"]], dtype=float
        )
        row[column] = values.mean()
        if column in SPREADS:
            row[SPREADS[column]] = values.std()
    return row | _status(results, cells, found)


def _status(results: Results, cells: list[Cell], found: list[dict[str, dict]]) -> dict:
    """`ok`, or `degenerate` where any seed's samples are none of the data, with the reason."""
    noise = (results.valid("fidelity", "noise") or {}).get("result")
    bad = []
    for cell, of in zip(cells, found, strict=True):
        if why := degenerate(of["sample"]["result"], of["fidelity"]["result"], noise):
            bad.append(f"seed {cell.seed}: {why}")
    if not bad:
        return {"status": "ok"}
    return {"status": "degenerate", "reason": f"{len(bad)} of {len(cells)} seeds ({'; '.join(bad)})"}


def _baseline(results: Results, name: str) -> dict:
    """A row without a network: real data (ceilings), noise (floor) or a histogram."""
    titles = {"real": "real data", "real-by-chance": "real data, classes by chance"}
    row = {"objective": titles.get(name, name), "topline": "stratified" if name == "real" else "by chance"}
    record = results.valid("fidelity", name)
    if record is None:
        return row | {"status": "missing", "reason": f"fidelity: {results.todo['fidelity', name][0]}"}
    result = record["result"]
    row |= {
        k: result.get(k) for k in ("fid", "fid_binarized", "fid_train", "sliced_wasserstein", "diversity", "extractor")
    }
    if "bits_per_dim" in result:
        row |= {"nll_bits_per_dim": result["bits_per_dim"], "nll_standard_error": result["standard_error"]}
    if name == "real" and (of := results.valid("data", "")):
        # Known for points of a law in closed form: the bits/dim that a perfect model would have.
        row["nll_bits_per_dim"] = of["result"].get("test_bits_per_dim")
    return row | {"samples": result["images"], "status": "ok"}


def collect(results: Results) -> pd.DataFrame:
    """The whole table: one row per cell, after the baselines."""
    grid = results.grid
    rows: dict[tuple, list[Cell]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.row, []).append(cell)
    found = [_baseline(results, b) for b in grid.baselines] + [_row(results, cells) for cells in rows.values()]
    table = pd.DataFrame(found, columns=COLUMNS)
    table["dataset"] = grid.config["data"]["name"]
    for column in ("fid", "fid_binarized"):
        table[column] = pd.to_numeric(table[column])
        for part in ("", "_low", "_high"):
            of = {
                name: record["result"].get(f"{column}{part}")
                for name, baseline in TOPLINES.items()
                if (record := results.valid("fidelity", baseline))
            }
            table[f"{column}_topline{part}"] = pd.to_numeric(table["topline"].map(of))
        table[f"{column}_over_topline"] = table[column] / table[f"{column}_topline"]
    if "histogram" in grid.baselines:
        nll = pd.to_numeric(table["nll_bits_per_dim"])
        table["nll_minus_histogram"] = nll - nll[grid.baselines.index("histogram")]
    for column in ("steps", "nfe", "seeds", "samples", "parameters", "images_seen"):
        table[column] = table[column].astype("Int64")
    return table


def costs(results: Results) -> pd.DataFrame:
    """Seconds, memory and device of every job: what differs from run to run, and so is kept out of the table."""
    rows = []
    for stage, name in results.grid.jobs:
        if record := results.valid(stage, name):
            kept = {k: record["costs"][k] for k in ("seconds", "peak_memory_mb")}
            rows.append({"stage": stage, "name": name} | kept | {k: record[k] for k in ("device", "host", "commit")})
    return pd.DataFrame(rows)


def _cell_text(value: object, digits: int) -> str:
    if value is None or pd.isna(value):
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown(table: pd.DataFrame, digits: int = 2) -> str:
    """A Markdown table; numbers right, empty where there is no value."""
    numeric = [pd.api.types.is_numeric_dtype(table[c]) for c in table]
    lines = [list(map(str, table.columns)), ["--:" if n else ":--" for n in numeric]]
    lines += [[_cell_text(v, digits).replace("|", "\\|") for v in row] for row in table.itertuples(index=False)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = []
    for line in lines:
        padded = (t.rjust(w) if n else t.ljust(w) for t, w, n in zip(line, widths, numeric, strict=True))
        out.append("| " + " | ".join(padded) + " |")
    return "\n".join(out) + "\n"


def published(table: pd.DataFrame, source: dict) -> pd.DataFrame:
    """A published table with our numbers beside it, both also as multiples of their own toplines (ours alone where none
    was published; ours by the topline of each row's kind); columns without any number are left out."""
    real, rows = table.iloc[0], []
    top = source.get("topline", {})

    def line(label: str, theirs: dict, ours: pd.Series | None) -> dict:
        row: dict[str, object] = {"row": label}
        for column, short in (("fid", "FID"), ("fid_binarized", "FID Bin.")):
            their, our = theirs.get(column), None if ours is None else ours[column]
            row[f"{short} published"], row[f"{short} ours"] = their, our
            row[f"{short}/top published"] = their / top[column] if their and column in top else None
            row[f"{short}/top ours"] = None if ours is None else ours[f"{column}_over_topline"]
        row["NLL published"] = theirs.get("nll_bits_per_dim")
        row["NLL ours"] = None if ours is None else ours["nll_bits_per_dim"]
        row["status"] = "not in this grid" if ours is None else ours["status"]
        return row

    rows.append(line("split topline (real data)", top, real))
    for entry in source["rows"]:
        match = table
        for axis, name in entry["cell"].items():
            match = match[match[axis] == name]
        rows.append(line(entry["label"], entry["published"], match.iloc[0] if len(match) else None))
    frame = pd.DataFrame(rows)
    frame = frame.astype({c: float for c in frame.columns if c not in ("row", "status")})
    return frame.dropna(axis="columns", how="all")


# What a finished cell can be.
FINISHED = ("ok", "diverged", "degenerate")

READING = [
    c
    for c in COLUMNS
    if c not in ("dataset", "parameters", "images_seen", "extractor", "seeds", "samples", "fid_train")
    and "_topline" not in c.replace("_over_topline", "")
]


def reading(table: pd.DataFrame, grid: Grid) -> str:
    """The table for reading: the columns that compare, with what all rows share in the heading."""
    real = table.iloc[0]
    runs = table[~table["status"].isin(["n/a"])].iloc[len(grid.baselines) :]
    done = int(runs["status"].isin(FINISHED).sum())
    columns = [c for c in READING if table[c].notna().any()]
    things = "points" if continuous(grid.config) else "images"
    exact = (
        " Of real data it is −log p of the test half under its own law." if pd.notna(real["nll_bits_per_dim"]) else ""
    )
    return (
        f"# {real['dataset']}: {done} of {len(runs)} cells\n\n"
        f"FID of N = {real['samples']} {things} against the test half, features of extractor `{real['extractor']}`. "
        "NLL is the variational bound in bits/dim of the network's full chain, the same for all its samplers."
        f"{exact}\n\n{ratios(table, things)}\n{against_histograms(table, grid)}"
        + markdown(table[columns], 3)
        + weights(grid)
    )


def ratios(table: pd.DataFrame, things: str) -> str:
    """What 1 means in every row's `fid_over_topline`, and which values around it are chance."""
    rows = []
    for name, (_, real) in zip(TOPLINES, table.iloc[: len(TOPLINES)].iterrows(), strict=True):
        row: dict[str, object] = {"topline": name}
        for column, short in (("fid", "FID"), ("fid_binarized", "FID Bin.")):
            ends = [real[f"{column}_topline_{end}"] for end in ("low", "high")]
            known = pd.notna(ends).all()
            row[short] = real[column]
            row[f"{short}, 95 % of sets"] = "{:.3f} to {:.3f}".format(*ends) if known else None
            row[f"{short} ratio"] = "{:.2f} to {:.2f}".format(*(end / real[column] for end in ends)) if known else None
        rows.append(row)
    return (
        f"`fid_over_topline` is FID ÷ the mean FID of fresh sets of N real training {things}: 1 is as good as data. "
        "Rows that are given labels have every class in proportion, and are divided by the topline of sets that have "
        f"too (`stratified`). All other rows draw their classes by chance, which costs real {things} as well: they are "
        "divided by the topline of sets with classes drawn `by chance`. "
        f"95 of 100 sets of real {things} have a ratio in these intervals, so a row in its own cannot be told from "
        "data:\n\n" + markdown(pd.DataFrame(rows).dropna(axis="columns", how="all"), 3)
    )


def pairs_text(pairs: pd.DataFrame) -> str:
    """The differences between networks in bits/dim, where there are any."""
    return paired.READING + markdown(pairs.dropna(axis="columns", how="all"), 4) if len(pairs) else ""


def against_histograms(table: pd.DataFrame, grid: Grid) -> str:
    """Which networks code the test half worse than histograms do, and why those that predict x0 are among them."""
    if "histogram" not in grid.baselines or table["nll_minus_histogram"].isna().all():
        return ""
    mixture = table["nll_minus_histogram"].iloc[grid.baselines.index("class-histogram")]
    ours = table.iloc[len(grid.baselines) :].dropna(subset=["nll_minus_histogram"])
    over = {(r.objective, r.schedule): r.nll_minus_histogram for r in ours.itertuples()}

    def listed(chosen: dict) -> str:
        return ", ".join(f"`{o}/{s}` ({difference:+.2f})" for (o, s), difference in chosen.items()) or "none"

    worse = {network: difference for network, difference in over.items() if difference > 0}
    best = {network: difference for network, difference in over.items() if difference < mixture}
    text = (
        "Bits/dim of `noise` are log2 of the number of grey levels; those of `histogram` (independent pixels) and "
        "`class-histogram` (pixels independent given the class), with the training images' frequencies, are the exact "
        f"−log2 p of the whole test half, the networks' of {grid.config['likelihood']['images']} of its images. "
        "`nll_minus_histogram` above 0: the network codes images worse than independent pixels do. "
        f"**Worse than `histogram`: {listed(worse)}; better than `class-histogram`: {listed(best)}.**"
    )
    if any(grid.config["objectives"][objective]["target"] == "x0" for objective, _ in worse):
        text += (
            " A network that puts out x0 itself has an error that does not shrink with σ, where x̂0 = (x_t − σ ε̂)/α of "
            "one that puts out ε errs by less than σ/α, and the bound weights its square by ½ (SNR_{t−1} − SNR_t), "
            "which is largest at t = 2: the first rows of its `terms.csv` hold most of the bits."
        )
    return f"{text}\n\n"


def weights(grid: Grid) -> str:
    """The weights of classifier-free guidance in the three conventions of the documents."""
    used = dict.fromkeys(c.guidance for c in grid.cells)
    rows = [{"guidance": n} | grid.axis("guidance", n) for n in used]
    rows = [{"guidance": r["guidance"], "w": r["weight"]} for r in rows if r["method"] == "cfg"]
    if not rows:
        return ""
    frame = pd.DataFrame([r | {"ω = 1 + w": 1 + r["w"], "γ = 1 + w": 1 + r["w"]} for r in rows])
    return (
        "\nClassifier-free guidance (1 + w) · conditional − w · unconditional: document 000 states w, "
        "003 states ω, 001 states γ.\n\n" + markdown(frame, 2)
    )


def write(run: Run) -> Outcome:
    """The `table` stage: table.csv, table.md, published.md, differences.csv and costs.csv of what is there.

    A result that is not valid is left out, its row says why, and the heading says how many cells there are.
    """
    results = Results(Grid(run.job["config"]), run.layout)
    run.recorder.record["inputs"] = results.inputs("table")
    table = collect(results)
    lacking = table[~table["status"].isin([*FINISHED, "n/a"])]
    if len(lacking) == len(table[table["status"] != "n/a"]):
        why = results.todo[results.grid.jobs[0]][0]
        raise UserError(f"{run.layout.root}/cells: none is finished (data: {why}); run snakemake first")
    pairs = paired.differences(results)
    texts = {
        "table": table.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        "reading": reading(table, results.grid) + pairs_text(pairs),
        "published": published_text(table),
        "differences": pairs.to_csv(index=False, float_format="%.5f", lineterminator="\n"),
        "costs": costs(results).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        run.write(name, text)
    first = len(results.grid.baselines)
    runs = len(table) - first - int((table["status"] == "n/a").sum())
    done = int(table["status"][first:].isin(FINISHED).sum())
    return "ok", {"cells": done, "of": runs, "missing": len(lacking)}


def published_text(table: pd.DataFrame) -> str:
    """Every published table of workflow/published that has a row in this grid, with ours beside it."""
    out, ours = [], table.loc[0, "dataset"]
    for path in sorted(PUBLISHED.glob("*.yaml")):
        source = yaml.safe_load(path.read_text(encoding="utf-8"))
        beside = published(table, source)
        if (beside["status"].iloc[1:] == "not in this grid").all():
            continue
        heading = f"# {source['title']}\n\n{source['source']} ({source['dataset']})."
        if source["dataset"] != ours:
            heading += f" Ours is `{ours}`: compare the order and the multiples of the topline, not the numbers."
        heading += " Multiples of ours are of the topline of each row's kind, as table.md has it."
        out.append(f"{heading}\n\n{markdown(beside)}")
    return "\n".join(out) or "No published table has a row in this grid.\n"
