"""Sizes, axes of one's own, colors that stay, and files that are the same and legible."""

from __future__ import annotations

import io
import re
import zlib

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from analyses import kit
from subspace_lab.errors import UserError
from subspace_lab.figures.page import VENUES, Page
from subspace_lab.figures.style import PALETTE, legend_below, new_figure, save
from tests.figures.listing import drawn
from tests.figures.tables import make_table

PANELS = (kit.Panel("value", title="one"), kit.Panel("expected", title="two"))


def curves(*runs: str) -> pd.DataFrame:
    return kit.curves_of(PANELS, make_table(dict.fromkeys(runs)))


@pytest.mark.parametrize(("venue", "columns"), [("acl", 1), ("icml-two-columns", 2)])
def test_a_figure_has_the_venues_width_and_as_many_columns_as_fit(venue, columns):
    figure = drawn(curves("a"), *PANELS, width=VENUES[venue], titled=False)
    assert figure.get_figwidth() == VENUES[venue]
    assert figure.axes[0].get_subplotspec().get_gridspec().ncols == columns
    assert figure.get_suptitle() == ""
    figure.canvas.draw()
    for axes in figure.axes:
        title = next(text for text in (axes._left_title, axes.title) if text.get_text())
        assert title.get_window_extent().x1 <= figure.bbox.x1


def test_panels_go_into_axes_of_ones_own_without_title_and_legend():
    figure, own = plt.subplots(1, 2)
    assert drawn(curves("a", "b"), *PANELS, axes=own) is figure
    assert [axes.get_title(loc="left") + axes.get_title() for axes in own] == ["one", "two"]
    assert figure.get_suptitle() == "" and not figure.legends
    plt.close(figure)
    figure, single = new_figure(1)
    drawn(curves("a", "b"), *PANELS, axes={"two": single[0, 0]})
    assert len(single[0, 0].lines) == 2
    legend_below(figure, single[0, 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_axes_that_are_not_the_figures_are_refused():
    _, own = new_figure(1)
    with pytest.raises(UserError, match="1 axes were given for 2 panels"):
        drawn(curves("a"), *PANELS, axes=own[0, 0])
    with pytest.raises(UserError, match="no panel 'three': choose among 'one', 'two'"):
        drawn(curves("a"), *PANELS, axes={"three": own[0, 0]})
    with pytest.raises(UserError, match="nothing that this figure draws"):
        drawn(curves("a")[:0], *PANELS)


def test_a_thing_keeps_its_color_in_figures_that_lack_others():
    things = ("a", "b", "c")
    for runs in (("a", "b", "c"), ("b", "c"), ("c",)):
        lines = drawn(curves(*runs), *PANELS, things=things).axes[0].lines
        found = {line.get_label(): line.get_color() for line in lines}
        assert found == {run: PALETTE[things.index(run)] for run in runs}
    page = Page()
    assert [page.style(name)["color"] for name in ("x", "y", "x")] == [*PALETTE[:2], PALETTE[0]]


def lightness(color: str) -> float:
    """Relative luminance to CIELAB's L*, 0 to 100."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(116 * np.cbrt(max(linear @ [0.2126, 0.7152, 0.0722], 0.008856)) - 16)


def test_neighbors_differ_in_lightness_and_curves_in_more_than_color():
    light = [lightness(color) for color in PALETTE]
    assert np.abs(np.diff(light)).min() > 6
    runs = [f"run {i}" for i in range(6)]
    table = make_table(dict.fromkeys(runs), steps=40)
    lines = drawn(kit.curves_of(PANELS[:1], table), PANELS[0]).axes[0].lines
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(runs)
    assert len({line.get_marker() for line in lines}) == len(runs)
    assert len({line.get_markevery().start for line in lines}) == len(runs)


def test_pdf_fonts_are_truetype_and_the_same_table_gives_the_same_bytes(tmp_path):
    def written(form: str) -> bytes:
        stream = io.BytesIO()
        drawn(curves("a"), *PANELS).savefig(stream, format=form)
        return stream.getvalue()

    for form in ("pdf", "svg", "png"):
        assert written(form) == written(form)
    streams = re.findall(rb"stream\r?\n(.*?)endstream", written("pdf"), re.DOTALL)
    assert any(b"glyf" in zlib.decompress(part)[:2000] for part in streams if part[:1] == b"\x78")
    drawn(curves("a"), *PANELS).savefig(tmp_path / "by-name.pdf")
    figure, axes = plt.subplots()
    axes.set_title("text")
    save(figure, tmp_path / "of-pyplot.pdf", format="pdf")
    plt.close(figure)
    for path in tmp_path.iterdir():
        assert b"/FontFile2" in path.read_bytes() and b"/Type3" not in path.read_bytes()


def test_wide_intervals_do_not_flatten_the_curves():
    table = make_table({"a": "x", "b": "x", "c": "y"})
    table["value"] = table["step"] + table["run"].map({"a": -40.0, "b": 40.0, "c": 0.0})
    low, high = drawn(kit.curves_of(PANELS[:1], table), PANELS[0]).axes[0].get_ylim()
    assert low <= 0 and high >= 4 and high - low < 8


def test_a_prediction_that_all_runs_share_is_drawn_once():
    panel = kit.Panel("value", expected="expected")

    def predictions(table: pd.DataFrame) -> list[object]:
        axes = drawn(kit.curves_of([panel], table), panel).axes[0]
        drawn_lines = [line for line in axes.lines if len(line.get_xdata())]
        return [line.get_color() for line in drawn_lines if line.get_linewidth() == 1.2]

    table = make_table({"a": None, "b": None})
    assert predictions(table) == ["0.35"]
    other = table["expected"].where(table["run"] == "a", 0.25)
    assert predictions(table.assign(expected=other)) == list(PALETTE[:2])
