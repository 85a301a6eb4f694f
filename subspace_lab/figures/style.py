"""One style for all figures: one paper column wide, legible in print, safe for color-blind readers.

Figures are made without pyplot's global state, so that they work alike in scripts, notebooks and
threads.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
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
SCREEN_DOTS_PER_INCH = 150

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/) but for its yellow, too pale for lines;
# in an order in which neighbors differ in lightness, so that they differ in grey.
PALETTE = ("#0072B2", "#E69F00", "#000000", "#CC79A7", "#D55E00", "#56B4E9", "#009E73")
LINES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
PREDICTION: dict[str, Any] = {"color": "0.35", "linestyle": (0, (1, 1)), "linewidth": 1.2}
REFERENCE: dict[str, Any] = {"color": "0.6", "linestyle": "-", "linewidth": 1.2}

LegendHandle = Artist | Container

# What matplotlib writes of the time into a file, left out.
_UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

# Labels that matplotlib makes up; other names may begin with an underscore, too.
_NO_LABEL = re.compile(r"_(child|container)\d+|_nolegend_|")
_GREY = re.compile(r"0?\.\d+")

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
    "svg.hashsalt": "subspace_lab",  # names of elements are otherwise drawn at random
}


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """Make and draw figures in the shared style; other figures keep their own."""
    with mpl.rc_context(SETTINGS):
        yield


class PaperFigure(Figure):
    """A figure that is written alike wherever it is saved, in the shared style.

    Its PDF fonts are TrueType, the same drawing gives the same bytes, and its texts stand as they
    are: a `$` in a run's name does not begin a formula.
    """

    def savefig(self, fname: Any, **settings: Any) -> None:
        """Write the figure, as matplotlib does, in the shared style and without a date."""
        form = settings.get("format") or Path(str(fname)).suffix[1:]
        defaults = {"dpi": DOTS_PER_INCH, "metadata": _UNDATED.get(form)}
        with paper_style():
            super().savefig(fname, **(defaults | settings))

    def _repr_png_(self) -> bytes:
        """What a notebook shows: matplotlib shows only figures of pyplot there."""
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=SCREEN_DOTS_PER_INCH)
        return png.getvalue()

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
    rows: int,
    columns: int = 1,
    *,
    width: float = COLUMN_WIDTH,
    row_height: float = 1.3,
    share_x: bool = True,
) -> tuple[Figure, np.ndarray[Any, np.dtype[np.object_]]]:
    """Make a figure with a grid of axes (rows, columns), of sizes in inches.

    `page.VENUES` has the widths of conferences. With `share_x` the axes of a column share the
    horizontal axis.
    """
    with paper_style():
        figure = PaperFigure(figsize=(width, rows * row_height), layout="constrained")
        axes = figure.subplots(rows, columns, sharex="col" if share_x else "none", squeeze=False)
    return figure, axes


def step_axis(axes: Axes, *, label: str = "optimizer step", ticks: int = 6) -> None:
    """Label the horizontal axis as optimizer steps, or others that are whole numbers."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))


CHARACTER_WIDTH, HANDLE_WIDTH, LINE_HEIGHT = 0.055, 0.45, 0.14  # of a legend, inches, on average


@paper_style()
def legend_below(figure: Figure, axes: Axes | Iterable[Axes], *, columns: int = 2) -> None:
    """Draw one legend under the figure, of the labels in all given axes, each once.

    In two columns, what colors tell apart, such as runs, stands left, and what lines in grey tell
    stands right. Long labels, of which two do not fit beside each other, stand in one column, and
    are broken where they do not fit one.
    """
    entries = legend_entries(axes)
    if not entries:
        return
    colored = [entry for entry in entries if _is_colored(entry[1])]
    grey = [entry for entry in entries if entry not in colored]
    longest = [max((len(label) for label, _ in part), default=0) for part in (colored, grey)]
    characters = sum(longest) if all(longest) else 2 * max(longest)
    if columns == 2 and CHARACTER_WIDTH * characters + 2 * HANDLE_WIDTH > figure.get_figwidth():
        columns = 1
    if columns == 2 and colored and grey:
        blank = [("", Line2D([], [], linestyle=""))]
        more = len(colored) - len(grey)
        entries = [*colored, *blank * -more, *grey, *blank * more]
    labels = [label for label, _ in entries]
    if columns == 1:
        labels = broken_labels(entries, figure.get_figwidth())
    rows = -(-len(entries) // columns) + sum(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * rows + 0.08)
    handles = [handle for _, handle in entries]
    figure.legend(handles=handles, labels=labels, loc="outside lower center", ncols=columns)


def legend_entries(axes: Axes | Iterable[Axes]) -> list[tuple[str, LegendHandle]]:
    """List the labels in all given axes, each once, with what they name."""
    named: dict[str, LegendHandle] = {}
    for panel in [axes] if isinstance(axes, Axes) else axes:
        # Not get_legend_handles_labels, which leaves out names that begin with an underscore.
        handles: list[LegendHandle] = [*panel.lines, *panel.patches, *panel.collections]
        for handle in [*handles, *panel.containers]:
            label = str(handle.get_label() or "")
            if not _NO_LABEL.fullmatch(label):
                named.setdefault(label, handle)
    return list(named.items())


def broken_labels(entries: Iterable[tuple[str, LegendHandle]], width: float) -> list[str]:
    """Break the labels of a legend into lines that fit a column of a width, in inches."""
    fitting = int((width - HANDLE_WIDTH) / CHARACTER_WIDTH)
    return [broken(label, fitting) for label, _ in entries]


def broken(text: str, most: int) -> str:
    """Break a text into lines of at most so many characters; a number stays beside its word.

    >>> print(broken("step mask, keep_prob 0.5", 22))
    step mask,
    keep_prob 0.5
    """
    joined = re.sub(r" (?=\d)", "\xa0", text)
    return textwrap.fill(joined, most).replace("\xa0", " ")


def _is_colored(handle: LegendHandle) -> bool:
    """Tell lines in a color, or in a palette's black, from those in a grey and from areas."""
    line = handle[0] if isinstance(handle, Container) else handle
    return isinstance(line, Line2D) and not _GREY.fullmatch(str(line.get_color()))


def save(figure: Figure, path: Path, *, format: str) -> None:  # noqa: A002 (matplotlib's word)
    """Write any figure of matplotlib's as `png`, `pdf` or `svg`, as `PaperFigure` does."""
    with paper_style():
        figure.savefig(path, format=format, dpi=DOTS_PER_INCH, metadata=_UNDATED.get(format))
