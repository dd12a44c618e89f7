"""Spot checks: what was tampered with is found, though every hash was made to fit again; what was not is not."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats
from tabled import configured, untrained  # noqa: F401 - a fixture

from ddpm import rng, rounding, spot_checks
from ddpm.cli import main
from ddpm.compute import Computed
from ddpm.pipeline import config, records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stages import STAGES

CELL, OTHER = "eps/linear/none/ddim/seed0", "eps/linear/none/ancestral/seed0"
GUIDED = "score/cosine/cfg-w1/ddim/seed0"
NETWORK = "eps/linear/unconditional/seed0"
BLOCKS = [
    {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ancestral", "ddim"]},
    {"objective": ["x0"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ode-adaptive"]},
    {"objective": ["score"], "schedule": ["cosine"], "guidance": ["cfg-w1"], "sampler": ["ddim"]},
]
SAMPLERS = configured()["samplers"] | {"ode-adaptive": {"method": "ode-adaptive"}}
GRID = config.check(configured() | {"grid": BLOCKS, "seeds": [0], "samplers": SAMPLERS})
DRAWN = [("table", ""), ("figures", "")]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole results folder with its tables and pictures; read only."""
    layout = Layout(tmp_path_factory.mktemp("audited"))
    for stage, name in [*GRID.jobs, *DRAWN]:
        execute(stage, *GRID.job(stage, name), layout)
    return layout.root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """The same by hard links: whoever changes a file puts another one in its place."""
    return Path(shutil.copytree(tree, tmp_path / "results", copy_function=os.link))


def replace(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


def refit(root: Path) -> None:
    """Write every hash anew, as a forger would: of outputs, of what was read, and of the records."""
    layout = Layout(root)
    for stage, name in [*GRID.jobs, *DRAWN]:
        place = layout.record(stage, name)
        record = json.loads(place.read_text())
        for output in record["outputs"]:
            record["outputs"][output] = records.sha256(place.parent / output)
            record["bytes"][output] = (place.parent / output).stat().st_size
        record["inputs"] |= Results(GRID, layout).inputs(stage, name)
        replace(place, json.dumps(record | {"digest": records.digest(record)}, indent=1) + "\n")


def findings(root: Path, seed: int = 0) -> list[spot_checks.Finding]:
    return list(spot_checks.check(Results(GRID, Layout(root)), seed))


def first(root: Path, seed: int = 0) -> spot_checks.Finding | None:
    """What is found first: enough to refuse a tree, and cheap."""
    return next(spot_checks.check(Results(GRID, Layout(root)), seed), None)


# ---- what is right ----------------------------------------------------------------------------------------


def test_a_true_tree_holds(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is found, and nothing is changed; the command reads the configuration from the tree's own table."""
    before = {path: (path.stat().st_ino, path.stat().st_size) for path in copy.rglob("*") if path.is_file()}
    monkeypatch.chdir(copy.parent)
    assert main(["verify", "results", "--seed", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("results: 23 of 24 images of each of 4 cells (--seed 1), all metrics and tables, in ")
    assert said[1] == "everything that was computed again came out; networks were not trained again"
    assert before == {path: (path.stat().st_ino, path.stat().st_size) for path in copy.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1, 3, 16])
def test_an_image_does_not_depend_on_its_batch(tree: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, in bfloat16 too: batches of other sizes and members draw the same images."""
    monkeypatch.setattr(spot_checks, "needed", lambda _: size)
    results = Results(GRID, Layout(tree))
    assert [*spot_checks.redrawn(results, CELL, size)] == [*spot_checks.redrawn(results, GUIDED, size)] == []


# ---- how many images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 10, 24, 40, 898, 2048, 10_000, 50_000])
def test_how_many_images_are_drawn_again(images: int) -> None:
    """The least number that sees one of 3 % with 95 %, by scipy's hypergeometric distribution."""
    n, other = spot_checks.needed(images), math.ceil(0.03 * images)
    assert stats.hypergeom.cdf(0, images, other, n) <= 0.05
    assert n == 1 or stats.hypergeom.cdf(0, images, other, n - 1) > 0.05


def test_tampered_images_are_seen_as_often_as_is_said() -> None:
    """2 000 draws of the indices as they are drawn, of N = 898 with 27 others."""
    n, other = spot_checks.needed(898), torch.arange(500, 527)
    seen = sum(bool(torch.isin(rng.permutation(898, "verify", seed, CELL)[:n], other).any()) for seed in range(2000))
    chance = 1 - stats.hypergeom.cdf(0, 898, 27, n)
    assert chance >= 0.95 and abs(seen / 2000 - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


# ---- what is not --------------------------------------------------------------------------------------------


def tensors(stage: str, name: str, change: Callable[[dict], dict | None]) -> Callable[[Path], None]:
    """Other tensors in a job's first file."""

    def tamper(root: Path) -> None:
        path = Layout(root).output(stage, name)
        found, about = records.read_tensors(path)
        found = {k: t.clone() for k, t in found.items()}
        found = change(found) or found
        path.unlink()
        records.write_tensors(path, found, about or None)

    return tamper


def record(stage: str, name: str, **values: object) -> Callable[[Path], None]:
    """Other values in a job's record, in its result where they stand there."""

    def tamper(root: Path) -> None:
        path = Layout(root).record(stage, name)
        found = json.loads(path.read_text())
        for key, value in values.items():
            into = found["result"] if key in found["result"] else found
            assert into[key] != value
            into[key] = value
        replace(path, json.dumps(found))

    return tamper


def line(stage: str, name: str, file: str, column: int, value: str) -> Callable[[Path], None]:
    """Another value in the last line of a CSV."""

    def tamper(root: Path) -> None:
        path = Layout(root).output(stage, name, file)
        *before, last = path.read_text().splitlines()
        cells = last.split(",")
        cells[column] = value
        replace(path, "\n".join([*before, ",".join(cells)]) + "\n")

    return tamper


def swapped(stage: str, *names: str) -> Callable[[Path], None]:
    """The first files of two jobs change places."""

    def tamper(root: Path) -> None:
        one, other = (Layout(root).output(stage, name) for name in names)
        middle = one.with_suffix(".middle")
        one.rename(middle)
        other.rename(one)
        middle.rename(other)

    return tamper


def darker(found: dict) -> None:
    """One grey level less in one pixel of every image: 3 % and more."""
    found["images"][:, 0, 4, 4] = (found["images"][:, 0, 4, 4].int() + 1).clamp(max=255).to(torch.uint8)


def real(found: dict) -> dict:
    """Training images instead of samples would have the best FID of all."""
    return found | {"images": found["images"].flip(0)}


def forged(name: str) -> Callable[[Path], None]:
    """A picture of the right kind and size, upside down."""

    def tamper(root: Path) -> None:
        path = root / "figures" / name
        with Image.open(path) as found:
            turned = found.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        path.unlink()
        turned.save(path)

    return tamper


def other_job(root: Path) -> None:
    """A sampler of more steps than its record says."""
    path = Layout(root).record("sample", CELL)
    found = json.loads(path.read_text())
    found["job"]["sampler"]["steps"] += 1
    replace(path, json.dumps(found))


SAMPLES = "samples.safetensors"
TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights of a network": (tensors("train", NETWORK, lambda t: {k: 1.01 * v for k, v in t.items()}), SAMPLES),
    "one bias of a network": (
        tensors("train", NETWORK, lambda t: {k: v + 0.1 * (k == list(t)[-1]) for k, v in t.items()}),
        SAMPLES,
    ),
    "weights of another network": (swapped("train", NETWORK, NETWORK.replace("eps", "x0")), SAMPLES),
    "parameters of a network": (record("train", NETWORK, parameters=7), "networks/" + NETWORK),
    "images that a network has seen": (record("train", NETWORK, images_seen=1), "networks/" + NETWORK),
    "a final loss": (record("train", NETWORK, final_loss=0.001), "networks/" + NETWORK),
    "one level of every image": (tensors("sample", CELL, darker), f"{CELL}/{SAMPLES}"),
    "images in another order": (tensors("sample", CELL, real), f"{CELL}/{SAMPLES}"),
    "fewer images": (tensors("sample", CELL, lambda t: {k: v[:20] for k, v in t.items()}), f"{CELL}/{SAMPLES}"),
    "images of another cell": (swapped("sample", CELL, OTHER), SAMPLES),
    "labels": (tensors("sample", GUIDED, lambda t: t | {"labels": t["labels"].roll(1)}), f"{GUIDED}/{SAMPLES}"),
    "no labels": (tensors("sample", GUIDED, lambda t: {"images": t["images"]}), f"{GUIDED}/{SAMPLES}"),
    "the number of evaluations": (record("sample", CELL, nfe=1), f"{CELL}/samples.json"),
    "a cell that is said to have diverged": (record("sample", CELL, status="diverged"), f"{CELL}/{SAMPLES}"),
    "another sampler": (other_job, f"{CELL}/samples.json"),
    "FID": (record("fidelity", CELL, fid=0.01), f"{CELL}/fidelity.json"),
    "FID of real images": (record("fidelity", "real", fid=9.0), "baselines/real/fidelity.json"),
    "bits/dim": (record("likelihood", NETWORK, bound_bits_per_dim=0.5), f"{NETWORK}/likelihood.json"),
    "bits/dim of one image": (line("likelihood", NETWORK, "images", 1, "0.5"), f"{NETWORK}/likelihood"),
    "real images": (
        tensors("data", "", lambda t: t | {"test_images": t["train_images"][: len(t["test_images"])].clone()}),
        "",
    ),
    "the feature extractor": (
        tensors("classifier", "", lambda t: t | {"scale": 2 * t["scale"]}),
        "fidelity.json",
    ),
    "a number of the table": (line("table", "", "table", 9, "0.0123"), "table.csv"),
    "a number of the tables' twin": (line("table", "", "differences", 3, "0.0123"), "differences.csv"),
    "the picture that compares cells": (forged("comparison.png"), "figures/comparison.png"),
    "the picture of samples": (forged("samples.png"), "figures/samples.png"),
    "the cells of the table": (record("table", "", cells=3), "table.json"),
}


@pytest.mark.parametrize(("tamper", "where"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_tampered_with_is_found(copy: Path, tamper: Callable[[Path], None], where: str) -> None:
    """Though all hashes fit, and each by the file that is wrong, or what was made of it."""
    tamper(copy)
    refit(copy)
    found = first(copy)
    assert found is not None and where in str(found.path), found


def test_hashes_that_do_not_fit_are_found_without_computing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file, a changed record and a missing one; each is named."""
    monkeypatch.setattr(spot_checks, "chain", None)
    layout = Layout(copy)
    tensors("sample", CELL, darker)(copy)
    record("fidelity", OTHER, fid=0.01)(copy)
    layout.record("likelihood", NETWORK).unlink()
    found = {str(f.path.relative_to(copy)): f.text for f in spot_checks.recorded(Results(GRID, layout), "sample", CELL)}
    assert list(found) == [f"cells/{CELL}/samples.json"] and "its SHA-256 is" in next(iter(found.values()))
    (edited,) = spot_checks.recorded(Results(GRID, layout), "fidelity", OTHER)
    assert "edited" in edited.text
    (missing,) = spot_checks.recorded(Results(GRID, layout), "likelihood", NETWORK)
    assert "missing" in missing.text


def test_one_tampered_image_is_named(copy: Path) -> None:
    """By cell and index, wherever chance looks at it."""

    def change(found: dict) -> None:
        found["images"][11] = 16 - found["images"][11]

    tensors("sample", CELL, change)(copy)
    refit(copy)
    looks = next(s for s in range(100) if 11 in rng.permutation(24, "verify", s, CELL)[: spot_checks.needed(24)])
    found = list(spot_checks.redrawn(Results(GRID, Layout(copy)), CELL, looks))
    assert f"1 of 23 images of {CELL} are not what its weights draw, by up to 16: 11" in str(found[0])
    assert STAGES["sample"].files["images"].format(name=CELL) in str(found[0].path)


# ---- other hardware ---------------------------------------------------------------------------------------


def rounded(self: Computed, function: Callable, x: torch.Tensor, *rest: object) -> torch.Tensor:
    """A network whose output is off by half a unit in the last place of bfloat16, 2⁻⁹, up or down."""
    out = RUN(self, function, x, *rest)
    return out + out * 2**-9 * torch.sin(1e4 * out)


RUN = Computed._run


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hardware than that which the records name."""
    monkeypatch.setattr(records, "hardware", lambda _: "another processor")


def test_rounding_passes_on_other_hardware_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that round otherwise, of convolutions and of networks: the whole tree holds; on the hardware that records
    name the same is refused."""
    monkeypatch.setattr(Computed, "_run", rounded)
    with torch.backends.mkldnn.flags(enabled=False):
        assert "not what its weights draw" in str(first(tree))
        monkeypatch.setattr(records, "hardware", lambda _: "another processor")
        assert [str(finding) for finding in findings(tree)] == []


def brighter(found: dict) -> None:
    found["images"] = (found["images"].int() + 1).clamp(max=16).to(torch.uint8)


def swapped_images(found: dict) -> None:
    """Every image in its neighbour's place."""
    found["images"] = found["images"].roll(1, 0)


NAMES = [
    "weights of another network",
    "images in another order",
    "images of another cell",
    "labels",
    "no labels",
    "FID",
]
NAMES += ["bits/dim", "real images", "the feature extractor", "a number of the table", "the picture of samples"]
GROSS = {name: TAMPERED[name] for name in NAMES} | {
    "a level in all pixels": (tensors("sample", CELL, brighter), f"{CELL}/{SAMPLES}"),
    "images in each other's place": (tensors("sample", CELL, swapped_images), f"{CELL}/{SAMPLES}"),
}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("tamper", "where"), GROSS.values(), ids=GROSS.keys())
def test_on_other_hardware_tampering_is_found_too(copy: Path, tamper: Callable[[Path], None], where: str) -> None:
    """What rounding does not explain."""
    test_what_was_tampered_with_is_found(copy, tamper, where)


@pytest.mark.parametrize("name", ["a level in all pixels", "images in each other's place"])
def test_on_the_same_hardware_it_is_found_as_well(copy: Path, name: str) -> None:
    test_what_was_tampered_with_is_found(copy, *GROSS[name])


def test_one_other_image_is_named_on_other_hardware(copy: Path, elsewhere: None) -> None:
    """Among 24, by its number; its neighbours, which are within rounding, are not."""

    def change(found: dict) -> None:
        found["images"][11] = found["images"][12]
        found["images"][5, 0, 0, 0] ^= 1

    tensors("sample", CELL, change)(copy)
    refit(copy)
    looks = next(s for s in range(100) if 11 in rng.permutation(24, "verify", s, CELL)[: spot_checks.needed(24)])
    found = list(spot_checks.redrawn(Results(GRID, Layout(copy)), CELL, looks))
    assert f"1 of 23 images of {CELL} are not what its weights draw" in str(found[0]) and ": 11 (made on" in str(
        found[0]
    )
    assert "more than rounding on another processor explains" in str(found[0])


@pytest.mark.usefixtures("elsewhere")
def test_a_shift_in_one_direction_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though each image by itself is within its bounds, as of 256 levels it would be."""
    monkeypatch.setattr(rounding, "MEAN", 1)
    tensors("sample", CELL, brighter)(copy)
    refit(copy)
    found = str(next(spot_checks.redrawn(Results(GRID, Layout(copy)), CELL, 0)))
    assert f"images of {CELL} are brighter by" in found and "grey levels on average" in found


def test_what_rounding_is(tmp_path: Path) -> None:
    """Images by size and share, all by their mean, metrics relatively, counts not at all; pictures by parts."""
    images = torch.randint(0, 255, (8, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    flips = images + (torch.arange(28) % 2).to(torch.uint8)  # half of the pixels by a level
    assert not rounding.unlike(images, flips, 255).any() and rounding.shift(flips, images, 1) == pytest.approx(0.5)
    assert rounding.shift(images, images, 1) == 0
    patch = images.clone()
    patch[3, :, :5, :5] = 255 - patch[3, :, :5, :5]
    assert rounding.unlike(images, patch, 255).tolist() == [i == 3 for i in range(8)]
    assert rounding.close(0.46, 0.461) and not rounding.close(0.46, 0.47)
    assert rounding.close(-1e-4, 2e-4) and not rounding.close(100, 101)
    for name, last in (("one", "1.0000"), ("rounded", "1.0004"), ("other", "1.2"), ("text", "1.0000,x")):
        (tmp_path / f"{name}.csv").write_text(f"image,nll\n0,{last}\n")
        Image.fromarray(patch[3 if name == "other" else 2, 0].numpy()).save(tmp_path / f"{name}.png")
    alike = {
        name: rounding.alike(tmp_path / "one.csv", tmp_path / f"{name}.csv") for name in ("rounded", "other", "text")
    }
    assert alike == {"rounded": True, "other": False, "text": False}
    assert rounding.alike(tmp_path / "one.png", tmp_path / "text.png")
    assert not rounding.alike(tmp_path / "one.png", tmp_path / "other.png")
