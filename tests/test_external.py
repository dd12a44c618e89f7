"""Samples made elsewhere: read from folders and files, measured as a cell's are, and refused where they are none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tabled import GRID, finished, untrained  # noqa: F401 - fixtures
from test_folder import deep_png

from ddpm import cli
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stages import AGGREGATES, STAGES, external
from ddpm.stages.sample import draw_labels
from ddpm.tables.markdown import reading
from ddpm.tables.rows import collect

torch.set_num_threads(1)
COUNT = GRID.config["sampling"]["images"]


@pytest.fixture
def layout(finished: Layout, tmp_path: Path) -> Layout:  # noqa: F811
    """The finished grid, to which a row may be added."""
    shutil.copytree(finished.root, tmp_path / "results")
    return Layout(tmp_path / "results")


@pytest.fixture(scope="module")
def digits(finished: Layout) -> data.Data:  # noqa: F811
    return data.read(finished.output("data"))


def grey(digits: data.Data, count: int = COUNT) -> np.ndarray:
    """Test images of 0 … 255: (N, 8, 8)."""
    return digits.space.to_images(digits.test.images[:count]).numpy()[:, 0]


def evaluate(layout: Layout, source: Path, name: str = "mine") -> dict:
    """What `ddpm evaluate` runs; the numbers."""
    job = STAGES["external"].job_of(GRID, name, str(source))
    execute("external", job, "", layout)
    execute("fidelity", *GRID.job("fidelity", f"external/{name}"), layout)
    return records.read_record(layout.record("fidelity", f"external/{name}"))["result"]


def written(folder: Path, kind: str, digits: data.Data) -> Path:
    """The first test images in one of the three forms."""
    if kind == "folder":
        (folder / "images").mkdir()
        for i, image in enumerate(grey(digits)):
            Image.fromarray(image).save(folder / "images" / f"{i:03d}.png")
        return folder / "images"
    path = folder / f"samples.{kind}"
    if kind == "npz":
        np.savez(path, grey(digits)[..., None], digits.test.labels[:COUNT].numpy())
    else:
        records.write_tensors(path, {"images": digits.test.images[:COUNT]})
    return path


@pytest.mark.parametrize("kind", ["folder", "npz", "safetensors"])
def test_every_form_gives_the_same_numbers(layout: Layout, digits: data.Data, tmp_path: Path, kind: str) -> None:
    """Those of the images themselves, level by level, by the protocol of the cells; labels where there are any."""
    found = evaluate(layout, written(tmp_path, kind, digits))
    stored = records.read_tensors(layout.output("external", "mine"))[0]
    assert torch.equal(stored["images"], digits.test.images[:COUNT]) and ("labels" in stored) == (kind == "npz")
    cell = records.read_record(layout.record("fidelity", next(iter(GRID.runs))))["result"]
    assert found.keys() - {"label_accuracy"} == cell.keys() - {"label_accuracy"}
    assert (found["protocol"], found["extractor"], found["images"]) == (
        cell["protocol"],
        cell["extractor"],
        cell["images"],
    )
    again = evaluate(layout, written(tmp_path, "safetensors", digits), "again")
    assert again["fid"] == found["fid"] and again["kid"] == found["kid"] and again["recall"] == found["recall"]


def test_they_are_a_row_of_the_table(layout: Layout, digits: data.Data, tmp_path: Path) -> None:
    """The last one, under its name; cells stay as they are and are counted as before; the table knows of it."""
    before = collect(Results(GRID, layout))
    known = Results(GRID, layout).inputs("table")
    found = evaluate(layout, written(tmp_path, "npz", digits))
    results = Results(GRID, layout)
    table = collect(results)
    assert results.inputs("table") != known and not {job for job in results.todo if job[0] not in AGGREGATES}
    row = table.iloc[-1]
    assert list(table["objective"][:-1]) == list(before["objective"]) and row["objective"] == "mine"
    assert (row["status"], row["samples"], row["protocol"], row["fid"]) == ("ok", COUNT, 1, found["fid"])
    assert row[["schedule", "sampler", "nfe", "nll_bits_per_dim"]].isna().all()
    assert row["fid_over_topline"] == pytest.approx(row["fid"] / row["fid_topline"])
    text = reading(table, GRID)
    assert text.split("\n")[0] == reading(before, GRID).split("\n")[0] and "| mine" in text


@pytest.mark.parametrize("kind", ["stratified", "by chance"])
def test_the_topline_is_that_of_their_classes(layout: Layout, digits: data.Data, tmp_path: Path, kind: str) -> None:
    """And the interval: labels in the training split's proportions leave chance within classes alone."""
    labels = draw_labels(digits, "a", COUNT)
    if kind == "by chance":
        labels[labels == 0] = 1
    np.savez(tmp_path / "labelled.npz", grey(digits)[..., None], labels.numpy())
    found = evaluate(layout, tmp_path / "labelled.npz")
    row = collect(Results(GRID, layout)).iloc[-1]
    baseline = {"stratified": "real", "by chance": "real-by-chance"}[kind]
    of = records.read_record(layout.record("fidelity", baseline))["result"]["fid"]
    assert row["topline"] == kind and row["fid_over_topline"] == pytest.approx(row["fid"] / of, rel=1e-12)
    record = records.read_record(layout.record("external", "mine"))
    assert record["result"]["stratified"] is (kind == "stratified")
    evaluate(layout, written(tmp_path, "folder", digits), "unlabelled")  # the same images
    other = records.read_record(layout.record("fidelity", "external/unlabelled"))["result"]
    assert found["fid"] == other["fid"] and (found["fid_high"] == other["fid_high"]) is (kind == "by chance")


def test_a_row_of_other_settings_says_so(layout: Layout, digits: data.Data, tmp_path: Path) -> None:
    """Where the extractor was trained again, the numbers are not shown beside new ones."""
    evaluate(layout, written(tmp_path, "npz", digits))
    path = layout.record("fidelity", "external/mine")
    record = json.loads(path.read_text())
    record["inputs"]["extractor"] = "0" * 64
    records.write_json(path, record | {"digest": records.digest(record)})
    row = collect(Results(GRID, layout)).iloc[-1]
    assert row["status"] == "stale" and np.isnan(row["fid"]) and "run `ddpm evaluate` again" in row["reason"]


def test_more_than_n_are_drawn_at_random(layout: Layout, digits: data.Data, tmp_path: Path) -> None:
    """Exactly N, not the first ones, the same every time."""
    np.savez(tmp_path / "many.npz", grey(digits, 200)[..., None])
    evaluate(layout, tmp_path / "many.npz", "a")
    first = layout.output("external", "a").read_bytes()
    stored = records.read_tensors(layout.output("external", "a"))[0]["images"]
    assert len(stored) == COUNT and not torch.equal(stored, digits.test.images[:COUNT])
    evaluate(layout, tmp_path / "many.npz", "a")
    assert layout.output("external", "a").read_bytes() == first
    assert records.read_record(layout.record("external", "a"))["result"]["of"] == 200


def test_constant_samples_are_marked(layout: Layout, digits: data.Data, tmp_path: Path) -> None:
    """One image again and again is measured, and its row is `degenerate`, with the reason."""
    np.savez(tmp_path / "one.npz", np.repeat(grey(digits, 1)[..., None], COUNT, 0))
    evaluate(layout, tmp_path / "one.npz", "one")
    row = collect(Results(GRID, layout)).iloc[-1]
    assert row["status"] == "degenerate" and "of the data's variance" in row["reason"]


IMAGES = np.zeros((COUNT, 8, 8, 1), np.uint8)
BAD = {
    "few": (IMAGES[:-1], None, rf"{COUNT - 1} samples; sampling.images is {COUNT}"),
    "none": (IMAGES[:0], None, rf"0 samples; sampling.images is {COUNT}"),
    "none, with labels": (IMAGES[:0], np.zeros(0, int), rf"0 samples; sampling.images is {COUNT}"),
    "float": (IMAGES.astype(np.float32), None, "samples of type float32; it must be uint8"),
    "int": (IMAGES.astype(np.int64), None, "samples of type int64; it must be uint8"),
    "colour": (np.repeat(IMAGES, 3, 3), None, r"shape \(3, 8, 8\); those of the data are \(1, 8, 8\)"),
    "size": (IMAGES[:, :4], None, r"shape \(1, 4, 8\); those of the data are \(1, 8, 8\)"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), None, r"shape \(8, 1, 8\); those of the data"),
    "flat": (IMAGES.reshape(COUNT, 64), None, r"shape \(64,\); those of the data"),
    "labels": (IMAGES, np.full(COUNT, 10), "10 … 10; they must be 24 whole numbers of 0 … 9"),
    "few labels": (IMAGES, np.zeros(3, int), "they must be 24 whole numbers"),
    "objects": (np.array([{}] * COUNT), None, "is no valid .npz of arrays"),
}


def test_an_array_by_the_name_of_an_archive(layout: Layout, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(UserError, match=r"one\.npz: is a single array, an \.npy; the samples must be arr_0"):
        evaluate(layout, tmp_path / "one.npz")


def test_images_of_16_bits_are_refused(layout: Layout, tmp_path: Path) -> None:
    """Which Pillow would read as 8, without a word."""
    (tmp_path / "deep").mkdir()
    deep_png(tmp_path / "deep" / "a.png")
    with pytest.raises(UserError, match=r"a\.png: an image of mode RGB with more than 8 bits per channel; it must be"):
        evaluate(layout, tmp_path / "deep")


@pytest.mark.parametrize("kind", BAD)
def test_samples_of_another_kind_are_refused(layout: Layout, tmp_path: Path, kind: str) -> None:
    """The file, what was found and what would be right; nothing is measured."""
    images, labels, said = BAD[kind]
    path = tmp_path / "bad.npz"
    np.savez(path, *([images] if labels is None else [images, labels]))
    with pytest.raises(UserError, match=said) as caught:
        evaluate(layout, path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not layout.output("external", "mine").exists() and Results(GRID, layout).external == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", "truncated", "corrupt", "other"])
def test_archives_that_cannot_be_read_are_refused(layout: Layout, tmp_path: Path, content: bytes | str) -> None:
    """Empty, truncated, corrupt, no archive, or without arr_0."""
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **({"images": IMAGES} if content == "other" else {"arr_0": np.arange(9000)}))
    whole = path.read_bytes()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content != "other":
        path.write_bytes(whole[:-300] if content == "truncated" else whole[:2000] + b"\xff" * 64 + whole[2064:])
    with pytest.raises(UserError, match="must be arr_0" if content == "other" else "is no valid .npz of arrays"):
        evaluate(layout, path)


def test_folders_are_of_one_kind(layout: Layout, digits: data.Data, tmp_path: Path) -> None:
    """An image of another size or mode, one that is truncated, and none at all: the file is named."""
    folder = written(tmp_path, "folder", digits)
    whole = (folder / "003.png").read_bytes()
    cases = {
        "size": lambda p: Image.new("L", (9, 8)).save(p),
        "mode": lambda p: Image.new("RGBA", (8, 8)).save(p),
        "truncated": lambda p: p.write_bytes(whole[:50]),
        "text": lambda p: p.write_text("no image"),
    }
    says = {"size": "8 × 9 × 1; the images before it are 8 × 8 × 1", "mode": "an image of mode RGBA"}
    for kind, spoil in cases.items():
        spoil(folder / "003.png")
        with pytest.raises(UserError, match=says.get(kind, "is no valid image")) as caught:
            evaluate(layout, folder)
        assert "003.png" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        evaluate(layout, tmp_path / "empty")


def test_levels_beyond_the_datas_are_refused(layout: Layout, tmp_path: Path) -> None:
    """A file of ours holds levels, not grey values."""
    records.write_tensors(tmp_path / "a.safetensors", {"images": torch.full((COUNT, 1, 8, 8), 17, dtype=torch.uint8)})
    with pytest.raises(UserError, match=r"values up to 17; the data have levels 0 … 16"):
        evaluate(layout, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: does not exist; it must be a folder of images, an .npz or a .safetensors"),
        (["config.yaml"], "config.yaml: is something else; it must be a folder"),
        (["a.npz", "--as", "a/b"], "'a/b' cannot name a row"),
    ],
)
def test_the_command_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    """Before anything runs."""
    shutil.copy(Path(__file__).parent.parent / "config.yaml", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"ddpm: {said}") and not (tmp_path / "results").exists()


def test_samples_are_read_before_a_classifier_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A folder without an image is refused after seconds; and of the data alone there is no page."""
    shutil.copy(Path(__file__).parent.parent / "config.yaml", tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "empty"]) == 2 and "ddpm: empty: holds no image" in capsys.readouterr().err
    assert (tmp_path / "results/data").exists() and not (tmp_path / "results/classifier").exists()
    assert cli.main(["page"]) == 2
    assert "results/cells: none is finished (classifier: missing" in capsys.readouterr().err


def test_names_of_cells_are_no_names_of_theirs() -> None:
    """An objective may be called `external`."""
    assert external("external/mine") == "mine"
    assert external("external/linear/none/ddim/seed0") == external("noise") == external("eps/mine") == ""
