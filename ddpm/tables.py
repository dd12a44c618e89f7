"""Records → tables: results/table.csv, its Markdown twin, the published numbers beside ours, and the costs."""

from pathlib import Path

import pandas as pd
import yaml

from ddpm import provenance
from ddpm.errors import UserError
from ddpm.grid import BASELINES, Cell, Grid
from ddpm.layout import Layout

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
    "fid_train",
    "nll_bits_per_dim",
    "nll_std",
    "nll_standard_error",
    "nll_ode_bits_per_dim",
    "nll_ode_std",
    "nll_ode_standard_error",
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
PUBLISHED = Path(__file__).parent.parent / "workflow" / "published"


class Records:
    """The records of a grid, each checked against the configuration and the files that it names."""

    def __init__(self, grid: Grid, layout: Layout):
        self.grid, self.layout, self.refused = grid, layout, []
        self._read: dict[tuple[str, str], dict | None] = {}

    def get(self, stage: str, name: str = "") -> dict | None:
        """One record, or None where it is missing, stale, or made from other inputs than lie there now."""
        if (stage, name) not in self._read:
            self._read[stage, name] = self._check(stage, name)
        return self._read[stage, name]

    def _check(self, stage: str, name: str) -> dict | None:
        path = self.layout.record(stage, name)
        try:
            record = provenance.read_record(path)
        except UserError as e:
            return self._refuse(str(e))
        job, code = self.grid.job(stage, name)
        if record.get("job") != job:
            changed = sorted(
                k for k in job.keys() | record.get("job", {}).keys() if job.get(k) != record.get("job", {}).get(k)
            )
            return self._refuse(f"{path}: made for another configuration ({', '.join(changed)} differ)")
        if record.get("code") != code:
            return self._refuse(f"{path}: made by other code")
        for of, found in self._origins(stage, name).items():
            if record["inputs"].get(of) != found:
                return self._refuse(f"{path}: made from other {of} than lies there now")
        return record

    def _refuse(self, why: str) -> None:
        self.refused.append(why)

    def _origins(self, stage: str, name: str) -> dict[str, str | None]:
        """What a record's inputs must be: the hashes that their own records state."""

        def output(of: str, whose: str, file: Path) -> str | None:
            record = self.get(of, whose)
            return record["outputs"].get(file.name) if record else None

        origins = {} if stage == "data" else {"data": output("data", "", self.layout.data)}
        if stage in ("sample", "likelihood", "ode_likelihood"):
            network = self.grid.network(self.grid.runs[name]).name if stage == "sample" else name
            origins["weights"] = output("train", network, self.layout.weights(network))
        if stage == "sample" and (guide := self.grid.guide(self.grid.runs[name])):
            origins["guide"] = output("guide", guide.name, self.layout.guide(guide.name))
        if stage == "fidelity":
            origins["extractor"] = output("classifier", "", self.layout.classifier)
            if name not in BASELINES:
                origins["samples"] = output("sample", name, self.layout.samples(name))
        return origins


def _row(records: Records, cells: list[Cell]) -> dict:
    """One row of the table from the cells of all its seeds."""
    first, grid = cells[0], records.grid
    row = dict(zip(("objective", "schedule", "guidance", "sampler"), first.row, strict=True))
    row["seeds"] = len(cells)
    if first.reason:
        return row | {"status": "n/a", "reason": first.reason}
    found = []
    for cell in cells:
        network = grid.network(cell).name
        of = {
            "train": records.get("train", network),
            "sample": records.get("sample", cell.name),
            "fidelity": records.get("fidelity", cell.name),
        }
        if network in grid.likelihoods:
            of["likelihood"] = records.get("likelihood", network)
        if network in grid.ode_likelihoods:
            of["ode_likelihood"] = records.get("ode_likelihood", network)
        found.append(of)
    missing = [c for c, of in zip(cells, found, strict=True) if None in of.values()]
    if missing:
        return row | {"status": "missing", "reason": f"{len(missing)} of {len(cells)} seeds"}
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
    return row | {"status": "ok"}


def _baseline(records: Records, name: str) -> dict:
    """The real-data row (ceiling) or the noise row (floor)."""
    row = {"objective": {"real": "real data", "noise": "noise"}[name]}
    record = records.get("fidelity", name)
    if record is None:
        return row | {"status": "missing"}
    result = record["result"]
    return (
        row
        | {k: result.get(k) for k in ("fid", "fid_binarized", "fid_train", "diversity", "extractor")}
        | {"samples": result["images"], "status": "ok"}
    )


def collect(records: Records) -> pd.DataFrame:
    """The whole table: one row per cell, after the two baselines."""
    grid = records.grid
    rows: dict[tuple, list[Cell]] = {}
    for cell in grid.cells:
        rows.setdefault(cell.row, []).append(cell)
    found = [_baseline(records, b) for b in BASELINES] + [_row(records, cells) for cells in rows.values()]
    table = pd.DataFrame(found, columns=COLUMNS)
    table["dataset"] = grid.config["data"]["name"]
    for column in ("fid", "fid_binarized"):
        table[column] = pd.to_numeric(table[column])
        table[f"{column}_over_topline"] = table[column] / table.loc[0, column]
    for column in ("steps", "nfe", "seeds", "samples", "parameters", "images_seen"):
        table[column] = table[column].astype("Int64")
    return table


def costs(records: Records) -> pd.DataFrame:
    """Seconds, memory and device of every job: what differs from run to run, and so is kept out of the table."""
    rows = []
    grid = records.grid
    jobs = [
        ("data", ""),
        ("classifier", ""),
        *(("train", n) for n in grid.networks),
        *(("likelihood", n) for n in grid.likelihoods),
        *(("ode_likelihood", n) for n in grid.ode_likelihoods),
        *(("guide", n) for n in grid.guides),
    ]
    jobs += [("sample", n) for n in grid.runs] + [("fidelity", n) for n in [*grid.runs, *BASELINES]]
    for stage, name in jobs:
        if record := records.get(stage, name):
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
    was published); columns without any number are left out."""
    real, rows = table.iloc[0], []
    top = source.get("topline", {})

    def line(label: str, theirs: dict, ours: pd.Series | None) -> dict:
        row: dict[str, object] = {"row": label}
        for column, short in (("fid", "FID"), ("fid_binarized", "FID Bin.")):
            their, our = theirs.get(column), None if ours is None else ours[column]
            row[f"{short} published"], row[f"{short} ours"] = their, our
            row[f"{short}/top published"] = their / top[column] if their and column in top else None
            row[f"{short}/top ours"] = our / real[column] if our is not None else None
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


READING = [
    c
    for c in COLUMNS
    if c not in ("dataset", "parameters", "images_seen", "extractor", "seeds", "samples", "fid_train")
]


def reading(table: pd.DataFrame, grid: Grid) -> str:
    """The table for reading: the columns that compare, with what all rows share in the heading."""
    real = table.iloc[0]
    runs = table[~table["status"].isin(["n/a"])].iloc[len(BASELINES) :]
    done = int((runs["status"] != "missing").sum())
    columns = [c for c in READING if table[c].notna().any()]
    return (
        f"# {real['dataset']}: {done} of {len(runs)} cells\n\n"
        f"FID of N = {real['samples']} images against the test half, features of extractor `{real['extractor']}`; "
        "`fid_over_topline` is FID ÷ FID of real training images (1 is as good as data). "
        "NLL is the variational bound in bits/dim of the network's full chain, the same for all its samplers.\n\n"
        + markdown(table[columns], 3)
        + weights(grid)
    )


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


def write(job: dict, code: str, layout: Layout, device: str = "cpu") -> None:
    """The `table` stage: table.csv, table.md, published.md and costs.csv; refuses what does not match."""
    grid = Grid(job["config"])
    records = Records(grid, layout)
    table = collect(records)
    if records.refused:
        raise UserError(
            "\n".join(records.refused[:10]) + f"\n{len(records.refused)} records do not match; run snakemake again"
        )
    texts = {
        "table.csv": table.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        "table.md": reading(table, grid),
        "published.md": published_text(table),
        "costs.csv": costs(records).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        with provenance.atomic(layout.root / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


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
        out.append(f"{heading}\n\n{markdown(beside)}")
    return "\n".join(out) or "No published table has a row in this grid.\n"
