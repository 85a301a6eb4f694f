"""Heat maps of tables: ranks against ranks, or layers against projections.

Where modules differ, the modules with the highest values stand beside the maps.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from pandas.api.types import is_numeric_dtype

from subspace_lab.figures.page import Page, slant_names

MAX_LABELS, MAX_NUMBERS = 8, 5  # at an axis; of numbers side by side
HIGHEST = 6  # modules in the ranking
MAP_WIDTH = 1.5  # inches, at least


def draw_heat_map(axes: Axes, values: pd.DataFrame) -> AxesImage:
    """Draw shares (rows, columns), the first row at the top, on the scale from 0 to 1.

    The table's index and columns are 1, 2, ...; nan stays blank.
    """
    image = _draw(axes, values, limits=(0.0, 1.0))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    return image


def draw_named_heat_map(
    axes: Axes, values: pd.DataFrame, *, limits: tuple[float, float]
) -> AxesImage:
    """Draw a table (rows, columns) with the names of its rows and columns, the first row on top.

    `limits` are the ends of the scale of colors; nan stays blank.
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


def draw_module_map(cells: pd.DataFrame, page: Page, *, value: str, title: str, unit: str) -> None:
    """Draw a heat map for each run or configuration on one scale, and a ranking of the modules.

    The cells have a row for each run or configuration and module: group, module, layer, projection,
    place (1: the highest mean over groups), and the column of values that `value` names.
    """
    groups = list(dict.fromkeys(cells["group"]))
    ranking = f"highest of {cells['module'].nunique()} modules"
    height = min(2.6, max(1.45, 0.75 + 0.07 * cells["layer"].nunique()))
    axes = page.panels([*groups, ranking], row_height=height, panel_width=MAP_WIDTH)
    maps = [name for name in groups if name in axes]
    limits = (float(cells[value].min()), float(cells[value].max()))
    columns = page.columns
    for place, name in enumerate(maps):
        table = cells[cells["group"] == name].pivot_table(
            index="layer", columns="projection", values=value, sort=False, observed=True
        )
        image = draw_named_heat_map(axes[name], table.sort_index(), limits=limits)
        if place + columns < len(maps):  # a map below has the same projections
            axes[name].tick_params(labelbottom=False)
        if place % columns == 0:
            axes[name].set_ylabel("layer")
        page.set_title(axes[name], name)
    if maps:
        page.figure.colorbar(image, ax=[axes[name] for name in maps], label=unit, aspect=30)
    if ranking in axes:
        _draw_ranking(axes[ranking], cells, page, value=value)
        axes[ranking].set_xlabel(unit)
        page.set_title(axes[ranking], ranking)
    seeds = int(cells["seeds"].max())
    page.title(f"{title}\n{seeds} seeds, mean" if seeds > 1 else title)
    page.legend({name: axes[name] for name in axes if name == ranking})


def _draw_ranking(axes: Axes, cells: pd.DataFrame, page: Page, *, value: str) -> None:
    shown = cells[cells["place"] <= HIGHEST]
    for group, rows in shown.groupby("group", sort=False):
        axes.plot(rows[value], rows["place"], linestyle="", label=group, **page.style(str(group)))
    first = shown.drop_duplicates("place").sort_values("place")
    names = [
        projection if layer < 0 else f"{layer} {projection}"
        for layer, projection in zip(first["layer"], first["projection"], strict=True)
    ]
    axes.set_yticks(first["place"], names, fontsize=6)
    axes.set_ylim(first["place"].max() + 0.6, 0.4)
    axes.grid(axis="y", color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)
