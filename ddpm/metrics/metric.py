"""The base of the metrics: what one is called, which direction is better, what it needs, and its numbers."""

from dataclasses import dataclass
from typing import ClassVar

from ddpm.methods import Method
from ddpm.metrics.evaluator import Evaluator, Samples


@dataclass(frozen=True)
class Metric(Method):
    """Base of the metrics: a class with `method`, its name in records, tables and docs/table.md, and `compute`.

    Tables, figures and planning read these attributes without importing the class, so they are literals:

    title:     what a heading calls it.
    direction: `↓` where less is better, `↑` where more is. In the table the former stand before the bits/dim.
    wants:     what it needs, of `ddpm.pipeline.measures`: it is left out where the data cannot give it.
    distance:  whether it is a distance, above 0: then claims compare its ratios, and differences of all else.
    topline:   whether `compute` gives real images a mean and its interval, NAME, NAME_low and NAME_high; the table has
               the multiples of them, and the spread over seeds.
    details:   of further numbers of `compute` the ends of their names, NAME_low for `low`: columns of table.csv.
    shown:     where it stands: `table.md` (and table.csv), `table.csv` alone, or in the `record` alone.
    """

    title: ClassVar[str] = ""
    direction: ClassVar[str] = "↓"
    wants: ClassVar[tuple[str, ...]] = ()
    distance: ClassVar[bool] = False
    topline: ClassVar[bool] = False
    details: ClassVar[tuple[str, ...]] = ()
    shown: ClassVar[str] = "table.md"

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        """The numbers by name, the metric's own under `method`; none where it says nothing of these samples."""
        raise NotImplementedError
