"""Features of real images in their files: the same numbers, computed once, and never those of something else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from measuring import FEATURES, grid, prepared  # noqa: F401 - a fixture

from ddpm.errors import UserError
from ddpm.metrics.evaluator import Evaluator
from ddpm.metrics.store import Store
from ddpm.pipeline import records
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.run import execute
from ddpm.stages import fidelity

torch.set_num_threads(1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images went through the extractor, call by call."""
    found: list[int] = []
    real = Evaluator.features
    monkeypatch.setattr(Evaluator, "features", lambda self, *of: found.append(len(of[0])) or real(self, *of))
    fidelity.evaluator.cache_clear()
    yield found
    fidelity.evaluator.cache_clear()


def measured(layout: Layout, name: str = "noise", **overlay: object) -> dict:
    """The numbers of a baseline, in a process that has seen nothing before."""
    fidelity.evaluator.cache_clear()
    execute("fidelity", *grid(**overlay).job("fidelity", name), layout)
    return records.read_record(layout.record("fidelity", name))["result"]


def files(layout: Layout) -> list[Path]:
    return sorted((layout.output("data").parent / "features").iterdir())


@pytest.fixture
def layout(prepared: Layout, tmp_path: Path) -> Layout:  # noqa: F811
    """A copy of the prepared folder without what another test has kept."""
    import shutil

    shutil.copytree(prepared.root, tmp_path / "results", ignore=shutil.ignore_patterns("features"))
    return Layout(tmp_path / "results")


def test_real_images_are_extracted_once(layout: Layout, calls: list[int]) -> None:
    """Both splits, plain and binarized, for the first job; none for the second, which finds the same numbers."""
    first = measured(layout)
    assert sorted(calls) == [60, 60, 898, 898, 899, 899] and len(files(layout)) == 4
    before = [path.read_bytes() for path in files(layout)]
    calls.clear()
    assert measured(layout) == first and sorted(calls) == [60, 60]
    assert [path.read_bytes() for path in files(layout)] == before
    stored = records.read_tensors(files(layout)[0])[0]["features"]
    assert stored.dtype == torch.float64 and stored.shape[1] == FEATURES


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit":
        content[-5] ^= 1
    path.write_bytes({"bit": content, "truncated": content[:-9], "empty": b"", "text": b"features"}[how])


@pytest.mark.parametrize("how", ["bit", "truncated", "empty", "text"])
def test_what_is_corrupt_is_made_again(layout: Layout, calls: list[int], how: str) -> None:
    """To the same bytes and the same numbers."""
    first, before = measured(layout), [path.read_bytes() for path in files(layout)]
    for path in files(layout):
        damage(path, how)
    calls.clear()
    assert measured(layout) == first and sorted(calls) == [60, 60, 898, 898, 899, 899]
    assert [path.read_bytes() for path in files(layout)] == before


def weights(layout: Layout) -> None:
    job, code = grid(classifier={"seed": 1}).job("classifier")
    execute("classifier", job, code, layout)


def images(layout: Layout) -> None:
    execute("data", *grid(data={"seed": 1}).job("data"), layout)


@pytest.mark.parametrize("change", [weights, images], ids=["other weights", "other images"])
def test_what_they_depend_on_is_in_their_key(layout: Layout, calls: list[int], change: Callable) -> None:
    """New weights or data under the old names: the numbers are those of a folder that never saw the old ones."""
    first = measured(layout)
    change(layout)
    calls.clear()
    second = measured(layout)
    assert sorted(calls) == [60, 60, 898, 898, 899, 899] and second["fid"] != first["fid"]
    for path in files(layout):
        path.unlink()
    assert measured(layout) == second


def test_another_extractor_code_device_or_version_is_another_key(tmp_path: Path) -> None:
    """Each part of the key by itself, whatever the file's name says: a file that was renamed is not taken."""
    a = Store(tmp_path, "{code: 1}")
    key = {"split": "test", "hash": "abc", "binarized": False}
    one, two = torch.ones(3, 2).double(), torch.zeros(3, 2).double()
    assert torch.equal(a.features(key, lambda: one), one) and torch.equal(a.features(key, lambda: two), one)
    for other in ({"split": "train"}, {"hash": "abd"}, {"binarized": True}):
        assert torch.equal(a.features(key | other, lambda: two), two)
    assert torch.equal(Store(tmp_path, "{code: 2}").features(key, lambda: two), two)
    paths = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(paths) == 5
    for path in paths:
        path.write_bytes(next(content for other, content in paths.items() if other != path))
    three = torch.full((3, 2), 3.0).double()
    assert torch.equal(a.features(key, lambda: three), three)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """An extractor that fails leaves no file for the next one to find."""

    def fail() -> torch.Tensor:
        raise UserError("no weights")

    with pytest.raises(UserError):
        Store(tmp_path, "").features({}, fail)
    assert not list(tmp_path.iterdir())


def test_the_key_names_everything(layout: Layout) -> None:
    """Data, code, packages and processor; extractor, weights, split, threshold, device and threads."""
    measured(layout)
    keys = [records.read_tensors(path)[1]["key"] for path in files(layout)]
    assert {(k["split"], k["binarized"]) for k in keys} == {(s, b) for s in ("train", "test") for b in (True, False)}
    assert keys[0].keys() == {"split", "binarized", "extractor", "hash", "device", "threads", "about"}
    assert {"data", "code", "versions", "hardware"} == fidelity.json.loads(keys[0]["about"]).keys()
