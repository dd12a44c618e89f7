"""The documents' tables: every number as it was printed, ours beside it, and what may not be compared."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import ROOT

from ddpm.errors import UserError
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.results import PUBLISHED
from ddpm.tables import declared, latex, published, selectors
from ddpm.tables.columns import OURS
from ddpm.tables.printed import Printed, printed, read, read_all

# What the documents print, by table and row: the first and last numbers of each column, and every odd one.
SPOT = {
    "nll": {"Glow (Kingma & Dhariwal 2018)": ["3.35", "3.81"], "DDPM (Ho et al. 2020)": ["3.70", "3.77"]},
    "ddim-steps": {
        "η = 0, S = 10": ["13.36", "17.33"],
        "σ̂, S = 1000": ["3.17", "3.26"],
        "η = 1, S = 50": ["8.01", "18.48"],
    },
    "ho-cifar10": {"DDPM, L_simple": ["3.17", "9.46 ± 0.11", "≤ 3.75", "3.72"], "NCSNv2": ["31.75", "", "", ""]},
    "ho-ablation": {"µ̃, L, learned diagonal Σ": ["23.69", "7.28 ± 0.10"], "‖µ̃ − µ̃_θ‖²": ["", ""]},
    "lsun": {"DDIM (η = 0), S = 10": ["16.95", ""], "DDPM (η = 1), S = 100": ["6.81", "8.27"]},
    "poster": {"ϵ prediction": ["15.75", "14.1", "10.13", "13.7", "1.21"]},
    "imagenet256": {"Latent diffusion (Rombach et al. 2022)": ["3.60", "271"]},
}


AXES = ("objective", "schedule", "guidance", "sampler", "network")
# Names that no document has: rows are chosen by what they stand for.
NAMED = {
    "objectives": {"noise": {"target": "eps"}, "sigma": {"target": "eps", "variance": "learned", "vlb_weight": 0.001}},
    "samplers": {"chain": {"method": "ancestral", "steps": 50}, "long": {"method": "ancestral", "steps": 900}},
}


def grid(**block: object) -> Grid:
    """Two objectives with one sampler, but for what is changed."""
    default = {"objective": ["noise", "sigma"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["chain"]}
    return config.check(config.merge(config.read(ROOT / "config.yaml"), NAMED) | {"grid": [default | block]})


def ours(of: Grid | None = None, **changes: object) -> published.Ours:
    """A table of real data and the rows of a grid, of which the last diverged."""
    of = of or grid()
    rows: list[dict] = [{"objective": "real data", "fid": 0.2, "inception_score": 10.0, "status": "ok"}]
    measured = {"fid": 0.4, "fid_std": 0.03, "fid_low": 0.31, "fid_high": 0.52, "nll_bits_per_dim": 1.5, "status": "ok"}
    measured |= {"inception_score": 8.0, "inception_score_parts_std": 0.25, "seeds": 2, "samples": 898}
    for cell in of.cells:
        steps = of.axis("sampler", cell.row[3])["steps"]
        rows.append(dict(zip(AXES, cell.row, strict=True)) | measured | {"steps": steps, "parameters": 430000})
    rows[-1] = {axis: rows[-1][axis] for axis in AXES} | {"status": "diverged"}
    table = pd.DataFrame([{"dataset": "digits"} | row for row in rows], columns=OURS.all)
    table["fid_over_topline"] = table["fid"] / 0.2
    return published.Ours(table.assign(**changes), of)


def document(stem: str, of: published.Ours) -> published.Document:
    return published.document(of, stem, read_all()[stem])


@pytest.mark.parametrize("stem", sorted(path.stem for path in PUBLISHED.glob("*.yaml")))
def test_numbers_are_those_that_were_printed(stem: str) -> None:
    """Each row's, in the order of items and data sets."""
    nothing = published.Ours(ours().table, grid(guidance=["cfg-w0"], objective=["score"]))  # no row of ours
    found = document(stem, nothing)
    frame = found.frame.drop(columns="steps", errors="ignore")
    for label, expected in SPOT[stem].items():
        (row,) = frame[frame[""] == label].itertuples(index=False)
        assert list(row)[1:] == expected
    assert found.here == 0 and "None of these rows is in this grid" in found.caption


def test_ours_stand_beside_them() -> None:
    """By parameters, under names of this grid: the mean with spread and interval, the multiple of its own topline, the
    number of steps; a row that diverged says so; others are not in this grid; the topline stands first."""
    found = document("poster", ours())
    by = found.frame.set_index("")
    shown = ["ours", "steps, ours", "FID, ours", "FID ÷ topline, ours", "NLL, ours"]
    eps = ["noise/linear/none/chain", "50", "0.40 ± 0.03 (0.31–0.52)", "2.00", "≤ 1.50"]
    assert by.loc["ϵ prediction", shown].tolist() == eps
    assert by.loc["Learned variance", shown].tolist() == ["sigma/linear/none/chain", "", "diverged", "", "diverged"]
    assert by.loc["x_0 prediction", shown].tolist() == ["not in this grid", "", "", "", ""] and found.here == 2
    top = by.loc["real data (topline)", ["FID, MNIST", *shown[:4]]]
    assert top.tolist() == ["1.12", "real data", "", "0.20", "1.00"]
    assert "Ours is of digits instead of MNIST" in found.caption and "only as multiples of the topline" in found.caption
    assert "Ours: N = 898 samples, networks of 0.43 million parameters, ± the spread over 2 seeds" in found.caption
    assert "Ours is of the same data" in document("poster", ours(dataset="mnist")).caption


def test_scores_are_multiples_of_those_of_real_data() -> None:
    """IS with its spread over parts, and divided by that of real images."""
    by = document("ho-ablation", ours()).frame.set_index("")
    simple = by.loc["‖ε − ε_θ‖² (L_simple)"]
    assert simple[["IS, ours", "IS ÷ topline, ours"]].tolist() == ["8.00 ± 0.25", "0.80"]
    assert simple[["steps", "steps, ours"]].tolist() == ["1000", "50"]


def test_of_several_samplers_the_nearest_steps_are_shown() -> None:
    """Where the document says how many; else each has a line, and each network does in any case."""
    several = ours(grid(sampler=["chain", "long"]))
    by = document("ho-ablation", several).frame.set_index("")
    assert by.loc["‖ε − ε_θ‖² (L_simple)", "ours"] == "noise/linear/none/long"
    names = document("poster", several).frame.set_index("").loc["ϵ prediction", "ours"]
    assert names.tolist() == ["noise/linear/none/chain", "noise/linear/none/long"]
    wide = {"method": "unet", "width": 64, "multipliers": [1, 2], "blocks": 1, "attention": []}
    block = {"objective": ["noise", "sigma"], "schedule": ["linear"], "guidance": ["none"], "sampler": ["chain"]}
    two = config.merge(config.read(ROOT / "config.yaml"), NAMED | {"networks": {"wide": wide}})
    found = document("ho-ablation", ours(config.check(two | {"grid": [block | {"network": ["unet", "wide"]}]})))
    names = found.frame.set_index("").loc["‖ε − ε_θ‖² (L_simple)", "ours"]
    assert names.tolist() == ["noise/linear/none/chain/unet", "noise/linear/none/chain/wide"]


def test_published_md_has_the_rows_of_our_methods() -> None:
    """Of tables with a row in this grid; bounds and notes as the documents have them, columns without a number not."""
    of = ours()
    text = published.published_text(published.documents(of.table, of.grid))
    assert "| ≤ 3.75 " in text and "the unit of NLL are not stated" in text
    assert "DDPM, L_simple" in text and not any(name in text for name in ("NCSNv2", "LSUN", "V100 days"))
    nothing = published.documents(of.table, grid(guidance=["cfg-w0"], objective=["score"]))
    assert published.published_text(nothing) == "No published table has a row in this grid.\n"


def test_every_row_of_ours_is_in_some_grid() -> None:
    """None selects what no configuration of the project has."""
    grids = [config.check(config.read(ROOT / "config.yaml"))]
    names = [path for path in (ROOT / "workflow/config").glob("*.yaml") if path.stem != "mnist-gpu"]
    grids += [config.check(config.read(ROOT / "config.yaml", path)) for path in names]
    rows = [(stem, row) for stem, source in read_all().items() for row in source["rows"] if "cell" in row]
    places = [{cell.row: selectors.values_of(cell.row, of) for cell in of.runs.values()} for of in grids]
    lost = [(s, row["label"]) for s, row in rows if not any(selectors.fitting(of, row["cell"]) for of in places)]
    assert lost == []


def test_captions_name_authors_and_year_first() -> None:
    """The document's number stands after them."""
    for source in read_all().values():
        assert not source["source"].startswith("document") and source["source"].index("(00") > 0


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (3.17, Printed(3.17, "3.17")),
        (3.7, Printed(3.7, "3.70")),
        (271, Printed(271.0, "271")),
        ("9.46 ± 0.11", Printed(9.46, "9.46 ± 0.11", 0.11)),
        ("≤ 3.75", Printed(3.75, "≤ 3.75", None, True)),
    ],
)
def test_a_number_as_printed(found: object, expected: Printed) -> None:
    assert printed(found) == expected


RIGHT = {
    "title": "t",
    "source": "s",
    "dataset": "mnist",
    "rows": [{"label": "a", "cell": {"objective": {"target": "eps"}}, "published": {"fid": 1.0}}],
}
NO_NUMBER = "it must be a number, or text such as '9.46 ± 0.11' or '≤ 3.75'"
KNOWN = "unknown axis; known are objective, schedule, guidance, sampler, network"
WRONG = {
    **{
        f"number {value!r}": ({"published": {"fid": value}}, f"a.published.fid: {value!r}; {NO_NUMBER}")
        for value in ("about 3", "< 3", "", None, True, "3 +- 1", [], float("inf"))
    },
    "item": ({"published": {"fdi": 1}}, "a.published.fdi: unknown item; known are fid, fid_binarized,"),
    "items": ({"published": [1]}, "a.published: [1]; it must be a mapping of items to numbers"),
    "axis": ({"cell": {"objektive": {"target": "x0"}}}, f"a.cell.objektive: {KNOWN}"),
    "name": ({"cell": {"objective": "eps"}}, "a.cell: {'objective': 'eps'}; it must be AXIS: {PARAMETER: VALUE}"),
    "method": ({"cell": {"objective": {"target": "epsilon"}}}, "a.cell.objective.target: 'epsilon'; it must be one of"),
    "parameter": ({"cell": {"sampler": {"etta": 1}}}, "a.cell.sampler.etta: unknown parameter; known are"),
    "value": ({"cell": {"sampler": {"variance": "smal"}}}, "a.cell.sampler.variance: 'smal'; it must be"),
    "no number": (
        {"cell": {"sampler": {"eta": "none"}}},
        "a.cell.sampler.eta: 'none' is of type str; it must be float",
    ),
    "other data": ({"also": {"cifar100": {"fid": 1}}}, "a.also.cifar100: 'cifar100'; it must be one of cifar10,"),
    "others": ({"also": 3}, "a.also: 3; it must be a mapping of data to their items"),
    "steps": ({"steps": 0}, "a.steps: 0; it must be a number of sampling steps, at least 1"),
    "key": ({"lable": 1}, "a.lable: unknown key; known are label, published, also, cell, steps"),
    "label": ({"label": 3}, "rows.0.label: 3; it must be text"),
}
WHOLE: dict[str, tuple[object, str]] = {
    "no rows": ({"rows": None}, "rows: None; it must be a list of rows"),
    "rows": ({"rows": ["a"]}, "rows: ['a']; it must be a list of rows"),
    "no published": ({"rows": [{"label": "a"}]}, "a.published: missing"),
    "no label": ({"rows": [{"published": {}}]}, "rows.0.label: missing"),
    "dataset": ({"dataset": "mnits"}, "dataset: 'mnits'; it must be one of cifar10,"),
    "datasets": ({"dataset": ["mnist"]}, "dataset: ['mnist']; it must be one of cifar10,"),
    "source": ({"source": 3}, "source: 3; it must be text"),
    "extra": ({"colour": 3}, "colour: unknown key; known are title, source, dataset, rows,"),
    "topline": ({"topline": {"fid": "1.1"}}, "topline.fid: '1.1'; it must be a number"),
    "toplines": ({"topline": 1}, "topline: 1; it must be a mapping of items to numbers"),
    "no topline": ({"topline": {"v100_days": 1}}, "topline.v100_days: unknown item; known are fid, fid_binarized"),
    "shared": ({"cell": {"objektive": {}}}, f"cell.objektive: {KNOWN}"),
}


def refused(path: Path, text: str) -> str:
    """What is said of a file."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_in_a_row_is_named(change: dict, said: str, tmp_path: Path) -> None:
    """File, row and key, the value, and what would be right."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RIGHT))
    assert read(path)["rows"][0]["published"] == {"fid": Printed(1.0, "1.00")}
    (row,) = RIGHT["rows"]
    assert refused(path, yaml.safe_dump(RIGHT | {"rows": [row | change]})).startswith(f"{path}: {said}")


@pytest.mark.parametrize(("change", "said"), WHOLE.values(), ids=WHOLE.keys())
def test_what_is_wrong_in_a_file_is_named(change: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert refused(path, yaml.safe_dump(RIGHT | change)).startswith(f"{path}: {said}")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    """A list, broken YAML, a key that stands twice, nothing, other bytes; what is missing is named all at once."""
    path = tmp_path / "mine.yaml"
    assert refused(path, "- a") == f"{path}: holds list; a published table is a mapping of keys to values"
    assert refused(path, "a: [").startswith(f"{path}: is no published table in YAML and UTF-8, line 1: ")
    assert refused(path, "title: a\ntitle: b") == f"{path}: line 2: the key 'title' stands in line 1 already; keep one"
    assert "NoneType" in refused(path, "")
    missing = [f"{path}: {key}: missing" for key in ("title", "source", "dataset", "rows")]
    assert refused(path, "note: a").splitlines() == missing


def test_mistakes_are_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of published tables and claims at once, as mistakes of the configuration, with those that it has itself."""
    for of, text in (("published", "- a"), ("claims", "a: {column: label_acc}")):
        (tmp_path / of).mkdir()
        (tmp_path / of / "mine.yaml").write_text(text)
    monkeypatch.setattr(declared, "FOLDERS", (tmp_path / "claims", tmp_path / "published"))
    with pytest.raises(UserError) as caught:
        config.check(config.merge(config.read(ROOT / "config.yaml"), {"threads": "many"}), declared.mistakes)
    said = str(caught.value).splitlines()
    assert said[0].startswith("threads: 'many'")
    assert any(line.startswith(f"{tmp_path}/claims/mine.yaml: a.column: 'label_acc'; it must be") for line in said)
    assert f"{tmp_path}/published/mine.yaml: holds list; a published table is a mapping of keys to values" in said


def test_latex_is_plain_and_escaped() -> None:
    """Every document's table in ASCII, a row per line, with what LaTeX would take for commands escaped."""
    for name, text in published.files(published.documents(ours().table, grid())):
        if name.endswith(".tex"):
            assert text.isascii(), [c for c in text if not c.isascii()]
            lines = [line for line in text.splitlines() if line.endswith(r"\\")]
            columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
            assert all(line.replace(r"\&", "").count("&") == len(columns) - 1 for line in lines)
    assert latex.escaped(r"a_b & 50% \x µ̃") == r"a\_b \& 50\% \textbackslash{}x $\tilde{\mu}$"
