"""Curves over optimizer steps: the numbers that a figure shows, and panels that declare them.

One run is shown as the median over its modules with the quartiles as a band; several runs as the
median over modules of each. Where a column `configuration` says that runs differ in their seed
only, they share a curve: the mean of their medians with its 95 % t interval over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.analysis import Plot
from subspace_lab.figures.panels import draw_panels
from subspace_lab.stats.intervals import mean_interval

MAX_STEPS = 240  # more cannot be told apart in one paper column
ONLY = ""  # the name of a panel's only curve


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: a column of the table over steps.

    Attributes:
        value: the column.
        title: shown above the panel; the column's name by default.
        unit: label of the vertical axis.
        by: column whose labels get a curve each; None: one curve per run or configuration.
        labels: the labels of `by` that are drawn, in order, with the names shown; empty: all.
        where: only rows with these values: column to value.
        scale: of the vertical axis.
        limits: of the vertical axis; None at an end: from the data.
        expected: column of a prediction, drawn as its mean over modules.
        expected_label: how the legend names the prediction.
    """

    value: str
    title: str = ""
    unit: str = ""
    by: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, object] = field(default_factory=dict)
    scale: Literal["linear", "log"] = "linear"
    limits: tuple[float | None, float | None] = (None, None)
    expected: str | None = None
    expected_label: str = "predicted"

    @property
    def name(self) -> str:
        """The panel's title, or the name of its column."""
        return self.title or self.value.replace("_", " ")

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Select the rows of the table that the panel shows."""
        for column, value in self.where.items():
            table = table[table[column] == value]
        return table

    def names(self, table: pd.DataFrame) -> dict[str, str]:
        """Name the panel's curves: label in `by` to the name that is shown."""
        if self.by is None:
            return {ONLY: self.name}
        present = [str(label) for label in table[self.by].unique()]
        labels = self.labels or {label: label for label in present}
        return {label: shown for label, shown in labels.items() if label in present}


def curves_over_steps(*panels: Panel, title: str) -> Plot:
    """Make the plot of an analysis that draws columns of its table over steps.

    Its data has a row for each panel, curve (group: run or configuration; name: label of `by`) and
    step, with kind (measured, predicted), center, low and high (the band; nan where there is
    none), band (what it is), modules and runs (how many).
    """

    def data(table: pd.DataFrame) -> pd.DataFrame:
        parts = [part for panel in panels for part in _panel_curves(panel, table)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["panel"])

    def draw(curves: pd.DataFrame) -> Figure:
        return draw_panels(curves, panels, title=title)

    return Plot(draw, data)


def group_column(table: pd.DataFrame) -> str:
    """Name the column whose values get a curve each: `configuration` where it is known."""
    return "configuration" if "configuration" in table else "run"


def thin(table: pd.DataFrame, *, most: int = MAX_STEPS) -> pd.DataFrame:
    """Keep the rows of at most `most` steps, evenly spread, the first and the last among them."""
    steps = np.unique(table["step"])
    if len(steps) <= most:
        return table
    kept = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return table[table["step"].isin(kept)]


def curve_table(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Reduce a column over modules, and over seeds where there are several, at each step.

    Args:
        table: rows by run, step and module.
        value: the column.

    Returns:
        Columns group, step, center, low, high, band, modules, runs.
    """
    table = thin(table.dropna(subset=[value]))
    if table.empty:
        return pd.DataFrame()
    counts = {"modules": table["module"].nunique() if "module" in table else 0}
    group = group_column(table)
    if table["run"].nunique() == 1:
        quartiles = table.groupby("step")[value].quantile(np.array([0.25, 0.5, 0.75])).unstack()
        columns = {
            "group": str(table[group].iloc[0]),
            "step": quartiles.index,
            "center": quartiles[0.5].to_numpy(),
            "low": quartiles[0.25].to_numpy(),
            "high": quartiles[0.75].to_numpy(),
            "band": "quartiles over modules",
            "runs": 1,
        }
        return pd.DataFrame(columns | counts)
    medians = table.groupby(["run", "step"], observed=True)[value].median()
    first = table.drop_duplicates("run")
    group_of = pd.Series(first[group].astype(str).to_numpy(), index=first["run"].to_numpy())
    parts = []
    for name in dict.fromkeys(group_of):
        runs = group_of.index[group_of == name]
        seeds = medians[medians.index.isin(runs, level="run")].unstack("run")
        interval = mean_interval(seeds.to_numpy())
        columns = {
            "group": name,
            "step": seeds.index,
            "center": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "band": "95 % t interval over seeds" if len(runs) > 1 else "",
            "runs": len(runs),
        }
        parts.append(pd.DataFrame(columns | counts))
    return pd.concat(parts, ignore_index=True)


def _panel_curves(panel: Panel, table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    rows = panel.rows(table)
    for label in panel.names(rows):
        chosen = rows if panel.by is None else rows[rows[panel.by] == label]
        curve = curve_table(chosen, panel.value)
        if not curve.empty:
            yield curve.assign(panel=panel.name, name=label, kind="measured")
        if panel.expected is not None and chosen[panel.expected].notna().any():
            yield _expected(chosen, panel.expected).assign(panel=panel.name, name=label)


def _expected(table: pd.DataFrame, value: str) -> pd.DataFrame:
    known = thin(table.dropna(subset=[value]))
    means = known.groupby([group_column(table), "step"], observed=True)[value].mean()
    return pd.DataFrame(
        {
            "group": means.index.get_level_values(0).astype(str),
            "step": means.index.get_level_values(1),
            "center": means.to_numpy(),
            "low": np.nan,
            "high": np.nan,
            "band": "",
            "runs": known["run"].nunique(),
            "kind": "predicted",
        }
    )
