"""The `table` stage: records → every file of the tables."""

from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import Outcome, Run
from ddpm.tables import claims_text, paired
from ddpm.tables.columns import FINISHED, columns_of
from ddpm.tables.markdown import reading
from ddpm.tables.published import documents, files, published_text
from ddpm.tables.rows import collect, costs, missing
from ddpm.tables.verdicts import decide
from ddpm.tables.winners import trainings, winners


def write(run: Run) -> Outcome:
    """The `table` stage: table.csv, table.md, published.md, claims.md, differences.csv, costs.csv of what is there.

    A result that is not valid is left out, its row says why, and the heading says how many cells there are.
    """
    results = Results(Grid(run.job["config"]), Layout(run.results))
    run.recorder.record["inputs"] = results.inputs("table")
    table = collect(results)
    ours = table.iloc[: len(table) - len(results.external)]
    lacking = missing(results, ours)
    published = documents(table, results.grid)
    pairs, verdicts = paired.differences(results), decide(results)
    toplined = list(columns_of(results.grid.config).toplined)
    bold = winners(table, pairs, toplined, trainings(table, results.grid))
    texts = {
        "table": table.to_csv(index=False, float_format="%.4f", lineterminator="\n"),
        "reading": reading(table, results.grid, bold) + paired.text(pairs),
        "published": published_text(published),
        "differences": pairs.to_csv(index=False, float_format="%.5f", lineterminator="\n"),
        "claims": claims_text.text(verdicts),
        "claims_table": claims_text.frame(verdicts).to_csv(index=False, float_format="%.5f", lineterminator="\n"),
        "costs": costs(results).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in (texts | dict(files(published))).items():
        run.write(name, text)
    first = len(results.grid.baselines)
    runs = len(ours) - first - int((ours["status"] == "n/a").sum())
    done = int(ours["status"][first:].isin(FINISHED).sum())
    return "ok", {"cells": done, "of": runs, "missing": len(lacking)}
