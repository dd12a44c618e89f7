"""The table's columns, which follow from the metrics (`ddpm.metrics.metric`). No torch."""

from dataclasses import dataclass
from functools import cached_property

from ddpm.pipeline.measures import files_of, metrics
from ddpm.pipeline.registry import AXES, Files

# The bits/dim: column → (stage, key in its result).
BITS = {
    "nll_bits_per_dim": ("likelihood", "bound_bits_per_dim"),
    "nll_standard_error": ("likelihood", "standard_error"),
    "nll_ode_bits_per_dim": ("ode_likelihood", "bits_per_dim"),
    "nll_ode_standard_error": ("ode_likelihood", "standard_error"),
}
# What table.md leaves out, besides details of metrics: what all its rows share, and what is too much to read.
UNREAD = {"dataset", "seeds", "samples", "parameters", "images_seen", "extractor", "protocol"}
# What a finished cell can be.
FINISHED = ("ok", "diverged", "degenerate")


@dataclass(frozen=True)
class Columns:
    """Those of a table whose metrics are ours, and those in `files` of the user's own."""

    files: Files = ()

    @cached_property
    def metrics(self) -> dict[str, dict]:
        """The metrics that have columns, in their order → what their classes declare."""
        return {name: declared for name, declared in metrics(self.files).items() if declared["shown"] != "record"}

    @cached_property
    def toplined(self) -> dict[str, str]:
        """The metrics that real images have a topline of → their titles."""
        return {name: declared["title"] for name, declared in self.metrics.items() if declared["topline"]}

    @cached_property
    def details(self) -> dict[str, str]:
        """The columns beside a metric's own that its `compute` gives → the metric."""
        return {f"{name}_{end}": name for name, declared in self.metrics.items() for end in declared["details"]}

    def _plain(self, direction: str) -> list[str]:
        """The columns of metrics without a topline whose better values lie in this direction."""
        names = [n for n, of in self.metrics.items() if n not in self.toplined and of["direction"] == direction]
        return [column for name in names for column in (name, *self._details(name))]

    def _details(self, name: str) -> list[str]:
        return [column for column, of in self.details.items() if of == name]

    @cached_property
    def all(self) -> list[str]:
        """The columns of table.csv."""
        top = [(name, f"{name}_std", *self._details(name), f"{name}_over_topline") for name in self.toplined]
        return [
            *("dataset", *AXES, "steps", "nfe", "seeds", "samples"),
            *(column for columns in top for column in columns),
            "topline",
            *(f"{name}_topline{end}" for name in self.toplined for end in ("", "_low", "_high")),
            *self._plain("↓"),
            *("nll_bits_per_dim", "nll_std", "nll_standard_error"),
            *("nll_ode_bits_per_dim", "nll_ode_std", "nll_ode_standard_error"),
            "nll_minus_histogram",
            *self._plain("↑"),
            *("parameters", "images_seen", "extractor", "protocol", "status", "reason"),
        ]

    @cached_property
    def of_sets(self) -> dict[str, str]:
        """What table.csv has besides where every network draws several sets of samples, how many and their spread → the
        column before it."""
        return {"sampling_seeds": "seeds"} | {f"{name}_sampling_std": f"{name}_std" for name in self.toplined}

    @cached_property
    def of_several_sets(self) -> list[str]:
        """The columns of table.csv where every network draws several sets of samples."""
        return [column for name in self.all for column in (name, *(k for k, v in self.of_sets.items() if v == name))]

    @cached_property
    def measures(self) -> dict[str, tuple[str, str]]:
        """Column → (stage, key in its result): what is averaged over seeds."""
        return {name: ("fidelity", name) for name in (*self.metrics, *self.details)} | BITS

    @cached_property
    def spreads(self) -> dict[str, str]:
        """Column → that of its spread over seeds."""
        bits = {"nll_bits_per_dim": "nll_std", "nll_ode_bits_per_dim": "nll_ode_std"}
        return {name: f"{name}_std" for name in self.toplined} | bits

    @cached_property
    def read(self) -> list[str]:
        """The columns of table.md."""
        left_out = {f"{name}_topline{end}" for name in self.toplined for end in ("", "_low", "_high")}
        left_out |= {name for name, of in self.metrics.items() if of["shown"] == "table.csv"} | self.details.keys()
        return [column for column in self.all if column not in UNREAD | left_out]


# Those that published tables and the claims of documents are about.
OURS = Columns()


def columns_of(config: dict) -> Columns:
    """The columns of this configuration's table."""
    return Columns(files_of(config["fidelity"]))
