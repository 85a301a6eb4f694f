"""Where modules differ: heat maps of layer by projection, and the modules with the highest values.

Drawn from a table with a row for each run or configuration and module: group, module, layer,
projection, place (1: the highest mean over groups), and the column of values.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from subspace_lab.figures.heat_map import draw_named_heat_map
from subspace_lab.figures.page import Page

HIGHEST = 6  # modules in the ranking
MAP_WIDTH = 1.5  # inches, at least


def draw_module_map(cells: pd.DataFrame, page: Page, *, value: str, title: str, unit: str) -> None:
    """Draw a heat map for each run or configuration on one scale, and a ranking of the modules.

    Args:
        cells: see above.
        page: where to draw.
        value: the column.
        title: what the values are.
        unit: their unit.
    """
    groups = list(dict.fromkeys(cells["group"]))
    layers = cells["layer"].nunique()
    ranking = f"highest of {cells['module'].nunique()} modules"
    height = min(2.6, max(1.45, 0.75 + 0.07 * layers))
    axes = page.panels([*groups, ranking], row_height=height, panel_width=MAP_WIDTH)
    maps = [name for name in groups if name in axes]
    limits = (float(cells[value].min()), float(cells[value].max()))
    columns = page.columns
    for place, name in enumerate(maps):
        table = cells[cells["group"] == name].pivot_table(
            index="layer", columns="projection", values=value, sort=False, observed=True
        )
        image = draw_named_heat_map(axes[name], table.sort_index(), limits=limits)
        if below := maps[place + columns : place + columns + 1]:
            axes[name].tick_params(labelbottom=not below)
        if place % columns == 0:
            axes[name].set_ylabel("layer")
        page.set_title(axes[name], name)
    if maps:
        page.figure.colorbar(image, ax=[axes[name] for name in maps], label=unit, aspect=30)
    if ranking in axes:
        _draw_ranking(axes[ranking], cells, page, value=value)
        axes[ranking].set_xlabel(unit)
        page.set_title(axes[ranking], ranking)
    page.title(
        f"{title}\n{int(cells['seeds'].max())} seeds, mean" if cells["seeds"].max() > 1 else title
    )
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
