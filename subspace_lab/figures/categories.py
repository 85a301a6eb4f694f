"""Values by category, such as by projection: median with quartiles, side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from subspace_lab.figures.curves import group_column, groups
from subspace_lab.figures.style import MARKERS, PALETTE


def draw_by_category(axes: Axes, table: pd.DataFrame, value: str, *, category: str) -> None:
    """Draw median and quartiles of column `value` by category, for each run or configuration.

    Colours are those of `curves.looks` for several runs; one run is drawn in grey.

    Args:
        axes: where to draw; its horizontal axis is labelled by the categories.
        table: one row per value.
        value: the column to draw.
        category: the column of categories.
    """
    categories = list(dict.fromkeys(table[category].astype(str)))
    shown = groups(table)
    for g, group in enumerate(shown):
        rows = table[table[group_column(table)] == group]
        quartiles = np.array(
            [
                rows.loc[rows[category] == c, value].quantile([0.25, 0.5, 0.75]).to_numpy()
                for c in categories
            ]
        )
        low, middle, high = quartiles.T
        axes.errorbar(
            np.arange(len(categories)) + 0.6 * ((g + 0.5) / len(shown) - 0.5),
            middle,
            yerr=[middle - low, high - middle],
            fmt=MARKERS[g % len(MARKERS)],
            color=PALETTE[g % len(PALETTE)] if len(shown) > 1 else "0.2",
            elinewidth=0.8,
            capsize=2,
            label=group if len(shown) > 1 else None,
        )
    crowded = len(categories) > 5
    axes.set_xticks(range(len(categories)), categories, rotation=25 if crowded else 0)
    axes.set_xlim(-0.6, len(categories) - 0.4)


def pooled_note(table: pd.DataFrame) -> str:
    """Say what the points and bars are, with the sample sizes."""
    runs = table["run"].nunique()
    whose = f"{table['run'].iloc[0]}: " if runs == 1 else ""
    of_runs = "" if runs == 1 else f" of {runs} runs"
    return f"{whose}median and quartiles over {table['module'].nunique()} modules{of_runs}"
