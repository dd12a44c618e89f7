"""Datasets: the right images in the right halves, and a message where the files are not the right ones."""

import os
import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from ddpm.datasets import dataset as data
from ddpm.datasets.digits import Digits
from ddpm.datasets.mnist import MNIST, MNIST_FILES
from ddpm.errors import UserError
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.pipeline.validity import valid
from ddpm.spaces import Pixels

torch.set_num_threads(1)

JOB = {"data": {"name": "digits", "seed": 0}}


def rows(images: torch.Tensor) -> list[bytes]:
    """Every image as bytes."""
    return [image.numpy().tobytes() for image in images]


# ---- digits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[data.Split, data.Split]:
    return Digits().load()


def test_digits_are_dealt_into_two_halves(digits: tuple[data.Split, data.Split]) -> None:
    """898 and 899 images that together are scikit-learn's 1 797, each exactly once, with their labels."""
    train, test = digits
    assert train.images.shape == (898, 1, 8, 8) and test.images.shape == (899, 1, 8, 8)
    assert train.images.dtype == test.images.dtype == torch.uint8
    assert train.labels.dtype == test.labels.dtype == torch.int64
    whole = load_digits()
    expected = sorted(
        (image.astype("uint8").tobytes(), int(label)) for image, label in zip(whole.images, whole.target, strict=True)
    )
    dealt = [pair for half in digits for pair in zip(rows(half.images), map(int, half.labels.tolist()), strict=True)]
    assert sorted(dealt) == expected


def test_digits_are_stratified(digits: tuple[data.Split, data.Split]) -> None:
    """Every label stands in both splits equally often, give or take one image."""
    counts = [half.labels.bincount(minlength=10) for half in digits]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert (counts[0] + counts[1]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_have_17_grey_levels(digits: tuple[data.Split, data.Split]) -> None:
    """0 … 16, all of them, and no other."""
    both = torch.cat([half.images for half in digits])
    assert both.unique().tolist() == list(range(17))
    assert Digits.space == {"method": "pixels", "levels": 17}


def test_the_seed_deals_the_digits(digits: tuple[data.Split, data.Split]) -> None:
    """The same seed gives the same halves in the same order, another seed other ones."""
    again, other = Digits(seed=0).load(), Digits(seed=1).load()
    assert torch.equal(digits[0].images, again[0].images) and torch.equal(digits[1].labels, again[1].labels)
    assert set(rows(other[0].images)) != set(rows(digits[0].images))
    common = len(set(rows(other[0].images)) & set(rows(digits[0].images)))
    assert 350 < common < 550  # two independent halves share about a quarter of all images


# ---- the stored dataset -----------------------------------------------------------------------------------


def test_preparing_stores_the_dataset(tmp_path: Path, digits: tuple[data.Split, data.Split]) -> None:
    """What is read back is what was loaded, with its record beside it."""
    layout = Layout(tmp_path)
    execute("data", JOB, "0" * 16, layout)
    found = data.read(layout.output("data"))
    assert torch.equal(found.train.images, digits[0].images) and torch.equal(found.test.images, digits[1].images)
    assert torch.equal(found.train.labels, digits[0].labels) and torch.equal(found.test.labels, digits[1].labels)
    assert (found.space, found.classes, found.shape) == (Pixels((1, 8, 8), 17), 10, (1, 8, 8))
    record = records.read_record(layout.record("data"))
    assert record["result"] == {"train": 898, "test": 899}
    assert valid(layout.record("data"), JOB, "0" * 16)


def test_preparing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """The stored file holds nothing of the run: eight times the same."""
    layouts = [Layout(tmp_path / str(i)) for i in range(8)]
    for layout in layouts:
        execute("data", JOB, "0" * 16, layout)
    assert len({layout.output("data").read_bytes() for layout in layouts}) == 1


@pytest.mark.parametrize("damage", ["missing", "empty", "torn header", "torn data", "text"])
def test_a_stored_dataset_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    """One message with the file and the cure."""
    layout = Layout(tmp_path)
    execute("data", JOB, "0" * 16, layout)
    content = layout.output("data").read_bytes()
    if damage == "missing":
        layout.output("data").unlink()
    else:
        size = {"empty": 0, "torn header": 20, "torn data": len(content) - 1, "text": 0}[damage]
        layout.output("data").write_bytes(content[:size] + (b"not tensors at all" if damage == "text" else b""))
    with pytest.raises(UserError) as caught:
        data.read(layout.output("data"))
    message = str(caught.value)
    assert str(layout.output("data")) in message and "delete it and run again" in message
    assert len(message.splitlines()) <= 3


# ---- MNIST ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> Path:
    """The folder that holds the real files."""
    root = os.environ.get("DDPM_DATA")
    if not root:
        reason = "DDPM_DATA is unset: it must name a folder that holds MNIST/raw"
        if os.environ.get("DDPM_REQUIRE_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(root).absolute() / "MNIST" / "raw"


@pytest.fixture
def copied(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of links to the real files, set as DDPM_DATA."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).symlink_to(mnist / name)
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    return raw


def refused() -> str:
    """The message that MNIST is refused with."""
    with pytest.raises(UserError) as caught:
        MNIST().load()
    return str(caught.value)


def test_mnist_is_torchvisions(mnist: Path) -> None:
    """60 000 and 10 000 images with their labels, 256 grey levels, in the files' own order."""
    train, test = MNIST().load()
    assert train.images.shape == (60000, 1, 28, 28) and test.images.shape == (10000, 1, 28, 28)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.labels.bincount().tolist() == counts
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    # The mean grey levels that everyone normalises with: 0.1307 and 0.1325.
    assert train.images.double().mean().item() / 255 == pytest.approx(0.130660, abs=1e-6)
    assert test.images.double().mean().item() / 255 == pytest.approx(0.132515, abs=1e-6)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    assert (MNIST.space, MNIST.classes) == ({"method": "pixels", "levels": 256}, 10)


def test_mnist_is_what_was_checked(copied: Path) -> None:
    """Not what an older torchvision has made of it, which it would read in their place, unchecked."""
    processed = copied.parent / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)), processed / name)
    train, test = MNIST().load()
    assert (len(train.images), len(test.labels)) == (60000, 10000)


def test_mnists_images_are_those_that_torchvision_reads(mnist: Path) -> None:
    for split, of in zip(MNIST().load(), (True, False), strict=True):
        theirs = torchvision.datasets.MNIST(mnist.parent.parent, train=of)
        assert torch.equal(split.images[:, 0], theirs.data) and torch.equal(split.labels, theirs.targets)


@pytest.mark.parametrize("name", MNIST_FILES)
def test_mnists_files_are_the_published_ones(mnist: Path, name: str) -> None:
    """The checksums in the code are those of the real files."""
    assert records.sha256(mnist / name) == MNIST_FILES[name]


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_torn_file_is_named(mnist: Path, copied: Path, name: str) -> None:
    """A file that ends too early: its path, its size and the cure."""
    content = (mnist / name).read_bytes()
    (copied / name).unlink()
    (copied / name).write_bytes(content[: len(content) // 2])
    message = refused()
    assert str(copied / name) in message and f"{len(content) // 2} bytes" in message
    assert "delete" in message and MNIST_FILES[name][:12] in message
    assert len(message.splitlines()) <= 3


def test_another_file_of_the_right_size_is_named(mnist: Path, copied: Path) -> None:
    """One changed byte is another file."""
    name = "t10k-images-idx3-ubyte"
    content = bytearray((mnist / name).read_bytes())
    content[1000] ^= 1
    (copied / name).unlink()
    (copied / name).write_bytes(content)
    message = refused()
    assert str(copied / name) in message and "delete" in message


def test_exchanged_files_are_named(mnist: Path, copied: Path) -> None:
    """The training labels in the place of the test labels."""
    (copied / "t10k-labels-idx1-ubyte").unlink()
    shutil.copy(mnist / "train-labels-idx1-ubyte", copied / "t10k-labels-idx1-ubyte")
    assert str(copied / "t10k-labels-idx1-ubyte") in refused()


def test_a_missing_file_is_named(copied: Path) -> None:
    """Three of four files: the fourth is named, and nothing is downloaded to a folder that was given."""
    (copied / "t10k-images-idx3-ubyte").unlink()
    message = refused()
    assert str(copied / "t10k-images-idx3-ubyte") in message and "missing" in message and "DDPM_DATA" in message


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_a_wrong_ddpm_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """A folder without the files, or none at all: the variable, its value and what it must hold."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DDPM_DATA", str(tmp_path / folder))
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", lambda *_, **__: pytest.fail("net"))
    message = refused()
    assert f"DDPM_DATA={tmp_path / folder}" in message and "MNIST/raw" in message
    assert "train-images-idx3-ubyte" in message
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "error",
    [URLError("no route"), RuntimeError("File not found or corrupted."), ConnectionResetError("reset"), TimeoutError()],
    ids=lambda e: type(e).__name__,
)
def test_offline_without_data_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No data, no network: the folder, the reason, and DDPM_DATA as the way out."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("DDPM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)
    message = refused()
    assert str(Path("data") / "MNIST" / "raw") in message and "could not be downloaded" in message
    assert "DDPM_DATA" in message and str(error) in message


def test_data_beside_the_project_is_used_without_downloading(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DDPM_DATA is unset, `data/` is read; complete files are not fetched again."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).symlink_to(mnist / name)
    monkeypatch.delenv("DDPM_DATA")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", lambda *_, **__: pytest.fail("net"))
    assert len(MNIST().load()[1].images) == 10000


def test_what_needs_labels_says_so() -> None:
    """The labels themselves where there are some; without, a message and not an error of None."""
    images, labels = torch.zeros(3, 2), torch.tensor([2, 0, 1])
    assert torch.equal(data.Split(images, labels).known, labels)
    with pytest.raises(UserError, match="these data have no labels"):
        _ = data.Split(images).known
