"""The legend's columns."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from subspace_lab.figures.style import (
    PALETTE,
    legend_below,
    new_figure,
    paper_style,
)

LONG = "method droplora, learning_rate 0.004, granularity token"


def legend_of(name: str) -> Figure:
    with paper_style():
        figure, axes = new_figure(1)
        axes[0, 0].plot([0, 1], [0, 1], color=PALETTE[0], label=name)
        axes[0, 0].plot([0, 1], [1, 0], color="0.3", label="interchangeable")
        legend_below(figure, axes[:, 0])
        figure.canvas.draw()
    return figure


@pytest.mark.parametrize(("name", "columns"), [("lora", 2), (LONG, 1)])
def test_a_legend_fits_the_figure(name, columns):
    figure = legend_of(name)
    (legend,) = figure.legends
    assert legend._ncols == columns
    assert legend.get_window_extent().width <= figure.bbox.width
