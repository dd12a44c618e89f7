"""What a network is told beside the noise level: batches of it, the null, and networks that take no labels."""

import torch
from oracles import randn
from project import ROOT

from ddpm import networks
from ddpm.condition import NOTHING, LowResolution
from ddpm.pipeline import config


def test_every_field_goes_with_its_images() -> None:
    """Indexing, joining and choosing, of labels and of an image alike; what is not there stays away."""
    image, labels = randn(0, 3, 1, 2, 2), torch.tensor([4, 5, 6])
    of = LowResolution(labels, image)
    index = torch.tensor([2, 0])
    assert torch.equal(of[index].labels, labels[[2, 0]]) and torch.equal(of[index].image, image[[2, 0]])
    two = of.join(of[index])
    assert two.labels.tolist() == [4, 5, 6, 6, 4] and torch.equal(two.image, torch.cat([image, image[[2, 0]]]))
    chosen = torch.tensor([True, False, True])
    mixed = of.where(chosen, LowResolution(labels + 10, -image))
    assert mixed.labels.tolist() == [4, 15, 6]
    assert torch.equal(mixed.image, torch.stack([image[0], -image[1], image[2]]))
    assert of.to("meta").labels.device.type == of.to("meta").image.device.type == "meta"
    alone = LowResolution(image=image)
    assert alone[index].labels is None and torch.equal(alone.join(alone).image, torch.cat([image, image]))
    for nothing in (NOTHING[index], NOTHING.to("cpu"), NOTHING.join(NOTHING), NOTHING.where(chosen, NOTHING)):
        assert nothing.labels is None


def test_the_null_belongs_to_the_network() -> None:
    """The label after the last, for every image, and nothing else of the condition changed."""
    for classes in (2, 5):
        network, image = networks.build({"method": "mlp"}, (2,), 1, classes), randn(1, 3, 1, 2, 2)
        null = network.null(LowResolution(torch.tensor([1, 0, 1]), image))
        assert null.labels.tolist() == [classes] * 3 and null.labels.dtype == torch.int64 and null.image is image
        assert network.null(NOTHING).labels is None


def test_a_network_without_labels_is_left_out_where_they_guide(tmp_path, monkeypatch) -> None:
    """Its cells of classifier-free guidance are not run, with the reason; the others are."""
    monkeypatch.chdir(tmp_path)
    source = "from ddpm.networks.mlp import MLP\n\n\nclass Deaf(MLP):\n    method = 'deaf'\n    labels = False\n"
    (tmp_path / "deaf.py").write_text(source)
    (tmp_path / "own.yaml").write_text(
        "methods: [deaf.py]\nnetworks: {deaf: {method: deaf}}\n"
        "grid:\n  - {network: [unet, deaf], objective: [eps], schedule: [linear], guidance: [none, cfg-w1], "
        "sampler: [ddim]}\n"
    )
    grid = config.check(config.read(ROOT / "config.yaml", tmp_path / "own.yaml"))
    left_out = {cell.name: cell.reason for cell in grid.cells if cell.reason}
    (name,) = left_out
    assert "deaf" in name and "cfg" in name and "trained with labels" in left_out[name]
