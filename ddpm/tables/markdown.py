"""Tables as Markdown, and table.md: the table for reading."""

import pandas as pd

from ddpm.pipeline.checks import continuous
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.measures import toplines
from ddpm.tables.columns import FINISHED, Columns, columns_of


def _cell_text(value: object, digits: int, bold: bool) -> str:
    if value is None or pd.isna(value):
        text = ""
    else:
        text = f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("|", "\\|")
    return f"**{text}**" if bold else text


def markdown(table: pd.DataFrame, digits: int = 2, bold: dict[str, list[int]] | None = None) -> str:
    """A Markdown table; numbers right, empty where there is no value. bold: column → rows, by index."""
    columns = []
    for i, name in enumerate(table.columns):
        best = (bold or {}).get(str(name), ())
        texts = [_cell_text(value, digits, index in best) for index, value in table.iloc[:, i].items()]
        numeric = pd.api.types.is_numeric_dtype(table.iloc[:, i])
        columns.append(_padded([str(name), "--:" if numeric else ":--", *texts], numeric))
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def _padded(texts: list[str], right: bool) -> list[str]:
    """These texts at one width."""
    width = max(map(len, texts))
    return [text.rjust(width) if right else text.ljust(width) for text in texts]


def reading(table: pd.DataFrame, grid: Grid, bold: dict[str, list[int]] | None = None) -> str:
    """The table for reading: the columns that compare, with what all rows share in the heading, each FID's interval
    beside it, and in bold the winners (`ddpm.tables.winners`)."""
    real, columns = table.iloc[0], columns_of(grid.config)
    runs = table[table["schedule"].notna() & ~table["status"].isin(["n/a"])]
    done = int(runs["status"].isin(FINISHED).sum())
    things = "points" if continuous(grid.config) else "images"
    exact = (
        " Of real data it is −log p of the test split under its own law." if pd.notna(real["nll_bits_per_dim"]) else ""
    )
    return (
        f"# {real['dataset']}: {done} of {len(runs)} cells\n\n"
        f"FID of N = {real['samples']} {things} against the test split, in features of "
        f"{features(grid, real, '`')}. "
        "NLL is the variational bound in bits/dim of the network's full chain, the same for all its samplers."
        f"{exact}\n\n{ratios(table, columns.toplined, things)}\n{against_histograms(table, grid)}"
        + (chances(columns.toplined, runs["seeds"]) if len(runs) > 1 else "")
        + markdown(_read(table, columns, runs["seeds"].nunique() > 1), 3, bold)
        + weights(grid)
    )


# What the features of an extractor are.
FEATURES = {
    "classifier": "a classifier trained on the training split",
    "inception": "Inception-v3",
    "dinov2": "DINOv2",
    "identity": "the identity, that is of the data themselves",
}


def features(grid: Grid, row: pd.Series, quote: str = "") -> str:
    """`Inception-v3 (hash …), protocol 1`: what two rows must share for their metrics to be comparable."""
    extractor = grid.config["fidelity"]["extractor"]
    found = FEATURES.get(extractor, f"the extractor {quote}{extractor}{quote}")
    found += f" (hash {quote}{row['extractor']}{quote})" if pd.notna(row["extractor"]) else ""
    return found + (f", protocol {row['protocol']}" if pd.notna(row["protocol"]) else "")


def chances(toplined: dict[str, str], seeds: pd.Series) -> str:
    """What the intervals of rows of so many seeds leave out, and what is bold."""
    spreads = ", ".join(f"`{name}_std`" for name in toplined)
    shown = f"; the spread over seeds, {spreads}, holds it" if seeds.max() > 1 else ", of which one seed tells nothing"
    none = " (here none has)" if seeds.max() == 1 else ""
    return (
        "Intervals, of 95 %, are of other samples of the networks that were trained. They leave out the chance of "
        f"training{shown}.\n\n"
        "Bold is less than in every other row of the same topline by more than chance, at 95 %; of bits/dim, than in "
        f"every other network. Different networks can be told apart only where each has several training seeds{none}. "
        "Where nothing is bold, no winner can be told. `ddpm audit` says in what else rows differ.\n\n"
    )


def _read(table: pd.DataFrame, columns: Columns, seeds_differ: bool) -> pd.DataFrame:
    """What of the table is for reading."""
    read = {*columns.read, *columns.of_sets}
    read |= {"seeds"} if seeds_differ or "sampling_seeds" in table else set()
    read -= {"network"} if table["network"].nunique() == 1 else set()
    shown = table[[c for c in table if c in read and table[c].notna().any()]].copy()
    for name in (name for name in columns.toplined if name in shown):
        ends = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
        texts = [f"{low:.3f} to {high:.3f}" if pd.notna(low) else None for low, high in ends]
        shown.insert(list(shown.columns).index(name) + 1, f"{name}, 95 %", texts)
    return shown


def ratios(table: pd.DataFrame, toplined: dict[str, str], things: str) -> str:
    """What 1 means in every row's `fid_over_topline`, and which values around it are chance."""
    rows = []
    for name, (_, real) in zip(toplines(), table.iloc[: len(toplines())].iterrows(), strict=True):
        row: dict[str, object] = {"topline": name}
        for column, short in toplined.items():
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


def against_histograms(table: pd.DataFrame, grid: Grid) -> str:
    """Which networks code the test split worse than histograms do, and why those that predict x0 are among them."""
    if "histogram" not in grid.baselines or table["nll_minus_histogram"].isna().all():
        return ""
    ours = table.iloc[len(grid.baselines) :].dropna(subset=["nll_minus_histogram"])
    over = {(r.objective, r.schedule): r.nll_minus_histogram for r in ours.itertuples()}

    def listed(chosen: dict) -> str:
        return ", ".join(f"`{o}/{s}` ({difference:+.2f})" for (o, s), difference in chosen.items()) or "none"

    worse = {network: difference for network, difference in over.items() if difference > 0}
    laws, verdict = "`histogram` (independent pixels)", f"Worse than `histogram`: {listed(worse)}"
    if "class-histogram" in grid.baselines:
        mixture = table["nll_minus_histogram"].iloc[grid.baselines.index("class-histogram")]
        best = {network: difference for network, difference in over.items() if difference < mixture}
        laws += " and `class-histogram` (pixels independent given the class)"
        verdict += f"; better than `class-histogram`: {listed(best)}"
    text = (
        f"Bits/dim of `noise` are log2 of the number of grey levels; those of {laws}, with the training images' "
        "frequencies, are the exact −log2 p of the whole test split, the networks' of "
        f"{grid.config['likelihood']['images']} of its images. "
        "`nll_minus_histogram` above 0: the network codes images worse than independent pixels do. "
        f"**{verdict}.**"
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
