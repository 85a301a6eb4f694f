"""Names stand in figures as they are, whatever characters they hold."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.text import Text

from analyses import kit
from subspace_lab.figures.panels import Panel
from subspace_lab.figures.style import legend_below, new_figure, paper_style, save
from tests.figures.listing import drawn
from tests.figures.tables import make_table

NAMES = ["ba$$in", "r$_{x$", "$x$", "_old", "__", "_child", "a&b<c>", "100 %", "ü"]


@pytest.mark.parametrize("form", ["svg", "png"])
def test_names_stand_in_legend_and_title_as_they_are(tmp_path, form):
    table = make_table(dict.fromkeys(NAMES))
    panels = [Panel("value"), Panel("value", title="by name", by="name", over=None)]
    first = table["step"] == 0
    curves = kit.curves_of(panels[:1], table)
    points = kit.curves_of(panels[1:], table[first].assign(name=table["run"]))
    figure = drawn(pd.concat([curves, points]), *panels, title="r$_{x$")
    save(figure, tmp_path / f"figure.{form}", format=form)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts() if text.get_text()] == NAMES
    ticks = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert ticks == NAMES
    shown = [text for text in figure.findobj(Text) if "$" in text.get_text()]
    assert not any(text.get_parse_math() for text in shown)


def test_powers_of_ten_are_still_formulas(tmp_path):
    with paper_style():
        figure, axes = new_figure(1)
        axes[0, 0].plot([1, 2], [1e-3, 1e3], label="$x")
        axes[0, 0].set(yscale="log", ylabel="$y$ of a$b")
        save(figure, tmp_path / "figure.svg", format="svg")
    svg = (tmp_path / "figure.svg").read_text()
    assert "mathdefault" not in svg.partition("<g id=")[2].replace("<!--", "").split("$y$")[-1]
    ticks = [label for label in axes[0, 0].get_yticklabels() if "mathdefault" in label.get_text()]
    assert ticks and all(label.get_parse_math() for label in ticks)
    assert not axes[0, 0].yaxis.label.get_parse_math()


def test_what_has_no_label_is_not_in_the_legend():
    figure, axes = new_figure(1)
    axes[0, 0].plot([0, 1], [0, 1])
    axes[0, 0].errorbar([0, 1], [0, 1], yerr=[1, 1])
    axes[0, 0].fill_between([0, 1], [0, 1], [1, 2])
    axes[0, 0].vlines([0], [0], [1])
    legend_below(figure, axes[:, 0])
    assert not figure.legends
    axes[0, 0].errorbar([0, 1], [0, 1], yerr=[1, 1], label="points")
    legend_below(figure, axes[:, 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["points"]
