"""Data larger than memory: images stay in their file, and batches are the same as if they did not."""

from pathlib import Path

import pytest
import torch

from ddpm import networks
from ddpm.datasets import dataset as data
from ddpm.pipeline.records import write_tensors
from ddpm.spaces import Pixels, Points
from ddpm.stages import train as training
from ddpm.stages.sample import variance


def test_large_data_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split that the device does not keep gives the same batches, encoded from a file that is mapped into memory."""
    images = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path, cpu = tmp_path / "images.safetensors", torch.device("cpu")
    about = {"space": Pixels((3, 8, 8)).spec, "classes": 0}
    write_tensors(path, {"train_images": images, "test_images": images[:3].clone()}, about)
    dataset, job = data.read(path), {"name": "a/b/c/seed0", "training": {"batch": 8}}
    network = networks.build({"method": "mlp"}, (3, 8, 8), 1, 0)
    before = [training.Batches(dataset, job, cpu, network)(step) for step in range(3)]
    monkeypatch.setattr(training, "RESIDENT", 0)
    large = training.Batches(dataset, job, cpu, network)
    assert large.stored.dtype == torch.uint8
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    ends = [[int(end, 16) for end in one.split("-")] for one in mapped]
    assert any(low <= large.stored.data_ptr() < high for low, high in ends)
    for step, (x0, eps, u, _) in enumerate(before):
        again = large(step)
        assert torch.equal(again[0], x0) and torch.equal(again[1], eps) and torch.equal(again[2], u)
        assert torch.equal(x0, dataset.space.encode(images)[large._indices(step)])


class Indexed:
    """Stored images that note where the indices come from that they are asked for by."""

    def __init__(self, images: torch.Tensor):
        self.images, self.asked = images, set[str]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.asked.add(index.device.type)
        return self.images[index]


@pytest.mark.parametrize("resident, where", [(2**30, "meta"), (0, "cpu")])
def test_images_are_indexed_where_they_are(resident: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, here one that computes shapes alone: a batch is there whole, and its images were chosen there if all
    of them are."""
    monkeypatch.setattr(training, "RESIDENT", resident)
    split = data.Split(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2)
    job = {"name": "a/b/c/seed0", "training": {"batch": 8, "label_dropout": 0.1}}
    network = networks.build({"method": "mlp"}, (1, 4, 4), 1, 2).to("meta")
    batches = training.Batches(data.Data(split, split, Pixels((1, 4, 4)), 2), job, torch.device("meta"), network)
    batches.stored = Indexed(batches.stored)  # type: ignore[assignment]  # as far as it is used
    x0, eps, _, condition = batches(0)
    assert batches.stored.asked == {where} == {batches.stored.images.device.type}  # type: ignore[attr-defined]
    assert x0.shape == eps.shape == (8, 1, 4, 4)
    assert {x0.device.type, eps.device.type, condition.labels.device.type} == {"meta"}


def test_the_deviation_is_that_of_all_images() -> None:
    """In parts, and where the mean is far larger: the root of the mean variance over coordinates."""
    points = (torch.randn(2500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 5]) + 50).float()
    split = data.Split(points)
    dataset = data.Data(split, split, Points((3,), (0.0,) * 3, (1.0,) * 3), 0)
    assert dataset.deviation == pytest.approx(float(points.double().var(0).mean().sqrt()), rel=1e-9)
    assert dataset.variance == pytest.approx(variance(points), rel=1e-9)
