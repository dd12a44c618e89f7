"""What a change reruns: the exact jobs of a real dry run on a real finished tree, and that `ddpm status` agrees."""

# ruff: noqa: F811 - arguments are called as the fixtures that they ask for

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from finished_tree import (  # noqa: F401 - fixtures
    BOTH,
    BOUND,
    CELLS,
    DRAWN,
    EPS,
    EPS_ANCESTRAL,
    EPS_DDIM,
    EVERYTHING,
    FIGURES,
    LEARNED,
    LEARNED_ANCESTRAL,
    MEASURED,
    NETWORKS,
    SCORE,
    SCORE_DDIM,
    TABLE,
    Jobs,
    copy,
    drawn,
    of,
    results,
    status,
    trained,
)
from project import copy_project, planned

from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.stage import BASELINES

# ---- configuration -----------------------------------------------------------------------------------------

OVERLAYS = {
    "a sampler": ("samplers: {ddim: {eta: 0.5}}", drawn(EPS_DDIM, SCORE_DDIM)),
    "another sampler": ("samplers: {ancestral: {variance: large}}", drawn(EPS_ANCESTRAL, LEARNED_ANCESTRAL)),
    "a guidance": ("guidances: {cfg-w1: {weight: 2.0}}", drawn(SCORE_DDIM)),
    "a schedule of one network": ("schedules: {cosine: {offset: 0.01}}", trained(SCORE)),
    "a schedule of two": ("schedules: {linear: {beta_last: 0.03}}", trained(EPS, LEARNED)),
    "an objective": ("objectives: {learned: {vlb_weight: 0.01}}", trained(LEARNED)),
    "training": ("training: {steps: 25}", trained(*NETWORKS)),
    "training of conditional networks": ("training: {label_dropout: 0.2}", trained(SCORE)),
    "the network": ("network: {width: 16}", trained(*NETWORKS)),
    "the data": ("data: {seed: 1}", EVERYTHING),
    "the extractor of features": ("classifier: {epochs: 2}", of("classifier", "") | MEASURED),
    "N": ("sampling: {images: 41}", DRAWN | MEASURED),
    "the batch of sampling": ("sampling: {batch: 20}", DRAWN),
    "the bound": ("likelihood: {times: 6}", BOUND),
    "two values that change places": ("likelihood: {images: 5, times: 20}", BOUND),
    "threads": ("threads: 2", EVERYTHING - of("data", "")),
    "the precision": ("compute: {precision: float32}", trained(*NETWORKS)),
    "a new cell on a network that is there": (
        "grid: [{objective: [eps, learned], schedule: [linear], guidance: [none], sampler: [ancestral, ddim]},"
        " {objective: [score], schedule: [cosine], guidance: [cfg-w1, cfg-w5], sampler: [ddim]}]",
        of("sample", "score/cosine/cfg-w5/ddim/seed0") | of("fidelity", SCORE) | BOTH,
    ),
    "one cell less": (
        "grid: [{objective: [eps, learned], schedule: [linear], guidance: [none], sampler: [ancestral, ddim]}]",
        BOTH,
    ),
    "another seed": (
        "seeds: [0, 1]",
        {(s, n.replace("seed0", "seed1")) for s, n in trained(*NETWORKS)} | BOTH,
    ),
    "the device": ("device: cpu", set()),
    "how jobs are run": ("{jobs_per_gpu: 2, checkpoint_seconds: 5}", set()),
    "values as they are, as other types, in another order": (
        "{training: {warmup: 4, batch: 16, steps: 24}, samplers: {ddim: {eta: 0, steps: 4}}}",
        set(),
    ),
    "an axis value that no cell uses": ("samplers: {new: {method: ddim, steps: 7}}", set()),
}


@pytest.mark.parametrize(("overlay", "expected"), OVERLAYS.values(), ids=OVERLAYS.keys())
def test_a_change_of_the_configuration(tree: Path, overlay: str, expected: Jobs) -> None:
    """Exactly the jobs that depend on it, and what follows from them."""
    (tree / "change.yaml").write_text(overlay + "\n")
    assert set(planned(tree, "change.yaml")) == expected


# ---- code --------------------------------------------------------------------------------------------------

EDITS = {
    "a comment": ("ddpm/samplers/singlestep.py", "class DDIM", "# A remark.\nclass DDIM", set()),
    "a docstring": ("ddpm/stages/train.py", "The `train` stage:", "What trains:", set()),
    "a sampler": ("ddpm/samplers/singlestep.py", "self.eta**2 *", "1.0 * self.eta**2 *", drawn(EPS_DDIM, SCORE_DDIM)),
    "a method that no cell uses": (
        "ddpm/samplers/singlestep.py",
        "",
        "\n\nclass Spare(Sampler):\n    method = 'spare'\n",
        set(),
    ),
    "training": ("ddpm/stages/train.py", "rise * fall", "fall * rise", trained(*NETWORKS)),
    "a histogram": (
        "ddpm/baselines.py",
        "= counts.reshape",
        "= 1.0 * counts.reshape",
        of("fidelity", "baselines") | BOTH,
    ),
    "FID": ("ddpm/metrics/extractors.py", "(images >= 128)", "(images > 127)", MEASURED),
    "the table": ("ddpm/tables/rows.py", '"status": "n/a"', '"status": str("n/a")', TABLE),
    "the pictures": ("ddpm/figures/canvas.py", "len(columns) + 0.6", "len(columns) + 0.7", FIGURES),
    "the bound": ("ddpm/stages/likelihood.py", "math.sqrt(len(x0))", "math.sqrt(1.0 * len(x0))", BOUND),
    "a schedule": (
        "ddpm/schedules.py",
        "self.offset) / (1 + self.offset)",
        "self.offset) / (self.offset + 1)",
        trained(SCORE),
    ),
    "the data": ("ddpm/datasets/digits.py", "test_size=0.5", "test_size=1 / 2", EVERYTHING),
    "a published number": ("workflow/published/poster.yaml", "title:", "title: A", TABLE),
    "the command line": ("ddpm/cli.py", "", "\n\nX = 1\n", set()),
}


@pytest.mark.parametrize(("file", "old", "new", "expected"), EDITS.values(), ids=EDITS.keys())
def test_a_change_of_the_code(tree: Path, file: str, old: str, new: str, expected: Jobs) -> None:
    """Exactly the jobs whose code it is: by function and class, not by file."""
    path = tree / file
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1) if old else text + new)
        assert set(planned(tree)) == expected
    finally:
        path.write_text(text)


def test_status_names_the_function_that_changed(tree: Path) -> None:
    """By its name; what follows from it says so."""
    path = tree / "ddpm/samplers/singlestep.py"
    text = path.read_text()
    try:
        path.write_text(text.replace("self.eta**2 *", "1.0 * self.eta**2 *"))
        found = json.loads(status(tree, "--json"))
    finally:
        path.write_text(text)
    reasons = {(job["stage"], job["name"]): [tuple(r.values()) for r in job["reasons"]] for job in found["todo"]}
    assert reasons["sample", EPS_DDIM] == [("code", "ddpm.samplers.singlestep.DDIM changed")]
    assert reasons["fidelity", EPS_DDIM] == [("follows", f"sample {EPS_DDIM}")]
    assert found["cells"][EPS_DDIM]["state"] == "stale" and found["cells"][EPS_ANCESTRAL]["state"] == "degenerate"
    assert found["counts"] == {"degenerate": 2, "stale": 2, "n/a": 1}


# ---- what lies there ---------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change a record as if it had been written so."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record | {"digest": records.digest(record)}))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path: Path) -> None:
    """Another content of the same size, as an editor leaves it."""
    content = path.read_bytes()
    time.sleep(0.01)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def touched(folder: Path) -> None:
    """New times for everything, in no order."""
    for i, path in enumerate(sorted(folder.rglob("*"), key=lambda p: hash(p.name))):
        os.utime(path, (1e9 + i, 1e9 + i))


DAMAGES: dict[str, tuple[Callable[[Path, Layout], object], Jobs]] = {
    "everything touched": (lambda folder, at: touched(folder), set()),
    "Snakemake's memory lost": (lambda folder, at: shutil.rmtree(folder / ".snakemake"), set()),
    "both": (lambda folder, at: (shutil.rmtree(folder / ".snakemake"), touched(folder)), set()),
    "samples deleted": (lambda folder, at: at.output("sample", EPS_DDIM).unlink(), drawn(EPS_DDIM)),
    "samples edited": (lambda folder, at: flipped(at.output("sample", EPS_DDIM)), drawn(EPS_DDIM)),
    "weights torn": (lambda folder, at: torn(at.output("train", SCORE)), trained(SCORE)),
    "a record deleted": (lambda folder, at: at.record("sample", SCORE_DDIM).unlink(), drawn(SCORE_DDIM)),
    "a record torn": (lambda folder, at: torn(at.record("fidelity", EPS_DDIM)), of("fidelity", EPS) | BOTH),
    "a number edited": (
        lambda folder, at: at.record("likelihood", EPS).write_text(
            at.record("likelihood", EPS).read_text().replace('"times": ', '"times": 1')
        ),
        of("likelihood", EPS) | BOTH,
    ),
    "a newer version": (
        lambda folder, at: rewrite(at.record("train", LEARNED), lambda r: r.update(format=99)),
        trained(LEARNED),
    ),
    "weights of another training": (
        lambda folder, at: rewrite(
            at.record("train", SCORE), lambda r: r["outputs"].update({"weights.safetensors": "0" * 64})
        ),
        drawn(SCORE_DDIM),
    ),
    "another torch made it": (
        lambda folder, at: rewrite(at.record("sample", EPS_DDIM), lambda r: r["versions"].update(torch="1.0")),
        drawn(EPS_DDIM),
    ),
    "the table deleted": (lambda folder, at: (at.root / "table.csv").unlink(), TABLE),
    "a picture deleted": (lambda folder, at: (at.cell(EPS_DDIM) / "samples.png").unlink(), FIGURES),
    "everything deleted": (lambda folder, at: shutil.rmtree(at.root), EVERYTHING),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_happened_to_the_results(copy: Path, damage: Callable, expected: Jobs) -> None:
    """Records decide: times do not count, and what is lost, torn or edited is made again, with what follows."""
    damage(copy, results(copy))
    assert set(planned(copy)) == expected
    found = json.loads(status(copy, "--json"))
    batches = {cell: network for network, cells in CELLS.items() for cell in cells}
    batches |= dict.fromkeys(BASELINES, "baselines")
    told = {(j["stage"], batches.get(j["name"], "") if j["stage"] == "fidelity" else j["name"]) for j in found["todo"]}
    assert told == expected


def test_a_fresh_clone_with_copied_results(tree: Path, tmp_path: Path) -> None:
    """Nothing runs, though all times are new; and a change after that plans what it plans in the old place."""
    clone = copy_project(tmp_path / "clone")
    shutil.copytree(tree / "results", clone / "results", copy_function=shutil.copyfile)
    touched(clone)
    assert planned(clone) == []
    (clone / "change.yaml").write_text("samplers: {ddim: {eta: 0.5}}\n")
    assert set(planned(clone, "change.yaml")) == drawn(EPS_DDIM, SCORE_DDIM)


def test_another_version_of_a_package(tree: Path, tmp_path: Path) -> None:
    """torch-fidelity counts where FIDs are measured, and nowhere else; the reason names both versions."""
    fake = tmp_path / "torch_fidelity-9.9.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-fidelity\nVersion: 9.9+local\n")
    found = json.loads(status(tree, "--json", PYTHONPATH=str(tmp_path)))
    assert {job["stage"] for job in found["todo"]} == {"fidelity", "table", "figures", "page"}
    kinds = {(r["kind"], r["text"]) for j in found["todo"] if j["stage"] == "fidelity" for r in j["reasons"]}
    assert len(kinds) == 1
    kind, text = kinds.pop()
    assert kind == "environment" and text.startswith("torch-fidelity: ") and text.endswith(" → 9.9")


def test_every_record_has_the_form_of_the_schema(tree: Path) -> None:
    """Of every stage, the table's and the pictures' too: costs by phase, hardware, hashes and digest among it."""
    schema = yaml.safe_load((tree / "workflow/schemas/record.schema.yaml").read_text())
    found = [p for p in results(tree).root.rglob("*.json") if p.parent.name != "code" and "fidelity" not in p.parts]
    every = [records.read_record(path) for path in found]
    for record in every:
        jsonschema.validate(record, schema)
    stages = {"data", "classifier", "train", "likelihood", "sample", "fidelity", "table", "figures", "page"}
    assert {record["stage"] for record in every} == stages
    (phases,) = {tuple(record["costs"]["phases"]) for record in every if record["stage"] == "train"}
    assert phases == ("loading", "reading", "training", "writing")
