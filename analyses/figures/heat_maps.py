"""Heat maps of configurations: layers over steps, and directions that seeds share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from analyses import grassmann, kit
from analyses.kit.curves import thin
from subspace_lab.figures.heat_map import draw_heat_map, draw_named_heat_map

MAX_STEPS = 40  # columns of a map
PANEL_WIDTH = 1.5  # inches


def layers_over_steps(
    value: str, *, unit: str, rows: Callable[[pd.DataFrame], pd.DataFrame]
) -> kit.Plot:
    """Make a plot of a column by layer and step, the median over the layer's modules.

    `rows` selects the table's rows, at most one for each run, step and module.
    """
    draw = functools.partial(_draw_layers, unit=unit)
    return kit.Plot(draw, functools.partial(layer_cells, value=value, rows=rows))


def layer_cells(
    table: pd.DataFrame, *, value: str, rows: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Take each layer's median over modules at each step, and its mean over seeds.

    Returns:
        Columns configuration, layer, step, value, modules (of a layer, at most) and seeds. Empty
        where there is no second layer or step.
    """
    known = thin(rows(table).dropna(subset=[value]), most=MAX_STEPS)
    if known["layer"].nunique() < 2 or known["step"].nunique() < 2:
        return known[:0]
    by = ["configuration", "layer", "step"]
    of_runs = known.groupby([*by, "run"], observed=True, sort=False)[value]
    medians = of_runs.agg(["median", "size"]).groupby(by, observed=True, sort=False)
    cells = medians.agg(value=("median", "mean"), modules=("size", "max"), seeds=("size", "size"))
    return cells.reset_index().astype({"configuration": str})


def _draw_layers(cells: pd.DataFrame, page: kit.Page, *, unit: str) -> None:
    height = min(2.6, max(1.45, 0.9 + 0.05 * cells["layer"].nunique()))
    limits = (float(cells["value"].min()), float(cells["value"].max()))

    def draw(axis: Axes, rows: pd.DataFrame) -> AxesImage:
        table = rows.pivot_table(index="layer", columns="step", values="value")
        axis.set(xlabel="optimizer step", ylabel="layer")
        return draw_named_heat_map(axis, table, limits=limits)

    _draw_maps(cells, page, draw, row_height=height, label=unit)


def _draw_maps(
    cells: pd.DataFrame,
    page: kit.Page,
    draw: Callable[[Axes, pd.DataFrame], AxesImage],
    *,
    row_height: float,
    label: str,
) -> None:
    """Draw a map of each configuration, with the scale of colors that they share."""
    names = list(dict.fromkeys(cells["configuration"]))
    axes = page.panels(names, row_height=row_height, panel_width=PANEL_WIDTH)
    for name, axis in axes.items():
        image = draw(axis, cells[cells["configuration"] == name])
        page.set_title(axis, name)
    page.figure.colorbar(image, ax=list(axes.values()), label=label, aspect=30)


def seeds_overlap(side: str) -> kit.Plot:
    """Make a plot of the overlap of the update's directions between seeds.

    The `side` is row (input space) or column (output space).
    """
    return kit.Plot(_draw_overlaps, functools.partial(overlap_means, side=side))


def overlap_means(table: pd.DataFrame, *, side: str) -> pd.DataFrame:
    """Average the overlaps of the update's directions over modules and pairs of seeds.

    Returns:
        Columns configuration, i, j, phi, null_phi, modules, pairs.
    """
    rows = table[(table["matrix"] == "update") & (table["side"] == side)]
    of_pairs = [
        grassmann.means(of_one).assign(configuration=str(name))
        for name, of_one in rows.groupby("configuration", sort=False, observed=True)
    ]
    means = pd.concat(of_pairs, ignore_index=True)
    groups = means.groupby(["configuration", "i", "j"], sort=False)
    return groups.agg(
        phi=("phi", "mean"), null_phi=("null_phi", "mean"), modules=("modules", "max"),
        pairs=("phi", "size"),
    ).reset_index()  # fmt: skip


def _draw_overlaps(means: pd.DataFrame, page: kit.Page) -> None:
    def draw(axis: Axes, rows: pd.DataFrame) -> AxesImage:
        axis.set(xlabel="j, another seed", ylabel="i, one seed")
        return draw_heat_map(axis, rows.pivot(index="i", columns="j", values="phi"))

    _draw_maps(means, page, draw, row_height=1.8, label="overlap φ(i, j)")
