"""Fashion-MNIST, CIFAR-10, CelebA and LSUN, read from small files in their layout, with hashes of their own."""

import gzip
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ddpm.datasets.celeba import CelebA
from ddpm.datasets.cifar import CIFAR10
from ddpm.datasets.dataset import Dataset
from ddpm.datasets.lsun import LSUN
from ddpm.datasets.mnist import FashionMNIST
from ddpm.errors import UserError

DRAW = np.random.default_rng(0)
COUNTS = {"train": 7, "test": 4}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def fashion(root: Path, patch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four gzipped files, and what they hold: split → images and labels."""
    folder, found, resources = root / "FashionMNIST" / "raw", {}, []
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        images = DRAW.integers(0, 256, (COUNTS[split], 1, 28, 28), dtype=np.uint8)
        labels = DRAW.integers(0, 10, COUNTS[split], dtype=np.uint8)
        for kind, content in (
            ("images-idx3", bytes(16) + images.tobytes()),
            ("labels-idx1", bytes(8) + labels.tobytes()),
        ):
            path = folder / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content))
            resources.append((path.name, md5(path)))
        found[split] = images, labels
    patch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    return found


def cifar(root: Path, patch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two training batches, a test batch and the names, and what they hold."""
    folder, found, listed = root / "cifar-10-batches-py", {}, {}
    folder.mkdir()
    for split, names in (("train", ("data_batch_1", "data_batch_2")), ("test", ("test_batch",))):
        parts = []
        for name in names:
            images, labels = DRAW.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), DRAW.integers(0, 10, 4)
            (folder / name).write_bytes(pickle.dumps({"data": images.reshape(4, -1), "labels": labels.tolist()}))
            parts.append((images, labels))
        found[split] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
        listed[split] = [[name, md5(folder / name)] for name in names]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    for attribute, value in (("train_list", listed["train"]), ("test_list", listed["test"]), ("meta", meta)):
        patch.setattr(torchvision.datasets.CIFAR10, attribute, value)
    return found


def celeba(root: Path, patch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, None]]:
    """Faces of which the square that is cropped is 64 × 64 tiles of 2 × 2 pixels, as PNG under JPEG's name; the last of
    them is of the validation split."""
    folder, found, lines = root / "celeba", {}, []
    (folder / "img_align_celeba").mkdir(parents=True)
    for split, part in (("train", 0), ("test", 2), ("none", 1)):
        tiles = DRAW.integers(0, 256, (COUNTS.get(split, 1), 8, 8, 3), dtype=np.uint8)
        for tile in tiles:
            face = DRAW.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            face[57:185, 25:153] = tile.repeat(16, 0).repeat(16, 1)
            name = f"{len(lines):06}.jpg"
            Image.fromarray(face).save(folder / "img_align_celeba" / name, "PNG")
            lines.append(f"{name} {part}")
        found[split] = tiles.transpose(0, 3, 1, 2), None
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    listed = [("id", md5(folder / "list_eval_partition.txt"), "list_eval_partition.txt")]
    patch.setattr(torchvision.datasets.CelebA, "file_list", listed)
    return found


CASES: dict[str, tuple[type[Dataset], Callable, str]] = {
    "fashion-mnist": (FashionMNIST, fashion, "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
    "cifar10": (CIFAR10, cifar, "cifar-10-batches-py/data_batch_2"),
    "celeba": (CelebA, celeba, "celeba/list_eval_partition.txt"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A dataset, what its files hold, and one of them."""
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    dataset, write, file = CASES[request.param]
    return dataset(), write(tmp_path, monkeypatch), tmp_path / file


def refused(dataset: Dataset) -> str:
    with pytest.raises(UserError) as caught:
        dataset.load()
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_images_and_labels_are_the_files(case: tuple) -> None:
    """Every image and label in its split, in the files' order; of a face, the middle of every tile."""
    dataset, held, _ = case
    for split, name in zip(dataset.load(), ("train", "test"), strict=True):
        images, labels = held[name]
        found = split.images
        assert found.dtype == torch.uint8 and found.shape == (len(images), *dataset.shape)
        if labels is None:
            assert split.labels is None and dataset.classes == 0
            close = (found[:, :, 4::8, 4::8].int() - torch.from_numpy(images).int()).abs()
            assert close.max() <= 1
        else:
            assert torch.equal(found, torch.from_numpy(images)) and split.labels.dtype == torch.int64
            assert split.labels.tolist() == labels.tolist() and dataset.classes == 10


def test_a_wrong_file_is_named(case: tuple) -> None:
    """A changed byte; a missing file, which is not downloaded to a folder of one's own."""
    dataset, _, file = case
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = refused(dataset)
    assert str(file) in message and "MD5" in message and "delete" in message
    file.unlink()
    message = refused(dataset)
    assert str(file) in message and "missing" in message and "DDPM_DATA" in message


def test_offline_says_what_to_do(case: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data and no network, or not the package that a download takes: DDPM_DATA is the way out."""
    dataset = case[0]

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    for module in (torchvision.datasets.mnist, torchvision.datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
    monkeypatch.setattr(torchvision.datasets.celeba, "download_file_from_google_drive", fail)
    monkeypatch.delenv("DDPM_DATA")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "could not be downloaded (no route)" in (message := refused(dataset)) and "DDPM_DATA" in message


class Database:
    """What we ask of the package lmdb, over a mapping."""

    def __init__(self, held: dict[bytes, bytes]):
        self.held = held
        self.get = held.get

    def open(self, path: str, **options: object) -> "Database":
        assert options["readonly"] and not options["lock"] and Path(path, "data.mdb").exists()
        return self

    def begin(self, write: bool) -> "Database":
        assert not write
        return self

    cursor = __enter__ = lambda self: self

    def __exit__(self, *_: object) -> None:
        pass

    def iternext(self, keys: bool, values: bool) -> Iterator[bytes]:
        assert keys and not values
        return iter(sorted(self.held))


def test_lsun_is_read_from_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image once, some of them held out, whatever its shape; what is missing, or damaged, is said."""
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    dataset = LSUN(category="cat", size=8, test=3)
    assert "cat_train_lmdb/data.mdb: missing; unpack cat_train_lmdb.zip" in refused(dataset)
    (tmp_path / "cat_train_lmdb").mkdir()
    (tmp_path / "cat_train_lmdb/data.mdb").touch()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "pip install lmdb" in refused(dataset)
    held = {}
    for level in range(10):
        Image.new("RGB", (8 + level, 8), (level, 100, 200)).save(file := BytesIO(), "PNG")
        held[f"key{level}".encode()] = file.getvalue()
    monkeypatch.setitem(sys.modules, "lmdb", Database(held))
    train, test = dataset.load()
    assert train.images.shape == (7, 3, 8, 8) and len(test.images) == 3 and test.labels is None
    levels = [split.images[:, 0, 0, 0].tolist() for split in (train, test)]
    assert sorted(levels[0] + levels[1]) == list(range(10)) and (train.images[:, 1:, 3, 3].unique().tolist()) == [
        100,
        200,
    ]
    assert "data.test: 10" in refused(LSUN(category="cat", size=8, test=10))
    held[b"key4"] = b"no image"
    assert "cat_train_lmdb: key4: cannot be read (cannot identify image file" in refused(dataset)


def test_a_missing_face_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is there, an image is not."""
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    celeba(tmp_path, monkeypatch)
    (tmp_path / "celeba/img_align_celeba/000003.jpg").unlink()
    assert "000003.jpg: missing, and 0 more; unpack img_align_celeba.zip" in refused(CelebA())
