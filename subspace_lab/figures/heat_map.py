"""Heat maps of tables whose rows and columns are numbered from 1."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator


def draw_heat_map(axes: Axes, values: pd.DataFrame) -> AxesImage:
    """Draw shares (rows, columns), the first row at the top, on the scale from 0 to 1.

    Args:
        axes: where to draw.
        values: a table whose index and columns are 1, 2, ...; nan stays blank.
    """
    rows, columns = values.shape
    image = axes.imshow(
        values.to_numpy(),
        vmin=0.0,
        vmax=1.0,
        extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        aspect="auto",
        interpolation="nearest",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(True)
    return image
