"""The main command on a folder of PNG files made of MNIST's test split: with labels and without, grey and in colour."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from project import copy_project, snakemake

CELL = [{"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}]
LABELLED = [{"objective": ["score"], "schedule": ["cosine"], "guidance": ["cfg-w1"], "sampler": ["ddim"]}]
CASES = {
    "labelled and grey": {
        "data": {"labels": True, "channels": 1, "test_share": 0.5},
        "grid": LABELLED,
    },
    "unlabelled and in colour": {
        "data": {"channels": 3, "test_share": 0.45},
        "fidelity": {"extractor": "identity"},
        "sampling": {"images": 210},
        "grid": CELL,
    },
}


def pictures(folder: Path, labelled: bool, coloured: bool) -> None:
    """500 of MNIST's test images, 28 × 28, in sub-folders by label or all together."""
    raw = Path(os.environ["DDPM_DATA"]) / "MNIST" / "raw"
    images = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    for i, (image, label) in enumerate(zip(images[:500], labels[:500], strict=True)):
        place = folder / f"digit {label}" if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        shown = np.stack([image, 255 - image, image // 2], axis=2) if coloured else image
        Image.fromarray(shown).save(place / f"{i:03}.png")


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_ones_own_images(tmp_path: Path, case: str) -> None:
    """Every row is there with its numbers, and a second run finds nothing to do."""
    if not os.environ.get("DDPM_DATA"):
        pytest.skip("DDPM_DATA names no folder with MNIST/raw")
    labelled, coloured = CASES[case]["data"].get("labels", False), CASES[case]["data"]["channels"] == 3
    folder = copy_project(tmp_path / "project")
    pictures(folder / "my images", labelled, coloured)
    overlay = CASES[case] | {"results": "results/mine"}
    overlay["data"] = overlay["data"] | {"name": "folder", "path": "my images", "size": 8}
    (folder / "mine.yaml").write_text(yaml.safe_dump(overlay))
    run = snakemake(folder, "results/mine/table.csv", "results/mine/figures/samples.png", overlay="mine.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    results = folder / "results/mine"
    table = pd.read_csv(results / "table.csv")
    expected = ["real data", "real data, classes by chance", "noise", "histogram"]
    assert list(table["objective"][: len(expected)]) == expected and len(table) == 5 + labelled
    assert table["fid"].notna().all() and table["nll_bits_per_dim"].iloc[-1:].notna().all() != labelled
    record = json.loads((results / "data/record.json").read_text())
    assert record["result"] == ({"train": 249, "test": 251} if labelled else {"train": 275, "test": 225})
    assert (results / "classifier").exists() == labelled
    size = json.loads(next(results.glob("networks/**/record.json")).read_text())["result"]
    assert size["space"]["shape"] == [3 if coloured else 1, 8, 8] and size["classes"] == 10 * labelled
    picture = np.asarray(Image.open(next(results.glob("cells/**/samples.png"))))
    grey = (picture[..., 0] == picture[..., 1]) & (picture[..., 0] == picture[..., 2])
    assert grey.all() != coloured
    again = snakemake(folder, "-n", "results/mine/table.csv", overlay="mine.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr
