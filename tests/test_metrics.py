"""What metrics, extractors and baselines declare, and everything that follows from it."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import DIGITS, PLANE, randn
from project import forget

from ddpm.baselines import Baseline
from ddpm.datasets.dataset import Data, Split
from ddpm.metrics import extractors
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.networks.classifier import Classifier
from ddpm.pipeline import checks, config, measures, records, schema, source
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.registry import known
from ddpm.pipeline.running import run_stage
from ddpm.pipeline.stages import AGGREGATES
from ddpm.tables.columns import OURS, Columns

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
NEEDS = {"classifier": "labels"}


# ---- what the source says is what the classes are ---------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "read"),
    [(Metric, measures.metrics), (extractors.Extractor, measures.extractors), (Baseline, measures.baselines)],
)
def test_planning_reads_what_the_classes_are(base: type, read) -> None:
    """Every class by its name, with every attribute that planning, tables and figures ask for."""
    # Other tests may have loaded methods of users' files.
    classes, declared = {c.method: c for c in base.all() if c.__module__.startswith("ddpm.")}, read()
    assert declared.keys() == classes.keys()
    for name, attributes in declared.items():
        for key in (
            "title",
            "direction",
            "wants",
            "distance",
            "topline",
            "shown",
            "details",
            "counted",
            "loads",
            "real",
        ):
            assert attributes.get(key) == getattr(classes[name], key, None), (name, key)


def test_what_metrics_declare() -> None:
    """A direction, a place, needs that data may meet; distances come first."""
    for name, declared in measures.metrics().items():
        assert declared["direction"] in "↓↑" and declared["title"], name
        assert declared["shown"] in ("table.md", "table.csv", "record"), name
        assert set(declared["wants"]) <= {"images", "points", "discrete", "labels", "classifier"}, name
    directions = [declared["direction"] for declared in measures.metrics().values()]
    assert directions == sorted(directions, key="↓↑".index)


def test_docs_list_the_metrics() -> None:
    """The table of docs/table.md is that of the classes."""
    text = (ROOT / "docs/table.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([↓↑]) \| (.*?) ?\| (.+) \|$", text, re.MULTILINE)
    expected = []
    for name, declared in OURS.metrics.items():
        needs = ", ".join(NEEDS.get(need, need) for need in declared["wants"])
        expected.append((name, declared["direction"], needs, declared["title"]))
    assert rows == expected


def test_the_schema_names_the_extractors() -> None:
    fidelity = schema.editor()["properties"]["fidelity"]["properties"]
    assert fidelity["extractor"]["enum"] == list(measures.extractors())
    assert fidelity["metrics"]["anyOf"][1]["items"]["enum"] == list(known("metric"))


def test_the_columns_follow_from_the_metrics() -> None:
    """Distances before the bits/dim, the others after; a topline has four columns more, and a spread; each has its
    details beside it."""
    place = OURS.all.index
    assert len(set(OURS.all)) == len(OURS.all)
    for detail, name in OURS.details.items():
        assert 0 < place(detail) - place(name) <= 3 and detail not in OURS.read
    for name in OURS.metrics:
        better = measures.metrics()[name]["direction"]
        assert (place(name) < place("nll_bits_per_dim")) == (better == "↓"), name
    for name in OURS.toplined:
        assert {
            f"{name}{end}" for end in ("_std", "_over_topline", "_topline", "_topline_low", "_topline_high")
        } <= set(OURS.all)
    assert "fid_train_binarized" not in OURS.all
    assert "fid_train" in OURS.all and "fid_train" not in OURS.read


METRIC = '''
from dataclasses import dataclass

from ddpm.metrics.metric import Metric


@dataclass(frozen=True)
class Brightness(Metric):
    """The mean of the stored values."""

    method = "brightness"
    title = "Brightness"
    direction = "↑"

    def compute(self, evaluator, samples):
        return {self.method: float(samples.images.double().mean())}
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for the package where its source is read, with links to its files."""
    folder = tmp_path / "package" / "ddpm"
    for path in sorted((ROOT / "ddpm").rglob("*.py")):
        copy = folder / path.relative_to(ROOT / "ddpm")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    monkeypatch.setattr(source, "ROOT", folder)
    forget()
    yield folder
    monkeypatch.undo()
    forget()


def add(package: Path, place: str, text: str) -> None:
    """A module of the package's folder, for those who read its source and for those who import it."""
    path = package / place
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def test_a_metric_is_one_class(package: Path) -> None:
    """In a file of its own: it is planned and measured, and its code counts; the others stay as they are."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    before = {job: config.check(read).job(*job)[1] for job in [("fidelity", "noise"), ("table", ""), ("data", "")]}
    add(package, "metrics/brightness.py", METRIC)
    forget()
    grid = config.check(read)
    assert "brightness" in grid.metrics and "brightness" in Columns().read
    assert {job for job, code in before.items() if grid.job(*job)[1] != code} == {("fidelity", "noise")}
    samples = Samples(torch.full((3, 1, 8, 8), 4, dtype=torch.uint8))
    assert Metric.make({"method": "brightness"}).compute(None, samples) == {"brightness": 4.0}


# ---- extractors -------------------------------------------------------------------------------------------


def data_of(space, images: torch.Tensor) -> Data:
    return Data(Split(images), Split(images), space, 0)


def test_the_identity_has_one_feature_per_coordinate(tmp_path: Path) -> None:
    """Of images 0 … 255, of points themselves; no classifier is opened."""
    nowhere = tmp_path / "none"
    images, points = torch.randint(17, (9, 1, 8, 8)).to(torch.uint8), randn(0, 9, 2).float()
    spec = {"extractor": "identity", "weights": ""}
    found = Evaluator(data_of(DIGITS, images), spec, nowhere).features(images)
    assert torch.equal(found, DIGITS.to_images(images).flatten(1).double())
    assert found.shape[1] == measures.features({"fidelity": {"extractor": "identity"}}, (1, 8, 8))
    on_plane = Evaluator(data_of(PLANE, points), spec, nowhere)
    assert torch.equal(on_plane.features(points), points.double()) and on_plane.extractor.hash == "identity"


def test_samples_go_through_the_extractor_once(tmp_path: Path) -> None:
    """However many metrics ask for their features; other samples go through again, and so do binarized ones."""
    counted = Evaluator(data_of(DIGITS, torch.zeros(3, 1, 8, 8)), {"extractor": "identity"}, None)
    calls, real = [], type(counted).features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "features", lambda *of: calls.append(of) or real(*of))
        counted.__dict__["extractor"] = extractors.Identity()
        for samples in (Samples(torch.ones(5, 1, 8, 8)), Samples(torch.zeros(5, 1, 8, 8))):
            found = [counted.sample_features(samples, binarized) for binarized in (False, True, False, True)]
            assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
            found.append(counted.sample_features(samples))
            assert torch.equal(found[0], found[4]) and torch.equal(found[0], real(counted, samples.images))
    assert len(calls) == 4


@pytest.mark.parametrize(("shape", "side"), [((1, 8, 8), 8), ((3, 8, 6), [8, 6]), ((1, 6, 8), [6, 8]), ((2,), 0)])
def test_the_classifiers_file_says_the_images_size(tmp_path: Path, shape: tuple[int, ...], side: object) -> None:
    """Height and width where they differ, one number where they do not, 0 for points; and what is read is as big."""
    network = Classifier(shape, 5, 4, 7).eval()
    path = tmp_path / "weights.safetensors"
    tensors = network.state_dict() | {"scale": torch.tensor(2.0), "side": extractors.side(shape)}
    records.write_tensors(path, tensors)
    assert extractors.side(shape).tolist() == side
    extractor = extractors.TrainedClassifier(str(path))
    images = torch.randint(256, (6, *shape)).to(torch.uint8) if side else torch.randn(6, *shape)
    assert extractor.network.shape == shape
    torch.testing.assert_close(2 * extractor(images), network.features(extractors.centred(images)).double())
    assert torch.equal(extractor.predict(images), network(extractors.centred(images)).argmax(1))


# ---- data without labels, and images that are not square --------------------------------------------------

DATASET = '''
from dataclasses import dataclass

import torch

from ddpm import rng
from ddpm.datasets.dataset import Dataset, Split


@dataclass(frozen=True)
class Unlabelled(Dataset):
    """Images of 8 × 6 pixels with five grey levels, brighter to the right."""

    method = "unlabelled"
    space = {"method": "pixels", "levels": 5}
    classes = 0
    shape = (1, 8, 6)
    train = 90
    test = 80

    def load(self):
        return self.split("train", 90), self.split("test", 80)

    def split(self, name, count):
        u = rng.uniform(rng.key("bands", name), torch.arange(count), 0, (1, 8, 6))
        return Split((4.99 * u * torch.linspace(0.4, 1, 6)).floor().to(torch.uint8))


@dataclass(frozen=True)
class Oblong(Unlabelled):
    """The same, every second image upside down in brightness."""

    method = "oblong"
    classes = 2

    def split(self, name, count):
        images, labels = super().split(name, count).images, torch.arange(count) % 2
        return Split(torch.where(labels.reshape(-1, 1, 1, 1) == 1, 4 - images, images), labels)
'''
SMALL = {
    "network": {"width": 8},
    "training": {"steps": 10, "batch": 16, "warmup": 2},
    "sampling": {"images": 60, "batch": 60},
    "classifier": {"features": 16, "epochs": 2},
    "guide": {"steps": 5, "batch": 16},
    "likelihood": {"images": 10, "times": 3},
    "ode_likelihood": {"images": 2},
}


def overlay(name: str, **more: object) -> dict:
    """The tiny configuration with other data, on one schedule."""
    read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
    block = {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["ddim"]}
    read = config.merge(read, SMALL | {"data": {"name": name, "seed": None}, "grid": [block]})
    return config.merge(read, more)


def everything(read: dict, folder: Path) -> pd.DataFrame:
    """Every job of a configuration one after the other, tables and figures too; the table."""
    grid = config.check(read)
    for stage, name in [*grid.jobs, *((name, "") for name in AGGREGATES)]:
        run_stage(stage, *grid.job(stage, name), str(folder), "cpu")
    return pd.read_csv(folder / "table.csv").set_index("objective")


def test_data_without_labels(package: Path, tmp_path: Path) -> None:
    """From the data to the table: no classifier, no metric of labels, no histogram of classes; both toplines are of one
    class, and so the same."""
    add(package, "datasets/bands.py", DATASET)
    folder = tmp_path / "results"
    table = everything(overlay("unlabelled", fidelity={"extractor": "identity"}), folder)
    layout = Layout(folder)
    assert not layout.output("classifier").exists() and not layout.record("classifier").exists()
    assert list(table.index) == ["real data", "real data, classes by chance", "noise", "histogram", "eps"]
    cell = table.loc["eps"]
    assert cell.status in ("ok", "degenerate") and cell.topline == "by chance"
    assert cell.fid > 0 and cell.fid_over_topline == pytest.approx(cell.fid / cell.fid_topline, rel=1e-3)
    assert table.fid.iloc[0] == table.fid.iloc[1] > 0
    assert table.label_accuracy.isna().all() and table.diversity.isna().all()
    assert table.nll_bits_per_dim.loc[["noise", "histogram", "eps"]].notna().all()
    stored, about = records.read_tensors(layout.output("data"))
    assert about["classes"] == 0 and stored.keys() == {"train_images", "test_images"}
    assert "labels" not in records.read_tensors(layout.output("sample", "eps/linear/none/ddim/seed0"))[0]
    inputs = records.read_record(layout.record("fidelity", "eps/linear/none/ddim/seed0"))["inputs"]
    assert inputs.keys() == {"data", "samples"}


def test_images_that_are_not_square(package: Path, tmp_path: Path) -> None:
    """8 × 6 pixels, labelled: classifier, guide, guidance and every metric."""
    add(package, "datasets/bands.py", DATASET)
    folder = tmp_path / "results"
    guided = {"guidances": {"guided": {"method": "classifier", "weight": 1.0}}}
    read = overlay("oblong", **guided)
    read["grid"] = [read["grid"][0] | {"guidance": ["none", "cfg-w1", "guided"]}]
    table = everything(read, folder)
    assert records.read_tensors(Layout(folder).output("classifier"))[0]["side"].tolist() == [8, 6]
    rows = table.loc["eps"].set_index("guidance")
    assert rows.fid.notna().all() and rows.diversity.notna().all()
    assert rows.label_accuracy.notna().tolist() == [False, True, True]
    assert records.read_tensors(Layout(folder).output("sample", "eps/linear/guided/ddim/seed0"))[0]["images"].shape == (
        60,
        1,
        8,
        6,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {},
            "fidelity.extractor: 'classifier' learns labels, and data.name 'unlabelled' has none: it must be inception "
            "or dinov2 or identity",
        ),
        (
            {"fidelity": {"extractor": "identity"}, "guidances": {"none": {"method": "cfg", "weight": 1.0}}},
            "guidances.none.method: 'cfg' takes labels, and data.name 'unlabelled' has none: it must be none",
        ),
        (
            {"fidelity": {"extractor": "identity"}, "guidances": {"none": {"method": "classifier", "weight": 1.0}}},
            "guidances.none.method: 'classifier' takes labels, and data.name 'unlabelled' has none: it must be none",
        ),
    ],
)
def test_what_wants_labels_is_refused(package: Path, change: dict, message: str) -> None:
    """Once, before anything runs."""
    add(package, "datasets/bands.py", DATASET)
    with pytest.raises(checks.ConfigError) as e:
        config.check(overlay("unlabelled", **change))
    assert e.value.messages == [message]


@pytest.mark.parametrize(("classes", "said"), [(0, "labels"), (3, "no labels")])
def test_labels_and_classes_go_together(package: Path, tmp_path: Path, classes: int, said: str) -> None:
    """A dataset that names classes has labels, and one that names none has none."""
    source = DATASET.replace("classes = 2", "classes = 0") if not classes else DATASET.replace("= 0\n", "= 3\n", 1)
    add(package, "datasets/bands.py", source)
    name = "unlabelled" if classes else "oblong"
    job, code = config.check(overlay(name, fidelity={"extractor": "identity"})).job("data")
    with pytest.raises(
        config.UserError, match=f"data.name: '{name}' names {classes} classes, .* train split has {said}$"
    ):
        run_stage("data", job, code, str(tmp_path / "results"), "cpu")
