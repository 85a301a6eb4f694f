"""What a figure shows, as text: axes, artists with their data, labels and colors.

A baseline is the text of a figure whose numbers are given, so it does not depend on the machine.

    python -m tests.figures.listing     # writes the baselines anew: look at the difference
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses import kit
from subspace_lab.figures.page import Page
from subspace_lab.figures.panels import draw_panels

BASELINES = Path(__file__).parent / "baselines"


def drawn(curves: pd.DataFrame, *panels: kit.Panel, title: str = "T", **page: Any) -> Figure:
    """Draw a table of curves."""

    def draw(table: pd.DataFrame, page: Page) -> None:
        draw_panels(table, page, panels=panels, title=title)

    return kit.Plot(draw)(curves, **page)


def listing(figure: Figure) -> str:
    """List what a figure shows, a line for each artist."""
    size = " x ".join(f"{inches:.2f}" for inches in figure.get_size_inches())
    lines = [f"figure {size} in: {figure.get_suptitle()!r}"]
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            lines += ["", *_axes(axes)]
    for legend in [*figure.legends, *filter(None, [axes.get_legend() for axes in figure.axes])]:
        lines += ["", "legend: " + "; ".join(text.get_text() for text in legend.get_texts())]
    return "\n".join(lines) + "\n"


def _axes(axes: Axes) -> Iterator[str]:
    yield f"axes {axes.get_title() or axes.get_title(loc='left')!r}"
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        ends = " to ".join(f"{end:.3g}" for end in axis.get_view_interval())
        yield f"  {name}: {axis.get_label_text()!r}, {axis.get_scale()}, {ends}"
    for line in axes.lines:
        yield f"  line{_label(line)}, {_style(line)}: {_points(line.get_xydata())}"
    for part in axes.collections:
        kind = "bars" if isinstance(part, LineCollection) else "area"
        colors = part.get_edgecolor() if kind == "bars" else part.get_facecolor()
        paths = " | ".join(_points(path.vertices) for path in part.get_paths())
        yield f"  {kind}{_label(part)}, {to_hex(colors[0])}: {paths}"
    for image in axes.images:
        ends = " to ".join(f"{end:.3g}" for end in image.get_clim())
        yield f"  image, {ends}: {_points(np.asarray(image.get_array(), float))}"
    for text in axes.texts:
        yield f"  text {text.get_text()!r}"


def _label(artist: Artist) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else f" {label!r}"


def _style(line: Line2D) -> str:
    """Name color, dashes (on and off, in points), marker, and which points have one."""
    dashes = line._unscaled_dash_pattern[1]  # get_linestyle calls all own dashes "--"
    every = line.get_markevery()
    marked = f" from {every.start} every {every.step}" if isinstance(every, slice) else ""
    return (
        f"{to_hex(line.get_color())}, {dashes or line.get_linestyle()}, {line.get_marker()}{marked}"
    )


def _points(values: Any) -> str:
    rows = np.atleast_2d(np.asarray(values, float))
    return " ".join(",".join(f"{number:.3g}" for number in row) for row in rows)


if __name__ == "__main__":
    from tests.figures.test_baselines import FIGURES

    for name, make in FIGURES.items():
        (BASELINES / f"{name}.txt").write_text(listing(make()), encoding="utf-8")
