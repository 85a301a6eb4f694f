"""Curves over optimizer steps: the numbers that a figure shows, and medians at the last step.

One run is shown as the median over its modules with the quartiles as a band; several runs as the
median over modules of each, with the quartiles where each has one step only. Where a column
`configuration` says that runs differ in their seed only, they share a curve: the mean of their
medians with its 95 % t interval over seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from analyses.kit.analysis import Plot, Summary
from subspace_lab.figures.page import PANEL_WIDTH
from subspace_lab.figures.panels import Panel, draw_panels
from subspace_lab.stats.intervals import mean_interval

MAX_STEPS = 240  # more cannot be told apart in one paper column
ONLY = ""  # the name of a panel's only curve


def curves_over_steps(*panels: Panel, title: str, panel_width: float = PANEL_WIDTH) -> Plot:
    """Make the plot of an analysis that draws columns of its table, mostly over steps.

    `panel_width` is the least width of panels that stand side by side, in inches.
    """
    draw = functools.partial(draw_panels, panels=panels, title=title, panel_width=panel_width)
    return Plot(draw, functools.partial(curves_of, panels), splits=True)


def curves_of(
    panels: Sequence[Panel], table: pd.DataFrame, *, by: str | None = None
) -> pd.DataFrame:
    """Make the table of what panels show.

    Args:
        panels: what is drawn.
        table: the analysis's.
        by: a column (projection, layer) whose labels get a curve each, in panels for each run or
            configuration; None: the median over all modules.

    Returns:
        A row for each panel, curve (group: run or configuration, or label of `by`; name: label of
        the panel's `by`, or column; shown: its name in the legend) and step, with facet (the run or
        configuration of the panel, where `by` is given), split (`by`), kind (measured, predicted),
        center, low and high (the band; nan where there is none), band (what it is), modules and
        runs (how many).
    """
    if by is not None:
        return _split(panels, table, by)
    parts = [part for panel in panels for part in _panel_curves(panel, table)]
    curves = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["panel"])
    return curves.assign(facet="", split="")


def _split(panels: Sequence[Panel], table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Take the modules of each label of `by` for a configuration of its own, run by run."""
    parts = []
    for facet, rows in table.groupby(group_column(table), sort=False, observed=True):
        ordered = rows.sort_values(by, kind="stable") if by == "layer" else rows
        labels = ordered[by].astype(str)
        if by == "layer":
            labels = "layer " + labels
        of_label = ordered["run"].astype(str) + ": " + labels
        ordered = ordered.assign(run=of_label, configuration=labels)
        parts.append(curves_of(panels, ordered).assign(facet=str(facet), split=by))
    return pd.concat(parts, ignore_index=True)


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


def medians_at_last_step(
    *values: str, by: str | None = None, within: str | None = None, **named: str
) -> Callable[[pd.DataFrame], Summary]:
    """Make a summary: medians of columns over modules at each run's last step.

    Args:
        values: the columns.
        by: column whose labels get an entry each; None: all rows together.
        within: column whose labels name the medians of the only value, one each.
        named: names of further medians, with their columns.
    """
    columns = dict(zip(values, values, strict=True)) | named

    def summarize(table: pd.DataFrame) -> Summary:
        summary = {}
        keys = ["run", by] if by else ["run"]
        for (run, *label), rows in at_last_step(table).groupby(keys, observed=True, sort=False):
            if within is None:
                medians = pd.Series({name: rows[c].median() for name, c in columns.items()})
            else:
                of_labels = rows.groupby(within, observed=True, sort=False)[values[0]]
                medians = of_labels.median()
            name = ", ".join(map(str, [run, f"step {rows['step'].iloc[0]}", *label]))
            summary[name] = {str(key): float(median) for key, median in medians.items()}
        return summary

    return summarize


def curve_table(
    table: pd.DataFrame, value: str, *, over: str = "step", alone: bool | None = None
) -> pd.DataFrame:
    """Reduce a column over modules, and over seeds where there are several, at each step.

    `alone` says whether one run is drawn; None: as many as the table has.

    Returns:
        Columns group, step (or what `over` names), center, low, high, band, modules, runs.
    """
    table = thin(table.dropna(subset=[value]), over=over)
    if table.empty:
        return pd.DataFrame()
    alone = table["run"].nunique() == 1 if alone is None else alone
    by_step = table.groupby(["run", over], observed=True)[value]
    quartiles = by_step.quantile(np.array([0.25, 0.5, 0.75])).unstack()
    first = table.drop_duplicates("run")
    group_of = pd.Series(first[group_column(table)].astype(str).to_numpy(), index=first["run"])
    parts: list[pd.DataFrame] = []
    for group in dict.fromkeys(group_of):
        runs = list(group_of.index[group_of == group])
        of_group = table[table["run"].isin(runs)]
        modules = of_group["module"].nunique() if "module" in table else 0
        curve = quartiles.loc[runs[0]].set_axis(["low", "center", "high"], axis=1)
        band = "quartiles over modules"
        if len(runs) > 1:
            seeds = quartiles[0.5].unstack("run")[runs].dropna(how="all")
            interval, band = mean_interval(seeds.to_numpy()), "95 % t interval over seeds"
            ends = {"center": interval.estimate, "low": interval.low, "high": interval.high}
            curve = pd.DataFrame(ends, index=seeds.index)
        elif not modules or not (alone or len(curve) == 1):
            curve, band = curve.assign(low=np.nan, high=np.nan), ""
        curve = curve.rename_axis(over).reset_index()
        parts.append(curve.assign(group=group, band=band, modules=modules, runs=len(runs)))
    columns = ["group", over, "band", "modules", "runs", "center", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


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
        parts = [curve_table(rows, value, over=over, alone=alone).assign(kind="measured")]
        if panel.expected:
            parts.append(_expected(rows, panel.expected.format(value), panel, over=over))
        for part in parts:
            if not part.empty:
                if panel.degrees:
                    ends = ["center", "low", "high"]
                    part[ends] = np.degrees(part[ends])
                yield part.assign(panel=panel.name, name=name, shown=shown)


def _selected(
    panel: Panel, table: pd.DataFrame, *, crowded: bool
) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """List a panel's curves: column, name, name shown, and rows."""
    if not isinstance(panel.value, str):
        for value, shown in panel.value.items():
            if not (crowded and value in panel.only_alone):
                yield value, value, shown, table
    elif panel.by is None:
        yield panel.value, ONLY, "", table
    else:
        labels = panel.labels or {str(label): str(label) for label in table[panel.by].unique()}
        for label, shown in labels.items():
            if not (crowded and label in panel.only_alone):
                yield panel.value, label, shown, table[table[panel.by] == label]


def _expected(table: pd.DataFrame, value: str, panel: Panel, *, over: str) -> pd.DataFrame:
    """Average a prediction, and the ends of its band, over modules and runs."""
    known = thin(table.dropna(subset=[value]), over=over)
    low, high = panel.expected_band or (value, value)
    by_step = known.groupby([group_column(table), over], observed=True)
    means = by_step.agg(
        center=(value, "mean"), low=(low, "mean"), high=(high, "mean"), runs=("run", "nunique")
    )
    band = "95 % by chance" if panel.expected_band else ""
    if not panel.expected_band:
        means = means.assign(low=np.nan, high=np.nan)
    means = means.rename_axis(["group", over]).reset_index()
    return means.assign(group=means["group"].astype(str), band=band, kind="predicted")
