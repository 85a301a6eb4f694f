"""One style for all figures: one paper column wide, legible in print, safe for color-blind readers.

Figures are made without pyplot's global state, so that they work alike in scripts, notebooks and
threads.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator, ScalarFormatter

COLUMN_WIDTH = 3.3  # inches
DOTS_PER_INCH = 300

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) but for its yellow, too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PREDICTION: dict[str, Any] = {"color": "0.35", "linestyle": (0, (1, 1)), "linewidth": 1.2}

LegendHandle = Artist | Container

# Labels that matplotlib makes up; other names may begin with an underscore, too.
_NO_LABEL = re.compile(r"_(child|container)\d+|_nolegend_|")

SETTINGS: Any = {  # matplotlib's own type lists all its keys
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "image.cmap": "viridis",
    "pdf.fonttype": 42,  # TrueType, so that text in the PDF stays text
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """Make and draw figures in the shared style; other figures keep their own."""
    with mpl.rc_context(SETTINGS):
        yield


class PlainTextFigure(Figure):
    """A figure whose texts stand as they are: a `$` in a run's name does not begin a formula."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure; only the numbers at ticks may be formulas, such as powers of ten."""
        numbers: set[Artist] = set()
        for axis in self.findobj(Axis):
            if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter):
                numbers |= {*axis.findobj(Text)} - {axis.label}
        for text in self.findobj(Text):
            text.set_parse_math(text in numbers)
        super().draw(renderer)


def new_figure(
    rows: int, columns: int = 1, *, row_height: float = 1.3, share_x: bool = True
) -> tuple[Figure, np.ndarray[Any, np.dtype[np.object_]]]:
    """Make a figure one column wide with a grid of axes (rows, columns).

    Args:
        rows: rows of axes.
        columns: columns of axes.
        row_height: height of a row, in inches.
        share_x: whether the axes of a column share the horizontal axis.
    """
    figure = PlainTextFigure(figsize=(COLUMN_WIDTH, rows * row_height), layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col" if share_x else "none", squeeze=False)
    return figure, axes


def step_axis(axes: Axes, *, label: str = "optimizer step") -> None:
    """Label the horizontal axis as optimizer steps, or others that are whole numbers."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


CHARACTER_WIDTH, HANDLE_WIDTH = 0.055, 0.4  # of a legend, in inches, on average


def legend_below(figure: Figure, axes: Axes | Iterable[Axes], *, columns: int = 2) -> None:
    """Draw one legend under the figure, of the labels in all given axes, each once.

    In two columns, what colors tell apart, such as runs, stands left, and what lines in grey tell
    stands right. Long labels, of which two do not fit beside each other, stand in one column.
    """
    named: dict[str, LegendHandle] = {}
    for panel in [axes] if isinstance(axes, Axes) else axes:
        # Not get_legend_handles_labels, which leaves out names that begin with an underscore.
        handles: list[LegendHandle] = [*panel.lines, *panel.patches, *panel.collections]
        for handle in [*handles, *panel.containers]:
            label = str(handle.get_label() or "")
            if not _NO_LABEL.fullmatch(label):
                named.setdefault(label, handle)
    if not named:
        return
    entries = list(named.items())
    colored = [entry for entry in entries if _color(entry[1]) in PALETTE]
    grey = [entry for entry in entries if entry not in colored]
    longest = [max((len(label) for label, _ in part), default=0) for part in (colored, grey)]
    characters = sum(longest) if all(longest) else 2 * max(longest)
    width = CHARACTER_WIDTH * characters + 2 * HANDLE_WIDTH
    if columns == 2 and width > figure.get_figwidth():
        columns = 1
    if columns == 2 and colored and grey:
        blank = [("", Line2D([], [], linestyle=""))]
        more = len(colored) - len(grey)
        entries = [*colored, *blank * -more, *grey, *blank * more]
    height = 0.14 * -(-len(entries) // columns) + 0.08
    figure.set_figheight(figure.get_figheight() + height)
    figure.legend(
        handles=[handle for _, handle in entries],
        labels=[label for label, _ in entries],
        loc="outside lower center",
        ncols=columns,
    )


def _color(handle: LegendHandle) -> object:
    line = handle[0] if isinstance(handle, Container) else handle
    return line.get_color() if isinstance(line, Line2D) else None


def save(figure: Figure, path: Path, *, format: str) -> None:  # noqa: A002 (matplotlib's word)
    """Write a figure as `png`, `pdf` or `svg`."""
    with paper_style():
        figure.savefig(path, format=format, dpi=DOTS_PER_INCH)
