"""Whether rows that stand in one table are alike in all but what is compared: from the records, as they lie there. No
torch.

A table is fair where what differs between two rows is what their names say. What may differ besides is looked up in
the records of training, sampling and measurement, which say what was done, not what was asked for: images that were
seen, network evaluations that were counted, the device that it ran on.
"""

from collections import defaultdict
from collections.abc import Iterator

from ddpm.pipeline.grid import Cell
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import external

# Row → what is known of it: heading → value, as text.
Facts = dict[str, dict[str, str]]
UNKNOWN = "not stated"


def facts(results: Results) -> Facts:
    """Every finished row of the grid, and those of samples made elsewhere, with what its records say; of several seeds
    that differ, the values of all."""
    found: Facts = {}
    unnamed = len({cell.network for cell in results.grid.runs.values()}) == 1
    for row, cells in sorted(results.grid.rows.items()):
        if values := _of_row(results, [cell for cell in cells if not cell.reason]):
            found["/".join(row[:-1] if unnamed else row)] = values
    for name in results.external:
        if not results.reasons("fidelity", name):
            found[external(name)] = dict(_measured(results.known("fidelity", name)))
    return found


def _of_row(results: Results, cells: list[Cell]) -> dict[str, str]:
    """What the records of a row's seeds say, of those that are finished; empty where none is."""
    each, seeds = [], dict[str, None]()
    for cell in cells:
        jobs = {"train": results.grid.network(cell).name, "sample": cell.name, "fidelity": cell.name}
        records = {stage: record for stage, name in jobs.items() if (record := results.valid(stage, name))}
        if len(records) == len(jobs):
            trained = results.trained(cell)
            counted = {name: str(trained[name.replace(" ", "_")]) for name in ("parameters", "images seen")}
            each.append(counted | dict(_of_cell(records)))
            seeds[str(cell.seed)] = None
    if not each:
        return {}
    values = {name: " and ".join(dict.fromkeys(of_seed[name] for of_seed in each)) for name in each[0]}
    return values | {"seeds": ", ".join(seeds)}


def _of_cell(records: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """What the records of one cell say."""
    train, sample, fidelity = (records[stage] for stage in ("train", "sample", "fidelity"))
    space = train["result"]["space"]
    yield "space", f"{space['method']}, {' × '.join(map(str, space['shape']))}"
    for key, value in train["job"]["training"].items():
        yield f"training.{key}", str(value)
    yield from ((f"sampling.{key}", str(value)) for key, value in sample["job"]["sampling"].items())
    yield "network evaluations per sample", str(sample["result"]["nfe"])
    yield from _measured(fidelity)
    for stage in ("train", "sample"):
        used = records[stage]["result"].get("compute")  # an imported network is not trained
        if used:
            yield f"{stage} in", used["precision"] + (", compiled" if used["compiled"] else "")
    for stage, record in records.items():
        yield f"{stage} on", f"{record['device']} ({record['hardware']})"
        yield f"{stage} with", ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        yield f"{stage}: threads", str(record["job"]["threads"])


def _measured(fidelity: dict) -> Iterator[tuple[str, str]]:
    """What the record of a measurement says."""
    result = fidelity["result"]
    yield "N", str(result.get("images", UNKNOWN))
    yield "reference", fidelity["inputs"]["data"][:12]
    yield "extractor", str(result.get("extractor", UNKNOWN))
    yield "protocol", str(result.get("protocol", UNKNOWN))


def differences(found: Facts) -> dict[str, dict[str, list[str]]]:
    """What differs: heading → value → rows, the value of most rows first; `not stated` where records say nothing."""
    headings = dict.fromkeys(name for values in found.values() for name in values)
    differing = {}
    for heading in headings:
        rows: dict[str, list[str]] = defaultdict(list)
        for row, values in found.items():
            rows[values.get(heading, UNKNOWN)].append(row)
        if len(rows) > 1:
            differing[heading] = dict(sorted(rows.items(), key=lambda item: -len(item[1])))
    return differing


def text(found: Facts) -> str:
    """What all rows share, and what differs between them, by value."""
    differing = differences(found)
    shared = {name: value for values in found.values() for name, value in values.items() if name not in differing}
    lines = [f"{len(found)} finished rows", "", "alike in all:"]
    lines += [f"  {name}: {value}" for name, value in shared.items()] or ["  nothing"]
    lines += ["", "differs:" if differing else "differs: nothing"]
    for heading, values in differing.items():
        (most, of_most), *others = values.items()
        lines += [
            f"  {heading}",
            f"    {most}: {f'the other {len(of_most)} rows' if len(of_most) > 2 else ', '.join(of_most)}",
        ]
        lines += [f"    {value}: {', '.join(rows)}" for value, rows in others]
    return "\n".join(lines)
