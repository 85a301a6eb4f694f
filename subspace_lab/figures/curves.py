"""Curves over optimizer steps, from tables with one row per run, step and module.

One run is drawn as the median over its modules with the quartiles as a band. Several runs are one
curve each, the median over modules. Where a column `configuration` says that runs differ in their
seed only, they become one curve: the mean of their medians with its 95 % interval over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from subspace_lab.figures.style import LINES, MARKERS, PALETTE, PREDICTION
from subspace_lab.stats.intervals import mean_interval

MOST_STEPS = 240  # more cannot be told apart in one paper column
FEW_STEPS = 20  # up to here each point gets its marker

Looks = dict[tuple[str, str], dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One curve with its band; all arrays are (steps,).

    Attributes:
        group: the run or configuration that it shows.
        steps: optimizer steps, ascending.
        centre: median over modules, or mean over seeds of such medians.
        low: lower end of the band; nan where there is none.
        high: its upper end.
    """

    group: str
    steps: np.ndarray[Any, np.dtype[np.int64]]
    centre: np.ndarray[Any, np.dtype[np.float64]]
    low: np.ndarray[Any, np.dtype[np.float64]]
    high: np.ndarray[Any, np.dtype[np.float64]]


def group_column(table: pd.DataFrame) -> str:
    """Name the column whose values get a curve each: `configuration` where it is known."""
    return "configuration" if "configuration" in table else "run"


def groups(table: pd.DataFrame) -> list[str]:
    """List the runs or configurations that are drawn as one curve each."""
    return [str(group) for group in table[group_column(table)].unique()]


def thin(table: pd.DataFrame, *, most: int = MOST_STEPS) -> pd.DataFrame:
    """Keep the rows of at most `most` steps, evenly spread, the first and the last among them."""
    steps = np.unique(table["step"])
    if len(steps) <= most:
        return table
    kept = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return table[table["step"].isin(kept)]


def curves(table: pd.DataFrame, value: str) -> list[Curve]:
    """Reduce column `value` over modules, and over seeds if there are some, for each group."""
    table = thin(table.dropna(subset=[value]))
    if table["run"].nunique() == 1:
        by_step = table.groupby("step")[value].quantile(np.array([0.25, 0.5, 0.75])).unstack()
        quartiles = (by_step[column].to_numpy() for column in (0.5, 0.25, 0.75))
        return [Curve(groups(table)[0], by_step.index.to_numpy(), *quartiles)]
    medians = table.groupby(["run", "step"], observed=True)[value].median().rename("value")
    first = table.drop_duplicates("run")
    runs = pd.Series(first[group_column(table)].astype(str).to_numpy(), index=first["run"])
    drawn = []
    for group in dict.fromkeys(runs):
        members = runs.index[runs == group]
        seeds = medians[medians.index.isin(members, level="run")].unstack("run")
        interval = mean_interval(seeds.to_numpy())
        band = tuple(np.asarray(x) for x in (interval.estimate, interval.low, interval.high))
        drawn.append(Curve(group, seeds.index.to_numpy(), *band))
    return drawn


def looks(table: pd.DataFrame, names: Mapping[str, str]) -> Looks:
    """Give each curve its colour, line and label: by (group, name) of what is drawn.

    With one group the colour tells the names apart; with several it tells the groups, and the line
    style the names, which `draw_names` adds to the legend.

    Args:
        table: the whole table.
        names: what is drawn in each group, such as the matrices, with their labels.
    """
    shown = groups(table)
    runs = table.drop_duplicates("run").groupby(group_column(table), observed=True)["run"].count()
    found: Looks = {}
    for g, group in enumerate(shown):
        seeds = f" ({runs[group]} seeds)" if runs[group] > 1 else ""
        for i, (name, label) in enumerate(names.items()):
            colour = g if len(shown) > 1 else i
            found[group, name] = {
                "color": PALETTE[colour % len(PALETTE)],
                "linestyle": LINES[i % len(LINES)],
                "marker": MARKERS[colour % len(MARKERS)],
                "label": label if len(shown) == 1 else None if i else group + seeds,
            }
    return found


def draw_names(axes: Axes, table: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Add the names' line styles to the legend, where colours tell the groups apart.

    Args:
        axes: whose legend entries they become.
        table: the whole table.
        names: as in `looks`.
    """
    if len(groups(table)) > 1 and len(names) > 1:
        for label, line in zip(names.values(), LINES, strict=False):
            axes.plot([], [], color="0.3", linestyle=line, label=label)


def draw_curves(axes: Axes, table: pd.DataFrame, value: str, *, name: str, looks: Looks) -> None:
    """Draw column `value` over steps, for each group.

    Args:
        axes: where to draw.
        table: the rows of `name` only.
        value: the column to draw.
        name: which of the names of `looks` this is.
        looks: from `looks`.
    """
    for curve in curves(table, value):
        look = dict(looks[curve.group, name])
        if len(curve.steps) > FEW_STEPS:
            look.pop("marker")
        axes.plot(curve.steps, curve.centre, **look)
        colour = look["color"]
        if len(curve.steps) == 1:
            axes.vlines(curve.steps, curve.low, curve.high, color=colour, alpha=0.5)
        else:
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0
            )


def draw_prediction(axes: Axes, table: pd.DataFrame, value: str, *, label: str) -> None:
    """Draw a theory's prediction, the mean of column `value` over modules, for each group."""
    column = group_column(table)
    known = thin(table.dropna(subset=[value]))
    several = len(groups(table)) > 1
    for g, group in enumerate(groups(table)):
        means = known[known[column] == group].groupby("step")[value].mean()
        if means.empty:
            continue
        look = PREDICTION | ({"color": PALETTE[g % len(PALETTE)]} if several else {})
        axes.plot(means.index, means, **look)
    if not known.empty:
        axes.plot([], [], label=label, **PREDICTION)


def sample_note(table: pd.DataFrame) -> str:
    """Say what a curve and its band are, with the sample sizes."""
    modules = f"{table['module'].nunique()} modules"
    runs = table["run"].nunique()
    if runs == 1:
        return f"{table['run'].iloc[0]}: median and quartiles over {modules}"
    if len(groups(table)) == runs:
        return f"{runs} runs: median over {modules}"
    return f"{runs} runs: mean of medians over {modules}, 95 % interval over seeds"
