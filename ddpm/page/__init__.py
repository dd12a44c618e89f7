"""Records, tables and pictures → report.html: one page for a browser that holds everything and asks no host."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddpm.page import content
from ddpm.pipeline import audit
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import PAGE, Results
from ddpm.pipeline.run import Outcome, Run
from ddpm.tables.claims_text import summary
from ddpm.tables.columns import columns_of
from ddpm.tables.rows import collect, costs, missing
from ddpm.tables.verdicts import decide


def write(run: Run) -> Outcome:
    """The `page` stage: report.html of what is there, with no time but those of records and logs.

    The same records, pictures and logs give the same bytes.
    """
    results = Results(Grid(run.job["config"]), Layout(run.results))
    run.recorder.record["inputs"] = results.inputs("page")
    table = collect(results)
    missing(results, table.iloc[: len(table) - len(results.external)])
    rows, verdicts = content.rows(results, table), decide(results)
    html = render(
        {
            "head": content.head(results, table),
            "summary": summary(verdicts),
            "few": content.few(verdicts),
            "verdicts": content.verdicts(verdicts),
            "absent": content.absent(verdicts),
            "columns": content.columns(table, columns_of(results.grid.config)),
            "rows": rows,
            "audit": audit.text(audit.facts(results)),
            "figures": content.figures(results),
            "published": content.published(table, results.grid),
            "costs": content.costs(costs(results)),
        }
    )
    run.write("page", html)
    return "ok", {"rows": len(rows), "bytes": len(html.encode())}


def render(context: dict) -> str:
    """The page of this content, every text of it escaped; style and script stand in it."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = {name: (Path(PAGE) / file).read_text(encoding="utf-8") for name, file in FILES.items()}
    return environment.get_template("report.html.j2").render(context | parts)


FILES = {"style": "style.css", "script": "script.js"}
