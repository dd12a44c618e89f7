"""The page and its figures: what they show, that the page works in a real browser, and that no name breaks it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from browser import Browser
from PIL import Image
from tabled import CELL, GRID, NETWORK, build

from ddpm import figures, page, spot_checks
from ddpm.condition import Condition
from ddpm.datasets import dataset as data
from ddpm.figures.images import Images
from ddpm.page import charts, content
from ddpm.pipeline import records, verdict
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.results import Results
from ddpm.pipeline.run import execute
from ddpm.samplers import Sampler
from ddpm.stages.sample import chain, load_denoiser
from ddpm.tables import paired, verdicts
from ddpm.tables.columns import columns_of
from ddpm.tables.rows import collect
from ddpm.tables.winners import trainings, winners

# What the page itself makes of numbers.
OWN = ("id", "chart", "loss", "picture", "sort")
EVIL = "<img src=x onerror=alert(1)></script>\"'&"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """A grid of two seeds that is measured, with one cell's picture, and its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "NOISE", float("inf"))  # networks of six steps are as far from the data as noise
        made = build(tmp_path_factory.mktemp("page"))
        for name in GRID.runs:
            Image.new("L", (40, 40), 128).save(made.cell(name) / "samples.png")
        for stage, name in (("train", f"{NETWORK}/seed1"), ("fidelity", f"{NETWORK}/seed1")):
            made.log(stage, name).parent.mkdir(parents=True, exist_ok=True)
            made.log(stage, name).write_text(f"{stage} started\n\r{stage}:  50%\r{stage}: 100%\n")
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
    assert row["numbers"][at]["beside"] == f"± {ours['fid_std']:.3f}"
    for r, (_, found) in zip(rows, table.iterrows(), strict=True):
        ends = [found["fid_low"], found["fid_high"]]
        assert r["numbers"][at]["range"] == ("{:.3f} – {:.3f}".format(*ends) if pd.notna(ends[0]) else "")
    assert row["score"] == f"FID {ours['fid']:.3f} ({row['numbers'][at]['range']})"
    assert all(re.fullmatch(r"(-?\d+\.\d{3}|\d*|[a-z ]+|n/a)", n["text"]) for r in rows for n in r["numbers"])
    best = [i for i, r in enumerate(rows) if r["numbers"][at]["best"]]
    assert best == winners(table, paired.differences(results), ["fid"], trainings(table, GRID))["fid"]
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
    assert jobs["fidelity"]["log"] == "fidelity started\nfidelity: 100%" and jobs["sample"]["log"] == ""
    assert "train started\ntrain: 100%</pre>" in text(layout) and "logs/" not in text(layout)


def test_of_a_log_the_end_is_shown(tmp_path: Path) -> None:
    """As a terminal would show it, and no more than so many lines and characters, wherever a character is cut."""
    path = tmp_path / "a.log"
    assert content.tail(path) == ""
    path.write_bytes(b"\x1b[31mred\x1b[0m\a \xff\tend\r\n")
    assert content.tail(path) == "red \ufffd\tend"
    path.write_text("".join(f"{i}\n" for i in range(9000)), encoding="utf-8")
    assert content.tail(path).split("\n") == [str(i) for i in range(9000 - content.LINES, 9000)]
    path.write_text("é" * 2**16, encoding="utf-8")
    assert content.tail(path) == "é" * content.CHARACTERS


def test_the_page_is_verified_with_its_logs(layout: Layout, tmp_path: Path) -> None:
    """`ddpm verify` makes it again of the same logs, and sees that one has changed since."""
    results, log = Results(GRID, layout), layout.log("train", f"{NETWORK}/seed1")

    def found(folder: Path) -> list[str]:
        for name in GRID.runs:  # no record has them here
            shutil.copytree(layout.cell(name), Layout(folder).cell(name), ignore=shutil.ignore_patterns("*.json"))
        return [finding.path.name for finding in spot_checks.recomputed(results, "page", "", Layout(folder))]

    assert found(tmp_path / "a") == []
    before = log.read_text()
    log.write_text("another\n")
    after = found(tmp_path / "b")
    log.write_text(before)
    assert "report.html" in after


def test_the_heading_says_by_what_rows_are_compared(layout: Layout) -> None:
    """Features and protocol; that two seeds decide no claim, which are folded; in what rows differ."""
    found = " ".join(text(layout).split())
    of = records.read_record(layout.record("fidelity", "real"))["result"]
    assert f"a classifier trained on the training split (hash {of['extractor']}), protocol {of['protocol']};" in found
    assert "can be decided yet: 3 training seeds are the least, and there are 2." in found
    assert found.index("<summary>What they claim") < found.index('<div class="verdicts">')
    assert "differs:" in found and "network evaluations per sample" in found


@pytest.mark.parametrize(("seeds", "few"), [((1, 1), {"seeds": 1, "least": 3}), ((1, 3), None), ((), None)])
def test_claims_are_folded_where_all_lack_seeds(seeds: tuple[int, ...], few: dict | None) -> None:
    """One that has enough shows them all."""
    assert content.few([verdicts.Verdict(None, "undecided", seeds=n) for n in seeds]) == few


def test_an_interval_is_drawn_where_it_lies() -> None:
    """A ratio is symmetric about no effect in its logarithm; ends that are far out stop at the edge."""
    places = [float(x) for x in re.findall(r'(?:cx|x1|x2)="([\d.]+)"', charts.interval(0.5, 0.25, 1.0, 1.0, True))]
    low, high, dot = places[-3:]
    assert high == 100 and dot == pytest.approx((low + high) / 2, abs=0.06) and low > 20
    assert 'cx="20.0"' in charts.interval(1e-9, 1e-12, 1e-6, 1.0, True)
    ratio, difference = charts.interval(0.5, 0.25, 1.0, 1.0, True), charts.interval(0.3, 0.1, 0.45, 0.0, False)
    assert re.findall("<text[^>]*>([^<]*)", ratio) == ["× 0.2", "× 1", "× 5"]
    assert re.findall("<text[^>]*>([^<]*)", difference) == ["-0.5", "0", "+0.5"] and 'cx="148.0"' in difference
    assert charts.interval(float("nan"), float("nan"), float("nan"), 0.0, False) == ""


def test_a_loss_is_drawn_from_high_to_low() -> None:
    """In its logarithm where it is positive; what is not finite is left out."""
    frame = pd.DataFrame({"images": [100, 200], "loss": [float("nan"), 1.0]})
    assert charts.loss(frame) == ""
    drawn = charts.loss(pd.DataFrame({"images": [100, 200], "loss": [2.0, 1.0]}))
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert points == "180.0,6.0 316.0,94.0"
    assert re.findall("<text[^>]*>([^<]*)", drawn) == ["1.5", "2", "0", "200 images"]  # running means of five
    falls = charts.loss(pd.DataFrame({"images": range(1, 9), "loss": [30.0] + 7 * [0.2]}))
    assert re.findall("<text[^>]*>([^<]*)", falls) == ["0.2", "1", "5", "20", "0", "8 images"]


# ---- figures ----------------------------------------------------------------------------------------------


def test_progressive_generation_shows_estimates_of_the_data(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """x̂0 = (x_t − σ ε̂)/α of every state of the chain, not x_t; last what is sampled (Ho et al. 2020, figure 6)."""
    drawn = {}
    monkeypatch.setattr(figures, "table", lambda *given: drawn.update(zip(given[3], given[1][0], strict=True)))
    monkeypatch.setattr(figures, "scores", lambda *_: {f"{CELL}/seed0": 1.0})
    dataset = data.read(layout.output("data"))
    figures.denoising_figure(layout, GRID, Images(dataset), layout.root / "unused.png")
    network = f"{NETWORK}/seed0"
    denoiser, sampler = load_denoiser(layout.result("train", network)), Sampler.make(GRID.axis("sampler", "ddim"))
    states = list(chain(denoiser, sampler, network, torch.arange(8), Condition(None), dataset.shape))
    times = sampler.times(denoiser.schedule)
    for state, t in zip(states[:-1], times[:-1], strict=True):
        alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
        estimate = (state - sigma * denoiser(state, t).eps) / alpha
        expected = dataset.space.decode(estimate.float())[0]
        found = drawn[f"x̂0 at t = {t:.0f}"]
        assert (expected.int() - found.int()).abs().max() <= 1  # a grey level, where rounding is on the edge
        assert not torch.equal(found, dataset.space.decode(state)[0])
    assert torch.equal(drawn["sample"], dataset.space.decode(states[-1])[0])


def test_nearest_training_images_are_nearest(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """By brute force; a sample that is a training image has itself below it, at distance 0."""
    drawn: list = []
    monkeypatch.setattr(figures, "table", lambda *given: drawn.extend(given))
    monkeypatch.setattr(figures, "scores", lambda *_: {"cell": 1.0})
    dataset = data.read(layout.output("data"))
    train, test = dataset.train.images, dataset.test.images[:5].clone()
    test[2] = train[17]
    figures.neighbours_figure(layout, GRID, Images(dataset), {"cell": test}, layout.root / "unused.png")
    _, strips, _, columns, *_ = drawn
    for i, image in enumerate(test):
        squares = [int(((image.long() - other.long()) ** 2).sum()) for other in train]
        order = sorted(squares)[:3]
        assert [int(((image.long() - strip[i].long()) ** 2).sum()) for strip in strips[1:]] == order
        assert float(columns[i]) == pytest.approx(order[0] ** 0.5, abs=0.06)
    assert torch.equal(strips[1][2], train[17]) and columns[2] == "0.0"


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
    assert re.fullmatch(r"[\d.]+ – [\d.]+", browser.run("document.querySelector('#rows .range').innerText"))
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
    assert browser.run("document.querySelector('#rows .range').getBoundingClientRect().height") > 5
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
        return EVIL if isinstance(value, str) and key not in OWN else value

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
        self.results, self.job = layout.root, GRID.job("page")[0]
        self.recorder = type("Recorder", (), {"record": {}})()

    def write(self, file: str, content: str) -> None:
        pass
