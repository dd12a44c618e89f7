"""What the charts show: means and intervals as in the table, no lucky seed, the bound by time, readable axes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from tabled import CELL, GRID, NETWORK, configured, edit, finished, layout, number, table, untrained  # noqa: F401

from ddpm import figures
from ddpm.datasets import dataset as data
from ddpm.figures import canvas, charts, curves
from ddpm.figures.images import Images
from ddpm.figures.rows import Row, best_first, rows
from ddpm.pipeline import config
from ddpm.pipeline.grid import Grid
from ddpm.pipeline.layout import CHARTS, Layout
from ddpm.pipeline.results import TRAINED, Results
from ddpm.pipeline.run import execute
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.schedules import Cosine, Linear
from ddpm.stages import likelihood

torch.set_num_threads(1)
OTHER = "eps/linear/none/ancestral"
GUIDED = "score/cosine/cfg-w1/ddim"


def named(found: list[Row]) -> dict[str, Row]:
    return {row.name.replace(" · ", "/"): row for row in found}


# ---- rows -------------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_table(finished: Layout, table: pd.DataFrame) -> None:  # noqa: F811
    """Mean, multiple and interval are the table's, widened to Student's t over seeds where that is more."""
    found = named(rows(finished, GRID, "fid"))
    of = table[table["seeds"].notna() & table["fid"].notna()]
    assert len(of) == len(found) == 4
    for _, one in of.iterrows():
        row = found["/".join(one[["objective", "schedule", "guidance", "sampler"]])]
        assert (row.number["fid"], row.over) == pytest.approx((one["fid"], one["fid_over_topline"]), rel=1e-12)
        assert (row.topline, row.number["nfe"]) == (one["topline"], one["nfe"]) and not row.bad
        half = stats.t.ppf(0.975, 1) * one["fid_std"] / 2**0.5
        assert row.low == pytest.approx(min(one["fid_low"], one["fid"] - half), rel=1e-9)
        assert row.high == pytest.approx(max(one["fid_high"], one["fid"] + half), rel=1e-9)
        assert list(row.seeds) == [number(finished, "fidelity", f"{row.cells[0].name[:-1]}{s}", "fid") for s in (0, 1)]
    assert {row.topline for row in found.values()} == {"stratified", "by chance"}


def test_the_bar_of_one_seed_is_its_interval(finished: Layout) -> None:  # noqa: F811
    one = config.check(config.merge(configured(), {"seeds": [0]}))
    row = named(rows(finished, one, "fid"))[CELL]
    ends = [number(finished, "fidelity", f"{CELL}/seed0", f"fid_{end}") for end in ("low", "high")]
    assert [row.low, row.high] == pytest.approx(ends, rel=1e-12) and row.low < row.number["fid"] < row.high


def test_the_luckiest_seed_does_not_stand_for_all(layout: Layout) -> None:  # noqa: F811
    """The row with the best mean comes first although another has the best seed, and its first seed is drawn although
    its second is better; what counts is the multiple of the row's own topline."""
    values = {CELL: (6.0, 2.0), OTHER: (0.2, 18.0), "learned/linear/none/ancestral": (8.0, 8.0), GUIDED: (3.0, 3.0)}
    measured = {f"{name}/seed{seed}": value for name, of in values.items() for seed, value in enumerate(of)}
    for name, value in (measured | {"real": 1.0, "real-by-chance": 2.0}).items():
        edit(layout.record("fidelity", name), lambda record, value=value: record["result"].update(fid=value))  # type: ignore[misc]
    found = figures.scores(layout, GRID)
    firsts = [CELL, GUIDED, "learned/linear/none/ancestral", OTHER]
    assert list(found) == [f"{name}/seed0" for name in firsts]
    assert [row.over for row in found.values() if row] == [2.0, 3.0, 4.0, 4.55]


def test_pictures_print_the_mean(
    finished: Layout,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the samples of the first seed stands the mean of all seeds, and what multiple of real data's that is."""
    drawn: list = []
    monkeypatch.setattr(Images, "overview", lambda _, rows, title, path: drawn.extend([*rows, title]))
    samples = {name: figures.samples_of(finished, cell) for name, cell in GRID.runs.items()}
    renderer = Images(data.read(finished.output("data")))
    figures.samples_figure(finished, GRID, renderer, samples, finished.root / "unused.png")
    row = named(rows(finished, GRID, "fid"))[CELL]
    (found,) = (r for r in drawn[:-1] if r[0] == CELL.replace("/", " · "))
    assert found[1] == f"FID {row.number['fid']:.3g} = {row.over:.3g} × real"
    assert torch.equal(found[2], samples[f"{CELL}/seed0"]) and len(drawn) == 1 + 4 + 1
    assert "first seed" in drawn[-1] and "mean FID of all seeds" in drawn[-1]


def test_a_row_with_a_diverged_seed_has_no_numbers(layout: Layout) -> None:  # noqa: F811
    """As in the table; it comes last, and the mean of the seeds that are left is not drawn."""
    edit(layout.record("fidelity", f"{CELL}/seed1"), lambda record: record.update(status="diverged", result={}))
    assert CELL not in named(rows(layout, GRID, "fid"))
    found = figures.scores(layout, GRID)
    assert list(found)[-1] == f"{CELL}/seed0" and found[f"{CELL}/seed0"] is None and len(found) == 4


def test_what_is_no_data_is_marked_and_comes_last(layout: Layout) -> None:  # noqa: F811
    """Samples that reach far out of the data's range, however small their FID."""
    edit(layout.record("sample", f"{CELL}/seed1"), lambda record: record["result"].update(reach=50.0))
    edit(layout.record("fidelity", f"{CELL}/seed0"), lambda record: record["result"].update(fid=1e-3))
    edit(layout.record("fidelity", f"{CELL}/seed1"), lambda record: record["result"].update(fid=1e-3))
    last = best_first(layout, GRID, "fid", 1)[-1]
    assert last.name == CELL.replace("/", " · ") and last.bad


def test_samples_of_elsewhere_are_drawn(layout: Layout, tmp_path: Path) -> None:  # noqa: F811
    """In the comparison beside the cells, and not where they were measured otherwise; the pictures know of them."""
    before = Results(GRID, layout).inputs("figures")
    dataset, count = data.read(layout.output("data")), GRID.config["sampling"]["images"]
    np.savez(
        tmp_path / "theirs.npz", dataset.space.to_images(dataset.test.images[:count]).numpy().transpose(0, 2, 3, 1)
    )
    execute("external", STAGES["external"].job_of(GRID, "theirs", str(tmp_path / "theirs.npz")), "", layout)
    execute("fidelity", *GRID.job("fidelity", "external/theirs"), layout)
    last = rows(layout, GRID, "fid")[-1]
    value = number(layout, "fidelity", "external/theirs", "fid")
    assert (last.name, last.cells, last.seeds, last.topline) == ("theirs", (), (value,), "by chance")
    assert Results(GRID, layout).inputs("figures") != before
    charts.comparison_figure(layout, GRID, "fid", "FID", tmp_path / "comparison.png")
    assert ">theirs<" in (tmp_path / "comparison.svg").read_text(encoding="utf-8")
    edit(layout.record("fidelity", "external/theirs"), lambda record: record["result"].update(protocol=0))
    assert "theirs" not in named(rows(layout, GRID, "fid"))


# ---- charts -----------------------------------------------------------------------------------------------


def test_charts_have_the_same_bytes(finished: Layout, tmp_path: Path) -> None:  # noqa: F811
    """As PNG and as SVG, whose text is text; logarithms are labelled with plain numbers."""
    for folder in ("a", "b"):
        for name in ("comparison", "steps", "guidance", "seconds"):
            getattr(charts, f"{name}_figure")(finished, GRID, "fid", "FID", tmp_path / folder / f"{name}.png")
        curves.schedules_figure(GRID, tmp_path / folder / "schedules.png")
        curves.training_figure(finished, GRID, tmp_path / folder / "training.png")
        curves.bound_figure(finished, GRID, tmp_path / folder / "bound.png")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(f"{name}.{end}" for name in CHARTS for end in ("png", "svg"))
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    texts = {name: (tmp_path / "a" / f"{name}.svg").read_text(encoding="utf-8") for name in CHARTS}
    assert "eps · linear · none · ddim" in texts["comparison"] and "10^" not in texts["comparison"]
    assert "real data: 95 % of sets" in texts["comparison"] and "classes by chance" in texts["comparison"]
    assert all(title in texts["guidance"] for title in ("FID", "Label accuracy", "Diversity"))
    assert "eps · linear" in texts["bound"] and "score · cosine" not in texts["bound"]


def test_the_band_is_of_real_data(finished: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """Of each panel's own topline, from the low to the high end, and within the axis."""
    axes: list = []
    band = charts._band
    monkeypatch.setattr(charts, "_band", lambda axis, *given: axes.append(axis) or band(axis, *given))
    monkeypatch.setattr(canvas, "save_figure", lambda *_: None)
    charts.comparison_figure(finished, GRID, "fid", "FID", tmp_path / "comparison.png")
    assert len(axes) == 2
    for axis, name in zip(axes, ("real-by-chance", "real"), strict=True):
        ends = [number(finished, "fidelity", name, f"fid_{end}") for end in ("low", "high")]
        (patch,) = axis.patches
        assert [patch.get_x(), patch.get_x() + patch.get_width()] == pytest.approx(ends)
        low, high = axis.get_xlim()
        assert low < ends[0] < ends[1] < high


@pytest.mark.parametrize(("low", "high"), [(90, 110), (0.31, 0.33), (3, 4), (0.001, 2000), (1, 1000), (49, 51)])
def test_an_axis_has_few_plain_labels(low: float, high: float) -> None:
    """At least two, of 1, 2 and 5 times powers of ten, none so near to another that they overlap."""
    axis = Figure().subplots()
    axis.plot([low, high], [1, 2])
    canvas.plain(axis, "x")
    left, right = axis.get_xlim()
    places = [place for place in axis.xaxis.get_major_locator()() if left <= place <= right]
    assert 2 <= len(places) <= 13 and left <= low and right >= high
    assert all(after / before > 1.9 for before, after in pairwise(places))
    assert all(f"{place:e}"[0] in "125" for place in places)


def with_steps(*steps: int) -> Grid:
    """The grid with `ddim` of other lengths, and one cell alone."""
    read = configured()
    read["samplers"] = read["samplers"] | {f"ddim{n}": {"method": "ddim", "steps": n} for n in steps}
    names = [f"ddim{n}" for n in steps]
    read["grid"] = [
        {"objective": ["eps"], "schedule": ["linear"], "guidance": ["none"], "sampler": names},
        {"objective": ["score"], "schedule": ["cosine"], "guidance": ["none"], "sampler": names[:1]},
        {"objective": ["eps"], "schedule": ["cosine"], "guidance": ["none"], "sampler": names[:1]},
    ]
    return config.check(read)


def test_a_panel_of_steps_has_several() -> None:
    """Networks that are sampled with one number of steps share one axis, and alone they are not drawn at all."""
    grid = with_steps(2, 3)
    found = []
    for cells in grid.rows.values():
        nfe = float(grid.axis("sampler", cells[0].sampler)["steps"])
        found.append(Row("", tuple(cells), "by chance", (1.0,), 1.0, 1.0, {"nfe": nfe}, 1.0))
    panels = charts.families(found, grid)
    assert list(panels) == ["eps · linear · none", "all others"]
    assert [row.number["nfe"] for row in panels["eps · linear · none"]["ddim eta 0.0"]] == [2, 3]
    assert len(panels["all others"]["ddim eta 0.0"]) == 2
    assert "steps" in grid.pictures and "steps" not in with_steps(2).pictures


# ---- the bound by time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(40), Cosine(40), Linear(1000)])
@pytest.mark.parametrize("times", [5, 39, 2000])
def test_terms_are_a_density_in_time(schedule: Linear | Cosine, times: int) -> None:
    """Every stratum's part of Σ_t L_t, spread over the time that it covers: constant terms stay constant, whatever the
    strata, sums stay sums, and every edge lies within the times that the table names."""
    steps = schedule.steps
    count = min(times, steps - 1)
    share = likelihood.time_shares(schedule).numpy()
    if times >= steps - 1:
        bits = np.full(steps - 1, 0.01)
    else:  # the expectation of a stratum of equal shares: Σ_t (its part of q_t)/q_t · L_t
        edges = np.concatenate([[0], share.cumsum()]) / share.sum()
        cut = np.clip(np.arange(count + 1)[:, None] / count, edges[:-1], edges[1:])
        bits = 0.01 * (np.diff(cut, axis=0) / np.diff(edges)).sum(1)
    ranges = likelihood.strata(schedule, times)
    lines = likelihood.terms_table(0.1, 0.2, torch.from_numpy(bits), ranges, steps).splitlines()
    frame = pd.DataFrame([line.split(",") for line in lines[1:]], columns=lines[0].split(","))
    edge, height = curves.terms(frame.astype({"bits_per_dim": float}), schedule)
    np.testing.assert_allclose(height, 0.01, rtol=1e-6)
    assert (edge[0], edge[-1]) == pytest.approx((1, steps)) and len(edge) == count + 1
    for (first, last), low, high in zip(ranges, edge[:-1], edge[1:], strict=True):
        assert first - 1 - 1e-6 <= low < high <= last + 1e-6


def test_the_curve_ends_at_the_bound(finished: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    """The sum over all times, with the prior, is the mean over seeds of the bits/dim that the table has."""
    kept: list = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, path: kept.append(figure))
    curves.bound_figure(finished, GRID, tmp_path / "bound.png")
    steps, sums = kept[0].axes
    assert [line.get_label() for line in steps.lines] == ["eps · linear", "learned · linear"]
    both = (number(finished, "likelihood", f"{NETWORK}/seed{seed}", "bound_bits_per_dim") for seed in (0, 1))
    assert sums.lines[0].get_ydata()[-1] == pytest.approx(sum(both) / 2, rel=1e-6)
    assert sums.lines[0].get_xdata()[-1] == 1 and sums.get_xscale() == steps.get_yscale() == "log"
    assert steps.get_xscale() == "log"


def test_schedules_are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """α² = ᾱ, and log SNR = log ᾱ/(1 − ᾱ), by the β of Ho et al. 2020, for T = 100, and by Nichol & Dhariwal 2021."""
    kept: list = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, path: kept.append(figure))
    curves.schedules_figure(GRID, tmp_path / "schedules.png")
    left, right = kept[0].axes
    bars = {
        "linear": (1 - torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)).cumprod(0)[[49, 69]].numpy(),
        "cosine": np.cos((np.array([0.5, 0.7]) + 0.008) / 1.008 * np.pi / 2) ** 2
        / np.cos(0.008 / 1.008 * np.pi / 2) ** 2,
    }
    for drawn, snr in zip(left.lines, right.lines, strict=True):
        expected = bars[drawn.get_label()]
        for line, value in ((drawn, expected), (snr, np.log(expected / (1 - expected)))):
            np.testing.assert_allclose(np.interp([0.5, 0.7], line.get_xdata(), line.get_ydata()), value, rtol=1e-6)


def test_the_bound_is_drawn_where_there_is_one() -> None:
    """Not of a grid of guided cells alone."""
    read = configured()
    read["grid"] = read["grid"][-1:]
    assert "bound" in GRID.pictures and "bound" not in config.check(read).pictures
    assert ("likelihood", f"{NETWORK}/seed0") in Results(GRID, Layout(Path("unused"))).reads("figures")


def test_a_term_that_is_not_finite_is_left_out(layout: Layout, tmp_path: Path) -> None:  # noqa: F811
    """And so is a network that has diverged, whose table is empty."""
    for seed, text in enumerate(("term,first,last,bits_per_dim\n", "term,first,last,bits_per_dim\ndecoder,1,1,nan\n")):
        layout.output("likelihood", f"{NETWORK}/seed{seed}", "terms").write_text(text)
    curves.bound_figure(layout, GRID, tmp_path / "bound.png")
    drawn = (tmp_path / "bound.svg").read_text(encoding="utf-8")
    assert "learned · linear" in drawn and "eps · linear" not in drawn


# ---- training time ----------------------------------------------------------------------------------------


def two_networks() -> Grid:
    """The first two rows, and the same of a second architecture."""
    read = configured()
    read["networks"] = read.get("networks", {}) | {"wide": {"method": "mlp", "width": 12, "depth": 1}}
    read["grid"] = [read["grid"][0] | {"network": ["mlp", "wide"], "sampler": ["ddim"]}]
    return config.check(read)


def test_seconds_are_means_of_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot per row over its seeds' mean, its bar from the least to the most; drawn where networks differ in more than
    their objective, and again where a training took another time."""
    grid, made = two_networks(), Layout(tmp_path / "results")
    assert "seconds" in grid.pictures and "seconds" not in GRID.pictures
    for stage, name in grid.jobs:
        execute(stage, *grid.job(stage, name), made)
    names = [f"{NETWORK}/seed{seed}" for seed in (0, 1)] + [f"{NETWORK}/wide/seed{seed}" for seed in (0, 1)]
    for name, seconds in zip(names, (10.0, 30.0, 50.0, 70.0), strict=True):
        edit(made.record("train", name), lambda record, s=seconds: record["costs"].update(seconds=s))  # type: ignore[misc]
    kept: list = []
    monkeypatch.setattr(canvas, "save_figure", lambda figure, path: kept.append(figure))
    charts.seconds_figure(made, grid, "fid", "FID", tmp_path / "seconds.png")
    (axis,) = kept[0].axes
    dots = {float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "o"}
    ranges = {tuple(map(float, line.get_xdata())) for line in axis.lines if line.get_marker() == "None"}
    assert dots == {20.0, 60.0} and {(10.0, 30.0), (50.0, 70.0)} <= ranges
    assert sorted(text.get_text() for text in axis.texts) == ["mlp", "wide"]
    before = Results(grid, made).inputs("figures")
    edit(made.record("train", names[0]), lambda record: record["costs"].update(seconds=11.0))
    assert Results(grid, made).inputs("figures") != before


def test_the_pictures_read_all_whose_seconds_they_show() -> None:
    """What `Results.trained` sums is linked where pictures are drawn again."""
    assert set(TRAINED) <= set(AGGREGATES["figures"].reads)
