"""The audit: what differs between rows, from their records alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tabled import GRID, finished, untrained  # noqa: F401 - fixtures

from ddpm.compute import has_bfloat16
from ddpm.pipeline import audit, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results

USED = "bfloat16" if has_bfloat16("cpu") else "float32"
ROWS = [
    "eps/linear/none/ancestral",
    "eps/linear/none/ddim",
    "learned/linear/none/ancestral",
    "score/cosine/cfg-w1/ddim",
]


@pytest.fixture
def layout(finished: Layout, tmp_path: Path) -> Layout:  # noqa: F811
    shutil.copytree(finished.root, tmp_path / "results")
    return Layout(tmp_path / "results")


def test_what_a_grid_shares_and_what_not(finished: Layout) -> None:  # noqa: F811
    """One budget for all; a second head's parameters, label dropout, and a second evaluation by guidance."""
    found = audit.facts(Results(GRID, finished))
    assert list(found) == ROWS
    differing = audit.differences(found)
    assert set(differing) == {"parameters", "training.label_dropout", "network evaluations per sample"}
    count = {
        r: records.read_record(finished.record("train", f"{r}/unconditional/seed0"))["result"]["parameters"]
        for r in ("eps/linear", "learned/linear")
    }
    assert count["learned/linear"] > count["eps/linear"]
    assert differing["parameters"][str(count["learned/linear"])] == [ROWS[2]]
    assert differing["training.label_dropout"] == {"not stated": ROWS[:3], "0.1": ROWS[3:]}
    assert differing["network evaluations per sample"] == {"4": ROWS[:3], "8": ROWS[3:]}
    assert found[ROWS[0]]["training.batch"] == "16" and found[ROWS[0]]["seeds"] == "0, 1"
    assert found[ROWS[0]]["train in"] == found[ROWS[0]]["sample in"] == USED
    assert found[ROWS[0]]["images seen"] == "96" and found[ROWS[0]]["N"] == "24"


def change(layout: Layout, stage: str, name: str, **parts: dict) -> None:
    """Another record, as if it had been made otherwise: valid in form."""
    path = layout.record(stage, name)
    record = json.loads(path.read_text())
    for part, values in parts.items():
        record[part] = record[part] | values if isinstance(values, dict) else values
    records.write_json(path, record | {"digest": records.digest(record)})


CELL, NETWORK = "eps/linear/none/ddim/seed1", "eps/linear/unconditional/seed1"


@pytest.mark.parametrize(
    ("stage", "name", "parts", "heading", "value"),
    [
        ("train", NETWORK, {"device": "cuda", "hardware": "H100"}, "train on", "cuda (H100)"),
        ("train", NETWORK, {"result": {"images_seen": 7}}, "images seen", "96 and 7"),
        (
            "train",
            NETWORK,
            {"result": {"compute": {"precision": "float64", "compiled": True}}},
            "train in",
            f"{USED} and float64, compiled",
        ),
        ("sample", CELL, {"result": {"nfe": 9}}, "network evaluations per sample", "4 and 9"),
        ("fidelity", CELL, {"result": {"images": 25}}, "N", "24 and 25"),
        ("fidelity", CELL, {"result": {"extractor": "abc"}}, "extractor", "abc"),
        ("fidelity", CELL, {"result": {"protocol": 0}}, "protocol", "1 and 0"),
    ],
)
def test_one_seed_that_was_made_otherwise(
    layout: Layout, stage: str, name: str, parts: dict, heading: str, value: str
) -> None:
    """The row says both values, under its heading, and the others are named beside it."""
    change(layout, stage, name, **parts)
    differing = audit.differences(audit.facts(Results(GRID, layout)))
    (found,) = [v for v, rows in differing[heading].items() if ROWS[1] in rows]
    assert found.endswith(value) and ROWS[3] not in differing[heading][found]


def test_a_missing_seed_is_a_difference(layout: Layout) -> None:
    """A row of one seed beside rows of two."""
    layout.record("fidelity", CELL).unlink()
    found = audit.differences(audit.facts(Results(GRID, layout)))["seeds"]
    assert found == {"0, 1": [ROWS[0], ROWS[2], ROWS[3]], "0": [ROWS[1]]}


def test_the_text_names_both_sides() -> None:
    """The rows of rare values by name, the most common value's by their number."""
    found = {row: {"N": "24", "device": "cpu" if row != "d" else "cuda"} for row in "abcd"}
    assert audit.text(found).splitlines() == [
        "4 finished rows",
        "",
        "alike in all:",
        "  N: 24",
        "",
        "differs:",
        "  device",
        "    cpu: the other 3 rows",
        "    cuda: d",
    ]


def test_without_torch() -> None:
    """It reads records alone."""
    script = "import sys; import ddpm.pipeline.audit; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
