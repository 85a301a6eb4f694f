"""Curves over optimizer steps: the numbers that a figure shows.

One run is shown as the median over its modules with the quartiles as a band; several runs as the
median over modules of each, with the quartiles where each has one step only. Where a column
`configuration` says that runs differ in their seed only, they share a curve: the mean of their
medians with its 95 % t interval over seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.analysis import Plot
from subspace_lab.figures.panels import Panel, draw_panels
from subspace_lab.stats.intervals import mean_interval

MAX_STEPS = 240  # more cannot be told apart in one paper column
ONLY = ""  # the name of a panel's only curve


def curves_over_steps(*panels: Panel, title: str) -> Plot:
    """Make the plot of an analysis that draws columns of its table, mostly over steps."""

    def draw(curves: pd.DataFrame) -> Figure:
        return draw_panels(curves, panels, title=title)

    return Plot(draw, functools.partial(curves_of, panels))


def curves_of(panels: Sequence[Panel], table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what panels show.

    Returns:
        A row for each panel, curve (group: run or configuration; name: label of `by`, or column;
        shown: its name in the legend) and step, with kind (measured, predicted), center, low and
        high (the band; nan where there is none), band (what it is), modules and runs (how many).
    """
    parts = [part for panel in panels for part in _panel_curves(panel, table)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["panel"])


def group_column(table: pd.DataFrame) -> str:
    """Name the column whose values get a curve each: `configuration` where it is known."""
    return "configuration" if "configuration" in table else "run"


def thin(table: pd.DataFrame, *, over: str = "step", most: int = MAX_STEPS) -> pd.DataFrame:
    """Keep the rows of at most `most` steps, evenly spread, the first and the last among them."""
    steps = np.unique(table[over])
    if len(steps) <= most:
        return table
    kept = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return table[table[over].isin(kept)]


def at_last_step(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of each run's last step."""
    return table[table["step"] == table.groupby("run", observed=True)["step"].transform("max")]


def curve_table(
    table: pd.DataFrame, value: str, *, over: str = "step", alone: bool | None = None
) -> pd.DataFrame:
    """Reduce a column over modules, and over seeds where there are several, at each step.

    Args:
        table: rows by run, step and module.
        value: the column.
        over: the column of steps.
        alone: whether one run is drawn; None: as many as the table has.

    Returns:
        Columns group, step (or what `over` names), center, low, high, band, modules, runs.
    """
    table = thin(table.dropna(subset=[value]), over=over)
    if table.empty:
        return pd.DataFrame()
    alone = table["run"].nunique() == 1 if alone is None else alone
    modules = table["module"].nunique() if "module" in table else 0
    by_step = table.groupby(["run", over], observed=True)[value]
    quartiles = by_step.quantile(np.array([0.25, 0.5, 0.75])).unstack()
    first = table.drop_duplicates("run")
    group_of = pd.Series(first[group_column(table)].astype(str).to_numpy(), index=first["run"])
    parts = []
    for group in dict.fromkeys(group_of):
        runs = group_of.index[group_of == group]
        if len(runs) > 1:
            seeds = quartiles[0.5].unstack("run")[list(runs)].dropna(how="all")
            interval = mean_interval(seeds.to_numpy())
            steps, band = seeds.index, "95 % t interval over seeds"
            columns = {
                "center": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
        else:
            of_run = quartiles.loc[runs[0]]
            banded = modules > 0 and (alone or len(of_run) == 1)
            steps, band = of_run.index, "quartiles over modules" if banded else ""
            columns = {
                "center": of_run[0.5].to_numpy(),
                "low": of_run[0.25].to_numpy() if banded else np.nan,
                "high": of_run[0.75].to_numpy() if banded else np.nan,
            }
        labels = {"group": group, over: steps, "band": band, "modules": modules, "runs": len(runs)}
        parts.append(pd.DataFrame(labels | columns))
    return pd.concat(parts, ignore_index=True)


def _panel_curves(panel: Panel, table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for column, label in panel.where.items():
        table = table[table[column] == label]
    table = panel.rows(table)
    if not set(panel.columns) <= set(table):
        return
    if panel.over is None:
        table = table.assign(position=0)
    over, alone = panel.over or "position", table["run"].nunique() == 1
    steps = table.groupby("run", observed=True)[over].nunique()
    for value, name, shown, rows in _selected(panel, table, crowded=not alone and steps.max() > 1):
        if panel.scale == "log":
            rows = rows[rows[value] > 0]
        curve = curve_table(rows, value, over=over, alone=alone).assign(kind="measured")
        expected = panel.expected.format(value) if panel.expected else None
        parts = [curve, _expected(rows, expected, panel, over=over)] if expected else [curve]
        for part in parts:
            if not part.empty:
                yield _drawn(part, panel).assign(panel=panel.name, name=name, shown=shown)


def _selected(
    panel: Panel, table: pd.DataFrame, *, crowded: bool
) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """List a panel's curves: column, name, name shown, and rows."""
    if not isinstance(panel.value, str):
        for value, shown in panel.value.items():
            yield value, value, shown, table
    elif panel.by is None:
        yield panel.value, ONLY, "", table
    else:
        labels = panel.labels or {str(label): str(label) for label in table[panel.by].unique()}
        for label, shown in labels.items():
            if not (crowded and label in panel.only_alone):
                yield panel.value, label, shown, table[table[panel.by] == label]


def _expected(table: pd.DataFrame, value: str, panel: Panel, *, over: str) -> pd.DataFrame:
    known = thin(table.dropna(subset=[value]), over=over)
    ends = list(panel.expected_band or ())
    by_step = known.groupby([group_column(table), over], observed=True)
    means = by_step[[value, *ends]].mean()
    low, high = (means[end].to_numpy() for end in ends) if ends else (np.nan, np.nan)
    return pd.DataFrame(
        {
            "group": means.index.get_level_values(0).astype(str),
            over: means.index.get_level_values(1),
            "center": means[value].to_numpy(),
            "low": low,
            "high": high,
            "band": "95 % of what is expected" if ends else "",
            "runs": by_step["run"].nunique().to_numpy(),
            "kind": "predicted",
        }
    )


def _drawn(curve: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """Convert a curve to the unit in which the panel shows it."""
    if not panel.degrees:
        return curve
    ends = ["center", "low", "high"]
    return curve.assign(**{end: np.degrees(curve[end]) for end in ends})
