"""Heat maps of tables: ranks against ranks, or layers against projections."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_numeric_dtype

from subspace_lab.figures.page import slant_names

MAX_LABELS, MAX_NUMBERS = 8, 5  # at an axis; of numbers side by side


def draw_heat_map(axes: Axes, values: pd.DataFrame) -> AxesImage:
    """Draw shares (rows, columns), the first row at the top, on the scale from 0 to 1.

    Args:
        axes: where to draw.
        values: a table whose index and columns are 1, 2, ...; nan stays blank.
    """
    image = _draw(axes, values, limits=(0.0, 1.0))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    return image


def draw_named_heat_map(
    axes: Axes, values: pd.DataFrame, *, limits: tuple[float, float]
) -> AxesImage:
    """Draw a table (rows, columns) with the names of its rows and columns, the first row on top.

    Args:
        axes: where to draw.
        values: the table; nan stays blank.
        limits: ends of the scale of colors.
    """
    image = _draw(axes, values, limits=limits)
    across = MAX_NUMBERS if is_numeric_dtype(values.columns) else MAX_LABELS
    for set_ticks, names, most in (
        (axes.set_yticks, values.index, MAX_LABELS),
        (axes.set_xticks, values.columns, across),
    ):
        every = -(-len(names) // most)
        places = range(1, len(names) + 1)[::every]
        set_ticks(list(places), [str(name) for name in names[::every]])
    slant_names(axes)
    return image


def _draw(axes: Axes, values: pd.DataFrame, *, limits: tuple[float, float]) -> AxesImage:
    rows, columns = values.shape
    image = axes.imshow(
        values.to_numpy(float),
        vmin=limits[0],
        vmax=limits[1],
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
    )
    axes.spines[["top", "right"]].set_visible(True)
    return image
