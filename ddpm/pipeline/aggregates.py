"""What is made of all records of a grid: the tables, the pictures and the page. No torch."""

from ddpm.pipeline import project
from ddpm.pipeline.stage import Aggregate, Root

# The documents' tables by name.
PUBLISHED = sorted(path.stem for path in project.find("workflow/published").glob("*.yaml"))


class TableStage(Aggregate):
    """The tables. Of both likelihoods it reads what every test image costs as well (`ddpm.tables.paired`)."""

    name = "table"
    entry = ("ddpm.tables.writing", "write")
    record = "table.json"
    files = {
        "table": "table.csv",
        "reading": "table.md",
        "published": "published.md",
        "claims": "claims.md",
        "claims_table": "claims.csv",
        "differences": "differences.csv",
        "costs": "costs.csv",
    }
    files |= {f"{name}.{end}": f"tables/{name}.{end}" for name in PUBLISHED for end in ("md", "tex")}
    reads = (
        "data",
        "classifier",
        "autoencoder",
        "snapshots",
        "train",
        "guide",
        "likelihood",
        "ode_likelihood",
        "sample",
        "fidelity",
        "paired",
    )

    def roots(self, job: dict) -> frozenset[Root]:
        return frozenset({self.entry})  # records and numbers alone: no space


class FiguresStage(Aggregate):
    """The pictures; they are as many as the grid has (`Layout.pictures`)."""

    name = "figures"
    entry = ("ddpm.figures", "write")
    record = "figures/record.json"
    reads = ("data", "autoencoder", "snapshots", "train", "guide", "likelihood", "sample", "fidelity")
    unused = ("likelihood", "ode_likelihood", "fidelity", "classifier")


class PageStage(Aggregate):
    """The page for a browser, which shows the tables, the pictures, and every record."""

    name = "page"
    entry = ("ddpm.page", "write")
    record = "report.json"
    files = {"page": "report.html"}
    reads = (*TableStage.reads, "table", "figures")

    def roots(self, job: dict) -> frozenset[Root]:
        return frozenset({self.entry})  # as of the table
