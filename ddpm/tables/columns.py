"""The table's columns, which follow from the metrics (`ddpm.metrics.metric`). No torch."""

from ddpm.pipeline.measures import metrics, shown, toplined
from ddpm.pipeline.registry import AXES

# The metrics that have a column, and of these the ones that real images have a topline of: name → title.
SHOWN = shown("table.md", "table.csv")
TOPLINED = toplined()


def _plain(direction: str) -> list[str]:
    """The metrics without a topline whose better values lie in this direction."""
    return [name for name in SHOWN if name not in TOPLINED and metrics()[name]["direction"] == direction]


COLUMNS = [
    *("dataset", *AXES, "steps", "nfe", "seeds", "samples"),
    *(f"{name}{end}" for name in TOPLINED for end in ("", "_std", "_over_topline")),
    "topline",
    *(f"{name}_topline{end}" for name in TOPLINED for end in ("", "_low", "_high")),
    *_plain("↓"),
    *("nll_bits_per_dim", "nll_std", "nll_standard_error"),
    *("nll_ode_bits_per_dim", "nll_ode_std", "nll_ode_standard_error"),
    "nll_minus_histogram",
    *_plain("↑"),
    *("parameters", "images_seen", "extractor", "status", "reason"),
]
# Column → (stage, key in its result): what is averaged over seeds.
MEASURES = {name: ("fidelity", name) for name in SHOWN} | {
    "nll_bits_per_dim": ("likelihood", "bound_bits_per_dim"),
    "nll_standard_error": ("likelihood", "standard_error"),
    "nll_ode_bits_per_dim": ("ode_likelihood", "bits_per_dim"),
    "nll_ode_standard_error": ("ode_likelihood", "standard_error"),
}
# Column → that of its spread over seeds.
SPREADS = {name: f"{name}_std" for name in TOPLINED} | {
    "nll_bits_per_dim": "nll_std",
    "nll_ode_bits_per_dim": "nll_ode_std",
}
# What table.md leaves out: what all its rows share, what is too much to read, and columns that explain others.
UNREAD = {"dataset", "seeds", "samples", "parameters", "images_seen", "extractor"}
UNREAD |= {f"{name}_topline{end}" for name in TOPLINED for end in ("", "_low", "_high")} | set(shown("table.csv"))
READING = [column for column in COLUMNS if column not in UNREAD]
# What a finished cell can be.
FINISHED = ("ok", "diverged", "degenerate")
