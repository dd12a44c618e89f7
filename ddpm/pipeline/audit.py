"""Whether rows that stand in one table are alike in all but what is compared: from the records, as they lie there. No
torch.

A table is fair where what differs between two rows is what their names say. What may differ besides is looked up in
the records of training, sampling and measurement, which say what was done, not what was asked for: images that were
seen, network evaluations that were counted, the device that it ran on.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import external

# Row → what is known of it: heading → value, as text.
Facts = dict[str, dict[str, str]]
UNKNOWN = "not stated"


def facts(results: Results) -> Facts:
    """Every finished row of the grid, and those of samples made elsewhere, with what its records say; of several seeds
    that differ, the values of all."""
    found: Facts = {}
    cells = list(results.grid.runs.values())
    unnamed = len({cell.network for cell in cells}) == 1
    for row, of in groupby(sorted(cells, key=lambda cell: cell.row), key=lambda cell: cell.row):
        each, seeds = [], []
        for cell in of:
            network = results.grid.network(cell).name
            jobs = {"train": network, "sample": cell.name, "fidelity": cell.name}
            records = {stage: results.valid(stage, name) for stage, name in jobs.items()}
            if all(records.values()):
                each.append(dict(_of_cell({stage: r for stage, r in records.items() if r})))
                seeds.append(str(cell.seed))
        if each:
            values = {name: " and ".join(dict.fromkeys(of_seed[name] for of_seed in each)) for name in each[0]}
            found["/".join(row[:-1] if unnamed else row)] = values | {"seeds": ", ".join(dict.fromkeys(seeds))}
    for name in results.external:
        if not results.reasons("fidelity", name) and (record := results.record("fidelity", name)):
            found[external(name)] = dict(_measured(record))
    return found


def _of_cell(records: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """What the records of one cell say."""
    train, sample, fidelity = (records[stage] for stage in ("train", "sample", "fidelity"))
    yield "parameters", str(train["result"]["parameters"])
    space = train["result"]["space"]
    yield "space", f"{space['method']}, {' × '.join(map(str, space['shape']))}"
    yield "images seen", str(train["result"]["images_seen"])
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
        lines.append(f"  {heading}")
        for i, (value, rows) in enumerate(values.items()):
            most = i == 0 and len(rows) > 2
            lines.append(f"    {value}: {f'the other {len(rows)} rows' if most else ', '.join(rows)}")
    return "\n".join(lines)
