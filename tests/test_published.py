"""The documents' tables: every number as it was printed, ours beside it, and what may not be compared."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from ddpm.errors import UserError
from ddpm.pipeline.results import PUBLISHED
from ddpm.tables import latex, published
from ddpm.tables.columns import OURS
from ddpm.tables.printed import Printed, printed

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


def ours(**changes: object) -> pd.DataFrame:
    """A table of real data and two rows."""
    names = ("dataset", "objective", "schedule", "guidance", "sampler")
    rows: list[dict] = [
        dict(zip(names, ("digits", "real data", None, None, None), strict=True)) | {"fid": 0.2},
        dict(zip(names, ("digits", "eps", "linear", "none", "ancestral"), strict=True)) | {"fid": 0.4, "fid_std": 0.03},
        dict(zip(names, ("digits", "learned", "linear", "none", "ancestral"), strict=True)) | {"status": "diverged"},
    ]
    table = pd.DataFrame([{"status": "ok"} | row for row in rows], columns=OURS.all)
    table["fid_over_topline"] = table["fid"] / 0.2
    return table.assign(**changes)


@pytest.mark.parametrize("stem", sorted(path.stem for path in PUBLISHED.glob("*.yaml")))
def test_numbers_are_those_that_were_printed(stem: str) -> None:
    """Each row's, in the order of items and data sets."""
    nothing = ours(objective="other")  # no row of ours
    found = published.document(nothing, PUBLISHED / f"{stem}.yaml")
    for label, expected in SPOT[stem].items():
        (row,) = found.frame[found.frame[""] == label].itertuples(index=False)
        assert list(row)[1:] == expected
    assert found.here == 0 and "None of these rows is in this grid" in found.caption


def test_ours_stand_beside_them() -> None:
    """The mean with its spread and the multiple of its own topline; a row that diverged says so; others stay empty."""
    found = published.document(ours(), PUBLISHED / "poster.yaml")
    by = found.frame.set_index("")
    assert by.loc["ϵ prediction", ["FID, ours", "FID ÷ topline, ours"]].tolist() == ["0.40 ± 0.03", "2.00"]
    assert by.loc["Learned variance", ["FID, ours", "FID ÷ topline, ours"]].tolist() == ["diverged", ""]
    assert by.loc["x_0 prediction", "FID, ours"] == "" and found.here == 2
    assert "Ours is of digits instead of MNIST" in found.caption and "multiples of the topline" in found.caption
    same = published.document(ours(dataset="mnist"), PUBLISHED / "poster.yaml")
    assert "Ours is of the same data" in same.caption


def test_captions_name_authors_and_year_first() -> None:
    """The document's number stands after them."""
    for path in PUBLISHED.glob("*.yaml"):
        source = published.read(path)["source"]
        assert not source.startswith("document") and source.index("(00") > 0


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
    assert printed(found, "here") == expected


@pytest.mark.parametrize("wrong", ["about 3", "< 3", "", None, True, "3 +- 1"])
def test_what_is_no_number_is_named(wrong: object, tmp_path: Path) -> None:
    """File, row and item, the value, and what would be right."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"rows": [{"label": "a", "published": {"fid": wrong}}]}))
    with pytest.raises(UserError) as caught:
        published.read(path)
    assert str(caught.value).startswith(f"{path}: a.fid: {wrong!r}; it must be a number, or text such as")
    path.write_text(yaml.safe_dump({"rows": [{"label": "a", "published": {"fdi": 1}}]}))
    with pytest.raises(UserError, match="a: 'fdi' is no item; known are fid,"):
        published.read(path)


def test_latex_is_plain_and_escaped() -> None:
    """Every document's table in ASCII, a row per line, with what LaTeX would take for commands escaped."""
    for name, text in published.files(ours()):
        if name.endswith(".tex"):
            assert text.isascii(), [c for c in text if not c.isascii()]
            lines = [line for line in text.splitlines() if line.endswith(r"\\")]
            columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
            assert all(line.replace(r"\&", "").count("&") == len(columns) - 1 for line in lines)
    assert latex.escaped(r"a_b & 50% \x µ̃") == r"a\_b \& 50\% \textbackslash{}x $\tilde{\mu}$"
