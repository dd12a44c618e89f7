"""With how many seeds claims are looked at first, and whether they have been with fewer before. No torch.

Verdicts spend their 5 % over looks at S, 2S, 4S, … seeds, S being those that the configuration gives all cells
(`ddpm.tables.verdicts`). Who looks with S and raises `seeds` by hand afterwards looks with the new number as if for the
first time. A table must not depend on what lay there before it, but the records of former ones tell of it.
"""

from collections.abc import Iterator
from contextlib import suppress

from ddpm.errors import UserError
from ddpm.pipeline.records import read_record
from ddpm.pipeline.results import Results

LEAST = 3  # seeds: of two, the spread is hardly known


def first(config: dict) -> int:
    """How many seeds a claim's rows have at its first look."""
    return max(LEAST, len(config["seeds"]))


def taken(results: Results) -> set[int]:
    """The numbers of seeds of first looks at claims in tables that lie here, those that were replaced included."""
    record, found = results.layout.record("table"), set()
    for path in (record, *results.layout.replaced(record).glob(f"{record.stem}-*/{record.name}")):
        with suppress(UserError, OSError, LookupError, TypeError):  # of another form: then it says nothing
            config = read_record(path, "table")["job"]["config"]
            further = max(len(block.get("further_seeds", [])) for block in config["grid"])
            if len(config["seeds"]) + further >= LEAST:
                found.add(first(config))
    return found


def lines(results: Results) -> Iterator[str]:
    """What is wrong with a first look at more seeds than there was one with."""
    now = first(results.grid.config)
    if before := sorted(count for count in taken(results) if count < now):
        yield (
            f"seeds: {now}, and claims were looked at with {before[0]} before; this looks at the full level again, "
            f"and more than 5 % of tables have false verdicts then: put `seeds` back to {before[0]} of them, and let "
            "`ddpm claims --decide` give undecided claims further ones"
        )
