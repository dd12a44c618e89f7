"""A folder of images of one's own: what is read of every kind of file, how it is split, what makes it read again."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ddpm.datasets.folder import Folder, pixels
from ddpm.errors import UserError
from ddpm.pipeline import config, folders, machine
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.running import run_stage

ROOT = Path(__file__).parent.parent


def grey(level: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """One grey level, width × height."""
    return Image.new("L", size, level)


def numbered(folder: Path, count: int, first: int = 0) -> None:
    """PNG files 000.png, 001.png, …, each of a grey level of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        grey(first + i).save(folder / f"{i:03}.png")


def deep_png(path: Path) -> None:
    """A PNG of three channels of 16 bits, 8 × 8."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(48) for _ in range(8)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# ---- one file ---------------------------------------------------------------------------------------------


def test_a_picture_of_the_size_stays_as_it_is(tmp_path: Path) -> None:
    """Every pixel of a grey and of a coloured PNG; grey in three channels is three times the same."""
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "colour.png")
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(pixels(tmp_path / "colour.png", 8, 3), values.transpose(2, 0, 1))
    assert np.array_equal(pixels(tmp_path / "grey.png", 8, 1), values[None, ..., 0])
    assert np.array_equal(pixels(tmp_path / "grey.png", 8, 3), np.repeat(values[None, ..., 0], 3, 0))
    luma = values @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(tmp_path / "colour.png", 8, 1)[0] - luma).max() <= 0.51


def test_the_middle_is_cropped_and_averaged(tmp_path: Path) -> None:
    """Of 32 × 16 pixels the 16 × 16 in the middle; a chess board of single pixels becomes its mean, not its aliases."""
    wide = np.zeros((16, 32), dtype=np.uint8)
    wide[:, 8:24] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (pixels(tmp_path / "wide.png", 8, 1) == 200).all()
    Image.fromarray(wide.T.copy()).save(tmp_path / "tall.png")
    assert (pixels(tmp_path / "tall.png", 8, 1) == 200).all()
    board = (np.indices((32, 32)).sum(0) % 2 * 200).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert np.abs(pixels(tmp_path / "board.png", 8, 1).astype(int) - 100).max() <= 2
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 64, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")  # the mean of eight columns
    assert np.abs(pixels(tmp_path / "ramp.png", 8, 1)[0, 4, 1:-1] - ramp[0].reshape(8, 8).mean(1)[1:-1]).max() <= 1


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    """EXIF's orientation 6: what is stored as the left column is the top row."""
    stored = np.zeros((8, 8), dtype=np.uint8)
    stored[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    found = pixels(tmp_path / "turned.png", 8, 1)[0]
    assert (found[0] == 255).all() and not found[1:].any()


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    """Opacities 0, 51 and 255 of black, as alpha and in a palette; CMYK and black and white become RGB."""
    for alpha, expected in ((0, 255), (51, 204), (255, 0)):
        Image.new("RGBA", (8, 8), (0, 0, 0, alpha)).save(tmp_path / "a.png")
        assert (pixels(tmp_path / "a.png", 8, 3) == expected).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 90, 90, 90])
    palette.save(tmp_path / "p.png")
    assert (pixels(tmp_path / "p.png", 8, 1) == 90).all()
    palette.save(tmp_path / "p.png", transparency=1)
    assert (pixels(tmp_path / "p.png", 8, 1) == 255).all()
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "c.tif")
    assert (pixels(tmp_path / "c.tif", 8, 3) == np.array([0, 255, 255])[:, None, None]).all()
    Image.new("1", (8, 8), 1).save(tmp_path / "one.png")
    assert (pixels(tmp_path / "one.png", 8, 1) == 255).all()


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "text.png": (lambda path: path.write_text("no image"), "cannot be read (cannot identify image file"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "cannot be read (cannot identify image file"),
    "torn.png": (truncated, "cannot be read (image file is truncated"),
    "small.png": (lambda path: grey(0, (7, 30)).save(path), "has 7 × 30 pixels, fewer than data.size"),
    "deep.png": (lambda path: Image.new("I;16", (8, 8)).save(path), "has more than 8 bits per channel"),
    "deeper.png": (deep_png, "has more than 8 bits per channel"),
    "float.tif": (lambda path: Image.new("F", (8, 8)).save(path), "has more than 8 bits per channel"),
    "film.gif": (
        lambda path: grey(0).save(path, save_all=True, append_images=[grey(90), grey(255)]),
        "has 3 frames or pages",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_says_why(tmp_path: Path, name: str) -> None:
    """Damaged, too small, of more bits, animated."""
    write, said = BAD[name]
    write(tmp_path / name)
    with pytest.raises(ValueError) as caught:
        pixels(tmp_path / name, 8, 3)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "raised", [struct.error("unpack requires a buffer"), TypeError("an integer is required"), zlib.error("x")]
)
def test_whatever_pillow_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """Malformed EXIF makes it raise much."""
    grey(3).save(tmp_path / "odd.png")

    def broken(image: Image.Image) -> None:
        raise raised

    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    with pytest.raises(ValueError, match=r"cannot be read \("):
        pixels(tmp_path / "odd.png", 8, 3)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    """One message, a line for each of the first ten, and how many there are."""
    numbered(tmp_path, 5)
    for name, (write, _) in BAD.items():
        write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        Folder(path=str(tmp_path), size=8).load()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("data: 8 of 13 images cannot be used")
    assert [line.split(": ")[0] for line in lines[1:]] == sorted(str(tmp_path / name) for name in BAD)
    for i in range(4):
        (tmp_path / f"worse{i}.png").write_text("no image")
    with pytest.raises(UserError, match=r"(?s)12 of 17 images.*\nand 2 more$"):
        Folder(path=str(tmp_path), size=8).load()


# ---- the folder -------------------------------------------------------------------------------------------


def test_without_labels_all_sub_folders_count(tmp_path: Path) -> None:
    """Every image once, in one of the splits, in the order of the paths; hidden and other files are left alone."""
    numbered(tmp_path, 20)
    numbered(tmp_path / "more" / "still", 10, first=20)
    numbered(tmp_path / ".hidden", 3, first=100)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "._000.png").write_text("of another system")
    (tmp_path / "round").symlink_to(tmp_path)
    train, test = Folder(path=str(tmp_path), size=8, channels=1, test_share=0.3).load()
    assert train.labels is None and test.labels is None and len(test.images) == 9
    levels = [split.images[:, 0, 0, 0].tolist() for split in (train, test)]
    assert sorted(levels[0] + levels[1]) == list(range(30)) and all(level == sorted(level) for level in levels)
    other = Folder(path=str(tmp_path), size=8, channels=1, test_share=0.3, seed=1).load()
    assert other[1].images[:, 0, 0, 0].tolist() != levels[1]
    assert torch.equal(Folder(path=str(tmp_path), size=8, channels=1, test_share=0.3).load()[1].images, test.images)


def test_sub_folders_are_classes_split_in_proportion(tmp_path: Path) -> None:
    """20, 10 and 2 images: a fifth of each class is for the test, one at least; numbers follow the names."""
    for name, count, first in (("b", 10, 20), ("a", 20, 0), ("c", 2, 30)):
        numbered(tmp_path / name / "inner", count, first)
    made = Folder(path=str(tmp_path), size=8, channels=1, labels=True)
    train, test = made.load()
    assert (made.classes, made.names) == (3, ["a", "b", "c"])
    assert test.known.bincount().tolist() == [4, 2, 1] and train.known.bincount().tolist() == [16, 8, 1]
    assert folders.sizes(str(tmp_path), True, 0.2) == (25, 7)
    assert folders.sizes(str(tmp_path), True, 0.99) == (3, 29)  # one at least of each class is for training
    for split in (train, test):
        level = split.images[:, 0, 0, 0].long()
        assert torch.equal(split.known, (level >= 20).long() + (level >= 30).long())


def checked(path: Path, **data: object) -> list[str]:
    """What the configuration of such data, and this machine for it, are told."""
    given = {"name": "folder", "path": str(path), "size": 8, "channels": 1} | data
    fidelity = {"extractor": "classifier" if data.get("labels") else "identity"}
    labelled = {"guidance": ["none"], "objective": ["eps"], "schedule": ["linear"], "sampler": ["ddim"]}
    read = config.merge(config.read(ROOT / "config.yaml"), {"fidelity": fidelity, "grid": [labelled]})
    read |= {"data": given, "sampling": {"images": 70, "batch": 64}, "likelihood": read["likelihood"] | {"images": 10}}
    try:
        config.check(read, *machine.checks(cluster=True))
    except UserError as e:
        return str(e).splitlines()
    return []


def test_a_wrong_folder_is_said_before_the_first_job(tmp_path: Path) -> None:
    """Missing, a file, empty, of one image; labelled: images outside of classes, classes of one or no image."""
    wrong = {"labels": True, "path": str(tmp_path / "some")}
    assert checked(tmp_path / "none") == [
        f"data.path: {str(tmp_path / 'none')!r} does not exist; it must be a folder of images"
    ]
    numbered(tmp_path / "some", 1)
    assert checked(tmp_path / "some")[0].endswith("holds one image; it takes two, one for each split")
    assert "is a file" in checked(tmp_path / "some" / "000.png")[0]
    (tmp_path / "some" / "empty").mkdir()
    assert "holds no image" in checked(tmp_path / "some" / "empty")[0]
    numbered(tmp_path / "some" / "lone", 1)
    numbered(tmp_path / "some" / "pair", 2)
    found = checked(tmp_path / "some", labels=True)
    assert len(found) == 3 and "1 images outside of its sub-folders, 000.png first" in found[0]
    assert found[1].endswith("some/empty' holds no image")
    assert found[2].endswith("some/lone' holds one image; it takes two, one for each split")
    with pytest.raises(UserError, match="outside of its sub-folders"):
        Folder(path=wrong["path"], size=8, labels=True).load()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing without a word."""
    numbered(tmp_path / "open", 3)
    numbered(tmp_path / "closed", 3)
    original = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="closed: cannot be read"):
        folders.images(tmp_path)


def test_too_few_images_are_said_before_the_first_job(tmp_path: Path) -> None:
    """Fewer in a split than are asked for, or than features; parameters that are missing or wrong."""
    numbered(tmp_path, 80)
    assert checked(tmp_path) == [
        "sampling.images: 70; the row of real data takes as many from the train split of 'folder': "
        "it must be at most 64",
        "fidelity.extractor: 'identity' has 64 features; FID needs more images than that, "
        "but sampling.images is 70 and the test split of 'folder' holds 16: take an extractor of at most 15",
    ]
    numbered(tmp_path / "more", 80, 80)
    assert checked(tmp_path, test_share=0.5) == []
    assert checked(tmp_path, size=None) == ["data.size: the key is missing"]
    assert checked(tmp_path, channels=2, test_share=1.0)[0].startswith("data.channels: 2; it must be one of 1, 3")


# ---- what makes it read again -----------------------------------------------------------------------------


def grid_of_mine() -> Grid:
    read = config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")
    read |= {"data": {"name": "folder", "path": "mine", "size": 8, "channels": 1, "labels": True}}
    return config.check(read)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Callable[[], list[str]]]:
    """The data's job done, in a folder of its own; and what a plan says of it then."""
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path / "mine" / "a", 20)
    numbered(tmp_path / "mine" / "b", 20, 100)
    grid = grid_of_mine()
    results = Results(grid)
    execute("data", *grid.job("data"), results.layout)
    return tmp_path, lambda: [str(reason) for reason in Results(grid).reasons("data")]


def test_a_folder_is_read_again_if_its_content_changes_and_only_then(
    prepared: tuple[Path, Callable[[], list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Touched, moved and put back, with other files beside: nothing. A pixel, a name, one more or less: read again.
    Nothing is hashed twice."""
    folder, reasons = prepared
    mine, changed = folder / "mine", ["made from other images than lies there now"]
    hashed: list[Path] = []
    original = folders.digest
    monkeypatch.setattr(folders, "digest", lambda path: hashed.append(path) or original(path))
    os.utime(mine / "a/001.png")
    (mine / "notes.txt").write_text("mine")
    assert reasons() == []
    old = (mine / "a/001.png").stat()
    content = (mine / "a/001.png").read_bytes()
    (mine / "a/001.png").write_bytes(grey_bytes(99))
    assert len(grey_bytes(99)) == len(content)
    os.utime(mine / "a/001.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert reasons() == changed
    (mine / "a/001.png").write_bytes(content)
    assert reasons() == []
    (mine / "a/001.png").rename(mine / "a/x.png")
    assert reasons() == changed
    (mine / "a/x.png").rename(mine / "b/000000.png")
    assert reasons() == changed
    (mine / "b/000000.png").rename(mine / "a/001.png")
    grey(7).save(mine / "b/new.png")
    assert reasons() == changed
    (mine / "b/new.png").unlink()
    assert reasons() == []
    # Later than the clock's resolution, the hash is remembered.
    monkeypatch.setattr("ddpm.pipeline.results.time.time_ns", lambda: 2**62)
    assert reasons() == []
    hashed.clear()
    assert reasons() == [] == reasons() and not hashed
    # In its place, of its size, with its time: ctime tells, which nobody sets.
    state = (mine / "a/002.png").stat()
    (mine / "a/002.png").write_bytes(grey_bytes(99))
    os.utime(mine / "a/002.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (mine / "a/002.png").stat().st_size == state.st_size
    assert reasons() == changed and hashed
    (mine / "b/001.png").unlink()
    assert reasons() == changed
    (mine / "b/001.png").write_bytes(grey_bytes(101))
    (mine / "a/002.png").write_bytes(grey_bytes(2))
    assert reasons() == []
    mine.rename(folder / "elsewhere")
    assert reasons() == []  # what was made of it is there
    job, code = grid_of_mine().job("data")
    record = Results(grid_of_mine()).layout.record("data")
    before = record.read_bytes()
    run_stage("data", job, code, grid_of_mine().results, "cpu")  # and neither a job of the command reads it
    assert record.read_bytes() == before


def grey_bytes(level: int) -> bytes:
    """One grey level as PNG."""
    from io import BytesIO

    grey(level).save(file := BytesIO(), "PNG")
    return file.getvalue()


def test_later_jobs_do_not_know_where_the_images_lie() -> None:
    """Another place of the same images leaves the network, whose input is their hash, as it is."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests/tiny.yaml")
    grids = [
        config.check(read | {"data": {"name": "folder", "path": path, "size": 8, "labels": True}})
        for path in ("here", "there")
    ]
    name = next(iter(grids[0].networks))
    assert grids[0].job("data") != grids[1].job("data")
    for stage in ("train", "classifier"):
        one, two = (grid.job(stage, name if stage == "train" else "") for grid in grids)
        assert one == two and one[0]["data"]["size"] == 8
