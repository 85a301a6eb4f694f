"""A figure of the report: vectors that fill the column, drawn anew for a phone's."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.figures.style import COLUMN_WIDTH, SETTINGS

PAGE_WIDTH = 6.9  # inches, of the page's column
PHONE = "40rem"  # of the window, up to which the figure of a paper's column is shown


def picture(plot: kit.Plot, shown: pd.DataFrame, *, things: Sequence[str], alternative: str) -> str:
    """Draw a figure for the page and for a phone, within the page.

    Args:
        plot: the figure.
        shown: the table of what it shows.
        things: runs or configurations in the order of their colors.
        alternative: what it shows, in words.
    """
    wide, narrow = (
        _vectors(plot.figure(shown, kit.Page(width=width, things=things)))
        for width in (PAGE_WIDTH, COLUMN_WIDTH)
    )
    return (
        f"<figure><picture><source media='(max-width: {PHONE})' srcset='{narrow}'>"
        f"<img alt='{html.escape(alternative, quote=True)}' src='{wide}'></picture></figure>"
    )


def _vectors(figure: Figure) -> str:
    """Give a figure as the address of an SVG; its letters are outlines, for want of fonts."""
    stream = io.BytesIO()
    with mpl.rc_context(SETTINGS | {"svg.fonttype": "path"}):
        Figure.savefig(figure, stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
