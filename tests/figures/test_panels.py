from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyses import kit
from subspace_lab.figures.curves import curve_styles
from subspace_lab.figures.heat_map import draw_heat_map, draw_named_heat_map
from subspace_lab.figures.page import Page
from subspace_lab.figures.panels import Panel, sample_note
from subspace_lab.figures.style import COLUMN_WIDTH, REFERENCE, new_figure, save
from tests.figures.listing import drawn
from tests.figures.tables import make_table

PANEL = Panel("value", by="kind", labels={"u": "update", "m": "masked update"}, expected="expected")


def curves_of(runs: dict[str, str | None], **arguments: int) -> pd.DataFrame:
    table = make_table(runs, **arguments)
    return kit.curves_of([PANEL], pd.concat([table.assign(kind="u"), table.assign(kind="m")]))


def test_styles_tell_all_curves_apart_and_count_seeds():
    styles = curve_styles(curves_of({"a": "x", "b": "x", "c": "y"}), Page())
    assert len({(style["color"], str(style["linestyle"])) for style in styles.values()}) == 4
    assert styles["x", "update"]["label"] == "x (2 seeds)"
    assert styles["y", "update"]["label"] == "y"
    alone = curve_styles(curves_of({"a": None}), Page())
    assert alone["a", "update"]["label"] == "update"


def test_runs_with_one_curve_each_differ_in_their_dashes_too():
    table = make_table({"a": None, "b": None})
    styles = curve_styles(kit.curves_of([Panel("value")], table), Page())
    assert len({str(style["linestyle"]) for style in styles.values()}) == 2


@pytest.mark.parametrize(
    ("runs", "steps", "words"),
    [
        ({"a": None}, 5, ["a: median and quartiles", "7 modules"]),
        ({"a": None, "b": None}, 5, ["2 runs: median over 7"]),
        ({"a": None, "b": None}, 1, ["2 runs: median and quartiles over 7"]),
        ({"a": "x", "b": "x"}, 5, ["95 % t interval over seeds"]),
    ],
)
def test_the_note_says_what_the_band_is(runs, steps, words):
    note = sample_note(curves_of(runs, steps=steps))
    assert all(word in note for word in words)


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
@pytest.mark.parametrize("steps", [1, 5])
def test_figures_are_one_column_wide_and_are_written(tmp_path, form, steps):
    figure = drawn(curves_of({"a": "x", "b": "x", "c": "y"}, steps=steps), PANEL)
    save(figure, tmp_path / "figure", format=form)
    start = (tmp_path / "figure").read_bytes()[:5]
    assert {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form] in start
    assert figure.get_figwidth() == COLUMN_WIDTH
    labels = [text.get_text() for text in figure.legends[0].get_texts() if text.get_text()]
    dashes = ["predicted", "update", "masked update"] if steps > 1 else ["predicted"]
    assert labels == ["x (2 seeds)", "y", *dashes]


def test_points_show_median_and_quartiles_of_all_modules():
    table = make_table({"a": None, "b": None}, steps=1)
    panel = Panel("value", over=None)
    figure = drawn(kit.curves_of([panel], table), panel)
    for container, (_, rows) in zip(figure.axes[0].containers, table.groupby("run"), strict=True):
        assert container.lines[0].get_ydata() == pytest.approx(rows["value"].median())


def test_heat_maps_have_the_first_row_on_top_on_one_scale():
    _, axes = new_figure(1)
    image = draw_heat_map(axes[0, 0], pd.DataFrame([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0.5, 3.5, 2.5, 0.5)
    assert image.get_clim() == (0, 1)


def test_a_legend_in_two_columns_has_colors_left_and_greys_right():
    table = make_table({"a": None, "b": None, "c": None})
    panel = Panel("value", expected="expected", expected_label="theory")
    figure = drawn(kit.curves_of([panel], table), panel)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a", "b", "c", "theory", "", ""]


def test_a_reference_has_a_style_of_its_own_in_panel_and_legend():
    table = make_table({"a": None})
    panel = Panel("value", expected="expected", expected_label="base", expected_style=REFERENCE)
    figure = drawn(kit.curves_of([panel], table), panel)
    (axis,) = figure.axes
    references = [line for line in axis.lines if line.get_color() == REFERENCE["color"]]
    assert [len(line.get_xdata()) > 0 for line in references] == [True, False]  # line, legend entry
    assert {line.get_linestyle() for line in references} == {"-"}


@pytest.mark.parametrize(
    ("columns", "slanted"),
    [([0, 14, 28], False), ([100_000, 200_000, 300_000, 400_000, 500_000], True)],
)
def test_names_at_a_heat_map_are_slanted_only_where_they_would_touch(columns, slanted):
    _, axes = new_figure(1, columns=2)
    table = pd.DataFrame([np.linspace(0, 1, len(columns))], columns=columns)
    draw_named_heat_map(axes[0, 0], table, limits=(0, 1))
    labels = axes[0, 0].get_xticklabels()
    assert [label.get_text() for label in labels] == [str(step) for step in columns]
    assert all((label.get_rotation() > 0) == slanted for label in labels)
