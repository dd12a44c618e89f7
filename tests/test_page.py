"""The page: what stands on it, that it works in a real browser, and that names of the user's cannot break it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from browser import Browser
from PIL import Image
from test_tables import CELL, GRID, build

from ddpm import page
from ddpm.page import charts, content
from ddpm.pipeline import records, verdict
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.tables.columns import columns_of
from ddpm.tables.rows import collect

EVIL = "<img src=x onerror=alert(1)></script>\"'&"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A grid of two seeds that is measured, with one cell's picture, and its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "NOISE", float("inf"))  # networks of six steps are as far from the data as noise
        made = build(tmp_path_factory.mktemp("page"))
        for name in GRID.runs:
            Image.new("L", (40, 40), 128).save(made.cell(name) / "samples.png")
        execute("table", *GRID.job("table"), made)
        execute("page", *GRID.job("page"), made)
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        started.size(1280, 900)
        yield started


def text(layout: Layout) -> str:
    return layout.output("page").read_text(encoding="utf-8")


# ---- what stands on it ------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(layout: Layout) -> None:
    """Written again, and small; every time in it is one of a record."""
    first = text(layout)
    execute("page", *GRID.job("page"), layout)
    assert text(layout) == first and len(first) < 500_000
    times = {records.read_record(layout.record(*job))["costs"]["started"] for job in GRID.jobs}
    assert set(re.findall(r"20\d\d-\d\d-\d\dT[\d:]+Z", first)) <= times


def test_nothing_comes_from_elsewhere(layout: Layout) -> None:
    """No address of a host, and pictures are in the page."""
    found = text(layout)
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", found) and "@import" not in found
    assert found.count("data:image/png;base64,") == len(GRID.runs)


def test_every_row_has_its_numbers(layout: Layout) -> None:
    """The table's own, as they are sorted by, with the spread over seeds beside them; the best is marked."""
    results = Results(GRID, layout)
    table = collect(results)
    shown, rows = content.columns(table, columns_of(GRID.config)), content.rows(results, table)
    at = [c["name"] for c in shown].index("fid")
    assert [float(r["numbers"][at]["sort"] or "nan") for r in rows] == pytest.approx(table["fid"].tolist(), nan_ok=True)
    (row,) = (r for r in rows if r["name"] == CELL.replace("/", " · "))
    ours = table[(table["objective"] == "eps") & (table["sampler"] == "ddim")].iloc[0]
    assert row["numbers"][at]["beside"] == f"± {ours['fid_std']:.2g}"
    best = [r["name"] for r in rows if r["numbers"][at]["best"]]
    least = table.iloc[5:].query("status == 'ok'")["fid"].idxmin()
    assert best == [rows[least]["name"]]
    assert shown[at] == {"name": "fid", "title": "FID", "better": "↓"}
    assert not any(c["name"].endswith(("_std", "_low", "_high", "_standard_error")) for c in shown)


def test_a_cell_has_its_jobs_records_and_commands(layout: Layout) -> None:
    """Each seed's, of every stage of its row."""
    results = Results(GRID, layout)
    (row,) = (r for r in content.rows(results, collect(results)) if r["name"] == CELL.replace("/", " · "))
    assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
    jobs = {job["stage"]: job for job in row["seeds"][1]["jobs"]}
    assert set(jobs) == {"train", "likelihood", "sample", "fidelity"}
    assert jobs["sample"]["command"] == f"ddpm sample {CELL}/seed1" and jobs["sample"]["state"] == "ok"
    assert json.loads(jobs["sample"]["record"]) == records.read_record(layout.record("sample", f"{CELL}/seed1"))
    assert jobs["fidelity"]["log"] == "logs/fidelity/eps/linear/unconditional/seed1.log"


def test_an_interval_is_drawn_where_it_lies() -> None:
    """A ratio is symmetric about no effect in its logarithm; ends that are far out stop at the edge."""
    places = [float(x) for x in re.findall(r'(?:cx|x1|x2)="([\d.]+)"', charts.interval(0.5, 0.25, 1.0, 1.0, True))]
    low, high, dot = places[-3:]
    assert high == 100 and dot == pytest.approx((low + high) / 2, abs=0.06) and low > 4
    assert 'cx="8.0"' in charts.interval(1e-9, 1e-12, 1e-6, 1.0, True)
    assert charts.interval(float("nan"), float("nan"), float("nan"), 0.0, False) == ""


def test_a_loss_is_drawn_from_high_to_low() -> None:
    """In its logarithm where it is positive; what is not finite is left out."""
    frame = pd.DataFrame({"images": [100, 200], "loss": [float("nan"), 1.0]})
    assert charts.loss(frame) == ""
    drawn = charts.loss(pd.DataFrame({"images": [100, 200], "loss": [2.0, 1.0]}))
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert points == "160.0,6.0 316.0,94.0" and "over 200 training images" in drawn


# ---- in a browser -----------------------------------------------------------------------------------------


def column(browser: Browser, index: int) -> list[str]:
    rows = "[...document.querySelectorAll('#rows tbody tr')].filter(r => !r.hidden)"
    return browser.run(f"{rows}.map(r => r.cells[{index}].dataset.sort)")


def test_in_a_browser(layout: Layout, browser: Browser) -> None:
    """Sort, filter, open a cell, switch the theme: no error, and no request but for the page itself."""
    url = layout.output("page").as_uri()
    browser.open(url)
    fid = browser.run("[...document.querySelectorAll('#rows thead button')].findIndex(b => b.title === 'fid')") + 0
    assert fid > 0
    for order in (False, True):
        browser.run(f"document.querySelectorAll('#rows thead button')[{fid}].click()")
        found = column(browser, fid)
        numbers = [float(value) for value in found if value]
        assert numbers == sorted(numbers, reverse=order) and len(numbers) > 5
        assert found[len(numbers) :] == [""] * (len(found) - len(numbers))  # what is empty stands last
    typed = "const f = document.getElementById('filter'); f.value = {}; f.dispatchEvent(new Event('input'))"
    browser.run(f"{{ {typed.format(json.dumps('EPS ddim'))} }}")
    assert column(browser, 0) == ["eps · linear · none · ddim"]
    assert browser.run("document.getElementById('count').textContent").startswith("1 of 10")
    browser.run("document.querySelector('#rows tbody tr:not([hidden]) button').click()")
    assert browser.run("document.querySelector('dialog[open] h2').textContent") == "eps · linear · none · ddim"
    assert browser.run("document.querySelector('dialog[open] img').naturalWidth") == 40
    assert f"ddpm sample {CELL}/seed0" in browser.run("document.querySelector('dialog[open]').textContent")
    browser.run("document.querySelector('dialog[open] form button').click()")
    assert browser.run("document.querySelector('dialog[open]')") is None
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.run("document.getElementById('theme').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != before
    assert browser.said == [] and {a for a in browser.asked if not a.startswith("data:")} == {url}


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_window(layout: Layout, browser: Browser, dark: bool) -> None:
    """390 pixels: tables scroll in their own frame; text can be read against its ground in both themes."""
    browser.size(390, 844, dark)
    browser.open(layout.output("page").as_uri())
    browser.run("localStorage.clear()")
    browser.open(layout.output("page").as_uri())
    assert browser.run("document.documentElement.scrollWidth") == 390
    ground, ink = (
        [int(c) for c in re.findall(r"\d+", browser.run(f"getComputedStyle(document.body).{key}"))[:3]]
        for key in ("backgroundColor", "color")
    )
    assert (sum(ground) < 150) == dark and abs(sum(ground) - sum(ink)) > 450
    browser.size(1280, 900)


def test_printed_it_has_every_row(layout: Layout, browser: Browser) -> None:
    """On paper there are no tools and nothing is cut off by a frame."""
    browser.open(layout.output("page").as_uri())
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_names_are_text(layout: Layout, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from a configuration is shown as it is, wherever it stands, and is never markup."""
    kept = {}
    monkeypatch.setattr(page, "render", lambda context: kept.update(context) or "")
    page.write(Stub(layout))

    def spoil(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        return EVIL if isinstance(value, str) and key not in ("id", "chart", "loss", "picture", "sort") else value

    monkeypatch.undo()
    path = tmp_path / "evil.html"
    path.write_text(page.render({k: spoil(v, k) for k, v in kept.items()}), encoding="utf-8")
    browser.said.clear()
    browser.open(path.as_uri())
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.run("document.querySelector('h1').textContent") == EVIL
    assert browser.run("document.querySelectorAll('script').length") == 1 and browser.said == []


class Stub:
    """A run of the page that writes nothing."""

    def __init__(self, layout: Layout):
        self.layout, self.job = layout, GRID.job("page")[0]
        self.recorder = type("Recorder", (), {"record": {}})()

    def write(self, file: str, content: str) -> None:
        pass
