"""Where modules differ: the numbers behind the heat map of layers and projections."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd

from analyses.kit.analysis import Plot
from analyses.kit.curves import at_last_step, group_column
from subspace_lab.figures.heat_map import draw_module_map


def module_map(
    value: str,
    *,
    title: str,
    unit: str,
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
    name: str = "",
) -> Plot:
    """Make a plot of a column at each run's last step, module by module, with a ranking.

    `rows` selects the table's rows, at most one for each run, step and module. `name` is that of
    the column in the figure's table, where it is not `value`: what is ranked, relative to what.
    """
    name = name or value
    draw = functools.partial(draw_module_map, value=name, title=title, unit=unit)
    return Plot(draw, functools.partial(module_cells, value=value, rows=rows, name=name))


def module_cells(
    table: pd.DataFrame,
    *,
    value: str,
    rows: Callable[[pd.DataFrame], pd.DataFrame],
    name: str,
) -> pd.DataFrame:
    """Take the mean over seeds of each module's value at the last step, and rank the modules.

    Returns:
        A row for each group (run or configuration) and module: group, module, layer, projection,
        NAME (the value), seeds (runs behind it), place (1: the highest mean over groups). Empty
        where fewer than two modules have a value.
    """
    last = at_last_step(rows(table)).dropna(subset=value)
    if last["module"].nunique() < 2:
        return last[:0]
    by = [group_column(table), "module", "layer", "projection"]
    modules = last.groupby(by, observed=True, sort=False)
    cells = modules[value].agg(["mean", "size"]).reset_index()
    cells = cells.rename(columns={by[0]: "group", "mean": name, "size": "seeds"})
    cells = cells.astype(dict.fromkeys(["group", "module", "projection"], str))
    means = cells.groupby("module")[name].mean().sort_values(ascending=False, kind="stable")
    return cells.assign(place=1 + means.index.get_indexer(pd.Index(cells["module"])))
