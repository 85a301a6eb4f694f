"""Heat maps of configurations: layers over steps, and directions that seeds share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd

from analyses import grassmann, kit
from analyses.kit.curves import thin
from subspace_lab.figures.heat_map import draw_heat_map, draw_named_heat_map

MAX_STEPS = 40  # columns of a map
PANEL_WIDTH = 1.5  # inches


def layers_over_steps(
    value: str,
    *,
    unit: str,
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
) -> kit.Plot:
    """Make a plot of a column by layer and step, the median over the layer's modules.

    Args:
        value: the column.
        unit: of the column.
        rows: selects the table's rows, at most one for each run, step and module.
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
    by = ["configuration", "run", "layer", "step"]
    medians = (
        known.groupby(by, observed=True, sort=False)[value].agg(["median", "size"]).reset_index()
    )
    by.remove("run")
    cells = medians.groupby(by, observed=True, sort=False).agg(
        value=("median", "mean"), modules=("size", "max"), seeds=("run", "nunique")
    )
    return cells.reset_index().astype({"configuration": str})


def _draw_layers(cells: pd.DataFrame, page: kit.Page, *, unit: str) -> None:
    names = list(dict.fromkeys(cells["configuration"]))
    height = min(2.6, max(1.45, 0.9 + 0.05 * cells["layer"].nunique()))
    axes = page.panels(names, row_height=height, panel_width=PANEL_WIDTH)
    limits = (float(cells["value"].min()), float(cells["value"].max()))
    for name, axis in axes.items():
        table = cells[cells["configuration"] == name].pivot_table(
            index="layer", columns="step", values="value"
        )
        image = draw_named_heat_map(axis, table, limits=limits)
        axis.set(xlabel="optimizer step", ylabel="layer")
        page.set_title(axis, name)
    page.figure.colorbar(image, ax=list(axes.values()), label=unit, aspect=30)


def seeds_overlap(side: str) -> kit.Plot:
    """Make a plot of the overlap of the update's directions between seeds.

    Args:
        side: row (input space) or column (output space).
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
    names = list(dict.fromkeys(means["configuration"]))
    axes = page.panels(names, row_height=1.8, panel_width=PANEL_WIDTH)
    for name, axis in axes.items():
        rows = means[means["configuration"] == name]
        image = draw_heat_map(axis, rows.pivot(index="i", columns="j", values="phi"))
        axis.set(xlabel="j, another seed", ylabel="i, one seed")
        page.set_title(axis, name)
    page.figure.colorbar(image, ax=list(axes.values()), label="overlap φ(i, j)", aspect=30)
