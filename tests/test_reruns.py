"""What a change reruns: the exact jobs of a real dry run on a real finished tree, and that `ddpm status` agrees."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml
from project import command, copy_project, planned, snakemake

from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.stage import BASELINES

EPS, LEARNED, SCORE = (
    "eps/linear/unconditional/seed0",
    "learned/linear/unconditional/seed0",
    "score/cosine/conditional/seed0",
)
NETWORKS = (EPS, LEARNED, SCORE)
EPS_ANCESTRAL, EPS_DDIM = "eps/linear/none/ancestral/seed0", "eps/linear/none/ddim/seed0"
LEARNED_ANCESTRAL, SCORE_DDIM = "learned/linear/none/ancestral/seed0", "score/cosine/cfg-w1/ddim/seed0"
CELLS = {EPS: (EPS_ANCESTRAL, EPS_DDIM), LEARNED: (LEARNED_ANCESTRAL,), SCORE: (SCORE_DDIM,)}
BATCHES = (*NETWORKS, "baselines")

Jobs = set[tuple[str, str]]
TABLE, FIGURES = {("table", ""), ("page", "")}, {("figures", ""), ("page", "")}
BOTH = TABLE | FIGURES


def of(stage: str, *names: str) -> Jobs:
    return {(stage, name) for name in names}


def drawn(*cells: str) -> Jobs:
    """These cells are sampled, their networks' batches measured, table and pictures made."""
    batches = [network for network, own in CELLS.items() if set(own) & set(cells)]
    return of("sample", *cells) | of("fidelity", *batches) | BOTH


def used(*networks: str) -> Jobs:
    """What follows from these networks' weights."""
    cells = [cell for network in networks for cell in CELLS[network]]
    return of("likelihood", *(n for n in networks if n != SCORE)) | drawn(*cells)


def trained(*networks: str) -> Jobs:
    return of("train", *networks) | used(*networks)


DRAWN = drawn(*sum(CELLS.values(), ()))
EVERYTHING = of("data", "") | of("classifier", "") | trained(*NETWORKS) | of("fidelity", *BATCHES)
MEASURED = of("fidelity", *BATCHES) | BOTH
BOUND = of("likelihood", EPS, LEARNED) | TABLE

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


def status(folder: Path, *arguments: str, overlay: str = "", **environment: str) -> str:
    """What `ddpm status` says."""
    files = ["--configfile", "tests/tiny.yaml", *(["--configfile", overlay] if overlay else [])]
    run = subprocess.run(
        [sys.executable, "-m", "ddpm", "status", *arguments, *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


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


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """A copy of the finished tree that a test may spoil."""
    shutil.copytree(tree, tmp_path / "copy")
    return tmp_path / "copy"


def results(folder: Path) -> Layout:
    return Layout(folder / "results/tiny")


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
        of("likelihood", EPS) | TABLE,
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


# ---- runs --------------------------------------------------------------------------------------------------


def tiny(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`ddpm` with the tiny configuration."""
    run = [sys.executable, "-m", "ddpm", *arguments, "--configfile", "tests/tiny.yaml"]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True)


def test_a_change_and_its_reversal(copy: Path) -> None:
    """What a change replaces is named before, kept, and put back instead of computed when the change is taken back."""
    at = results(copy)
    table, samples = (at.root / "table.csv").read_bytes(), at.output("sample", SCORE_DDIM).read_bytes()
    (copy / "change.yaml").write_text("guidances: {cfg-w1: {weight: 2.0}}\n")
    told = snakemake(copy, "-n", overlay="change.yaml").stdout
    assert "guidance.weight: 1.0 → 2.0" in told and "kept in results/tiny/replaced: 2 results" in told
    run = snakemake(copy, overlay="change.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert at.output("sample", SCORE_DDIM).read_bytes() != samples and (at.root / "table.csv").read_bytes() != table
    (kept,) = (at.root / "replaced/cells" / SCORE_DDIM).glob("samples-*/samples.safetensors")
    assert kept.read_bytes() == samples
    assert [p.read_bytes() for p in at.root.glob("replaced/table-*/table.csv")] == [table]
    run = snakemake(copy)
    assert run.returncode == 0, run.stdout + run.stderr
    log = at.log("sample", SCORE_DDIM).read_text().splitlines()[-1]
    assert "put back from results/tiny/replaced/cells" in log
    assert at.output("sample", SCORE_DDIM).read_bytes() == samples and (at.root / "table.csv").read_bytes() == table
    assert planned(copy) == []


def test_a_failure_leaves_no_old_table(copy: Path) -> None:
    """After --keep-going: the old table is set aside, `ddpm table` makes the one of what is there, and says so."""
    at, path = results(copy), copy / "ddpm/guidance.py"
    table, text = (at.root / "table.csv").read_bytes(), path.read_text()
    path.write_text(text.replace("both =", "raise ValueError('no luck today')\n        both =", 1))
    assert path.read_text() != text
    assert set(planned(copy)) >= drawn(SCORE_DDIM)
    run = snakemake(copy, "--keep-going")
    assert run.returncode != 0 and "no luck today" in run.stdout + run.stderr
    assert not (at.root / "table.csv").exists()
    found = json.loads(status(copy, "--json"))
    assert found["cells"][SCORE_DDIM] == {"state": "failed", "reason": "sample: no luck today"}
    assert found["counts"] == {"degenerate": 3, "failed": 1, "n/a": 1}
    run = tiny(copy, "table")
    assert run.returncode == 0 and run.stdout == "results/tiny/table.csv: 3 of 4 cells\n"
    assert "# digits: 3 of 4 cells" in (at.root / "table.md").read_text()
    rows = pd.read_csv(at.root / "table.csv", keep_default_na=False)
    assert list(rows["status"]) == ["ok"] * 5 + ["degenerate"] * 3 + ["n/a", "failed"]
    assert rows["reason"].iloc[-1] == "1 of 1 seeds; sample: no luck today"
    assert set(planned(copy)) >= drawn(SCORE_DDIM)
    path.write_text(text)
    assert planned(copy) == [("page", ""), ("table", "")]  # nothing else was replaced
    run = snakemake(copy)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (at.root / "table.csv").read_bytes() == table


def test_two_snakemakes_on_one_tree(copy: Path) -> None:
    """The second one is refused with a message while the first runs; the first is not disturbed."""
    (copy / "change.yaml").write_text("guidances: {cfg-w1: {weight: 2.0}}\n")
    files = ("tests/tiny.yaml", "change.yaml")
    first = subprocess.Popen(
        command(files=files), cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not list((copy / ".snakemake/locks").glob("*")) and first.poll() is None:
        time.sleep(0.02)
    second = snakemake(copy, overlay="change.yaml")
    assert second.returncode != 0 and "lock" in second.stdout + second.stderr
    out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert planned(copy, "change.yaml") == []


def test_code_that_is_edited_after_it_was_planned(copy: Path) -> None:
    """A job refuses to record a fingerprint that is not that of the code it would run; nothing is replaced."""
    at, path = results(copy), copy / "ddpm/samplers/singlestep.py"
    record = at.record("sample", EPS_DDIM).read_bytes()
    job = json.loads(record)["job"]
    path.write_text(path.read_text().replace("self.eta**2 *", "1.0 * self.eta**2 *"))
    options = ["--code", json.loads(record)["code"], "--results", "results/tiny", "--device", "cpu"]
    call = [sys.executable, "-m", "ddpm", "job", "sample", "--job", json.dumps(job), *options]
    run = subprocess.run(call, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 2
    assert f"sample {EPS_DDIM}: its code was edited after it was planned" in run.stderr
    assert at.record("sample", EPS_DDIM).read_bytes() == record


def test_without_git_and_with_a_clock_that_runs_backwards(copy: Path) -> None:
    """No commit is known; a result of the future is a result; durations are never negative."""
    at = results(copy)
    for path in at.root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert planned(copy) == []
    record = records.read_record(at.record("train", EPS))
    assert record["commit"] is None and record["dirty"] is None
    said = status(copy, EPS_DDIM)
    assert "commit unknown (no git)" in said and str(Path("results/tiny/cells") / EPS_DDIM) in said
    run = tiny(copy, "sample", EPS_DDIM, "--again")
    assert run.returncode == 0, run.stderr
    assert records.read_record(at.record("sample", EPS_DDIM))["costs"]["seconds"] >= 0
    assert planned(copy) == sorted(TABLE)


def test_a_kill_leaves_exactly_the_rest(tree: Path, tmp_path: Path) -> None:
    """SIGKILL to Snakemake and its jobs: what has its record is done, all else is planned, and nothing else."""
    other = copy_project(tmp_path / "killed")
    at = results(other)
    process = subprocess.Popen(
        command(), cwd=other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 180
    while not at.record("sample", EPS_DDIM).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlock = snakemake(other, "--unlock")
    assert unlock.returncode == 0, unlock.stderr
    done = {("data", ""), ("train", EPS), ("sample", EPS_DDIM)}
    rest = set(planned(other))
    assert not rest & done
    for stage, name in EVERYTHING - rest:
        path = at.measured(name) if stage == "fidelity" else at.record(stage, name)
        assert path.exists(), (stage, name)
    weights = at.output("train", EPS).read_bytes()
    run = snakemake(other)
    assert run.returncode == 0, run.stdout + run.stderr
    assert at.output("train", EPS).read_bytes() == weights == results(tree).output("train", EPS).read_bytes()
    assert (at.root / "table.csv").read_bytes() == (results(tree).root / "table.csv").read_bytes()
