from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from subspace_lab.figures.categories import draw_by_category, pooled_note
from subspace_lab.figures.curves import (
    curves,
    draw_curves,
    draw_names,
    draw_prediction,
    looks,
    sample_note,
    thin,
)
from subspace_lab.figures.heat_map import draw_heat_map
from subspace_lab.figures.style import COLUMN_WIDTH, legend_below, new_figure, paper_style, save


def make_table(runs: dict[str, str | None], *, steps: int = 5, modules: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [list(runs), range(steps), [f"m{i}" for i in range(modules)]],
        names=["run", "step", "module"],
    )
    table = index.to_frame(index=False).assign(value=rng.normal(size=len(index)), expected=0.5)
    if all(runs.values()):
        table["configuration"] = table["run"].map(runs)
    return table


def test_one_run_is_median_and_quartiles_over_modules():
    table = make_table({"a": None})
    (curve,) = curves(table, "value")
    for step, *found in zip(curve.steps, curve.low, curve.centre, curve.high, strict=True):
        values = table.loc[table["step"] == step, "value"]
        assert found == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))


def test_several_runs_are_a_curve_each_without_a_band():
    table = make_table({"a": None, "b": None})
    found = curves(table, "value")
    assert [curve.group for curve in found] == ["a", "b"]
    assert all(np.isnan(curve.low).all() for curve in found)
    medians = table[table["run"] == "b"].groupby("step")["value"].median()
    assert found[1].centre == pytest.approx(medians.to_numpy())


def test_seeds_are_one_curve_with_the_t_interval_of_their_medians():
    table = make_table({"a": "x", "b": "x", "c": "x", "d": "y"})
    first, second = curves(table, "value")
    medians = table[table["run"] != "d"].groupby(["step", "run"])["value"].median().unstack()
    for place, step in enumerate(first.steps):
        truth = stats.ttest_1samp(medians.loc[step], 0).confidence_interval(0.95)
        assert (first.low[place], first.high[place]) == pytest.approx(tuple(truth))
    assert second.group == "y" and np.isnan(second.low).all()


def test_thinning_keeps_the_ends_and_whole_steps():
    table = make_table({"a": None}, steps=1000, modules=2)
    steps = thin(table, most=50)["step"]
    assert steps.nunique() == 50 and {0, 999} <= set(steps)
    assert steps.value_counts().eq(2).all()
    assert np.diff(np.unique(steps)).max() <= 21


def test_missing_values_leave_gaps_out():
    table = make_table({"a": None})
    table.loc[table["step"] == 2, "value"] = np.nan
    (curve,) = curves(table, "value")
    assert list(curve.steps) == [0, 1, 3, 4]


def test_looks_tell_all_curves_apart_and_count_seeds():
    table = make_table({"a": "x", "b": "x", "c": "y"})
    found = looks(table, {"update": "update", "masked": "masked update"})
    told = {(look["color"], str(look["linestyle"])) for look in found.values()}
    assert len(told) == 4
    assert found["x", "update"]["label"] == "x (2 seeds)"
    assert found["x", "masked"]["label"] is None
    alone = looks(make_table({"a": None}), {"update": "update"})
    assert alone["a", "update"]["label"] == "update"


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({"a": None}, ["a: median and quartiles", "7 modules"]),
        ({"a": None, "b": None}, ["2 runs", "median over 7"]),
        ({"a": "x", "b": "x"}, ["95 % interval over seeds"]),
    ],
)
def test_the_note_says_what_the_band_is(runs, words):
    note = sample_note(make_table(runs))
    assert all(word in note for word in words)


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_figures_are_one_column_wide_and_are_written(tmp_path, form):
    table = make_table({"a": "x", "b": "x", "c": "y"})
    with paper_style():
        figure, axes = new_figure(3)
        names = {"update": "update", "masked": "masked update"}
        for name in names:
            draw_curves(axes[0, 0], table, "value", name=name, looks=looks(table, names))
        draw_names(axes[0, 0], table, names)
        draw_prediction(axes[0, 0], table, "expected", label="theory")
        draw_by_category(axes[1, 0], table, "value", category="module")
        draw_heat_map(axes[2, 0], table.groupby(["step", "module"])["value"].mean().unstack())
        legend_below(figure, axes[:, 0])
    save(figure, tmp_path / "figure", format=form)
    start = (tmp_path / "figure").read_bytes()[:5]
    assert {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form] in start
    assert figure.get_figwidth() == COLUMN_WIDTH
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["x (2 seeds)", "y", "x", "update", "masked update", "theory"]


def test_heat_maps_have_the_first_row_on_top_on_one_scale():
    _, axes = new_figure(1)
    image = draw_heat_map(axes[0, 0], pd.DataFrame([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0.5, 3.5, 2.5, 0.5)
    assert image.get_clim() == (0, 1)


def test_categories_show_median_and_quartiles_of_all_modules():
    table = make_table({"a": "x", "b": "x", "c": "y"}, steps=1)
    _, axes = new_figure(1)
    draw_by_category(axes[0, 0], table, "value", category="module")
    middle = axes[0, 0].containers[0].lines[0].get_ydata()
    for module, found in zip(table["module"].unique(), middle, strict=True):
        rows = table[(table["module"] == module) & (table["configuration"] == "x")]
        assert found == pytest.approx(rows["value"].median())
    assert pooled_note(table) == "median and quartiles over 7 modules of 3 runs"


def test_a_legend_in_two_columns_has_colours_left_and_greys_right():
    table = make_table({"a": None, "b": None, "c": None})
    figure, axes = new_figure(1)
    draw_prediction(axes[0, 0], table, "expected", label="theory")
    draw_curves(axes[0, 0], table, "value", name="", looks=looks(table, {"": "value"}))
    legend_below(figure, axes[0, 0])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a", "b", "c", "theory", "", ""]
