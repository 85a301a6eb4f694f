"""The figure of calibration, and the table of the numbers that it shows."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analyses import kit
from analyses.ensemble_vs_single.figure import beside
from subspace_lab.figures.page import slant_names
from subspace_lab.stats.intervals import mean_interval

PREDICTORS = ("base", "full", "singles", "geometric", "arithmetic")
AS_IT_IS, VALIDATED = "as it is", "at the validated temperature"
SHOWN = (
    ("calibration error", AS_IT_IS, "ece"),
    ("calibration error", VALIDATED, "calibrated_ece"),
    ("temperature", VALIDATED, "temperature"),
)
"""Panel, kind and column of what is drawn."""


def figure_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn of each run's last step, a row for each point.

    Columns: `run` (or configuration), `panel` (calibration error, temperature), `kind` (as it is,
    at the validated temperature), `predictor`, `value`, `low` and `high` (of several seeds their
    mean with its 95 % t interval), `seeds`, `examples`, `split`, `masks`, `dtype`.
    """
    last = kit.at_last_step(table)
    samples: dict[str, Any] = {name: last[name].iloc[0] for name in ("examples", "split", "dtype")}
    samples["masks"] = last["masks"].max()
    rows = []
    for run, of_run in last.groupby(kit.group_column(last), sort=False, observed=True):
        for (panel, kind, column), predictor in itertools.product(SHOWN, PREDICTORS):
            values = of_run.loc[of_run["predictor"] == predictor, column].dropna()
            if values.empty:
                continue
            mean = mean_interval(values)
            point = {"run": str(run), "panel": panel, "kind": kind, "predictor": predictor}
            ends = {"value": mean.estimate, "low": mean.low, "high": mean.high}
            rows.append({**point, **ends, "seeds": len(values), **samples})
    return pd.DataFrame(rows)


def draw(points: pd.DataFrame, page: kit.Page) -> None:
    """Draw calibration errors before and after the temperature, and the temperatures."""
    axes = page.panels(list(dict.fromkeys(points["panel"])), row_height=1.4, share_x=True)
    for panel, axis in axes.items():
        _draw_panel(axis, points[points["panel"] == panel], page)
        axis.set_ylabel(panel)
    if "temperature" in axes:
        axes["temperature"].axhline(1, color="0.8", linewidth=0.6, zorder=0)
    first = next(iter(axes.values()))
    first.update_datalim([(0, 0)])  # so that the margin above the points is one of the whole axis
    first.autoscale_view()
    first.set_ylim(bottom=0)
    for kind, face in ((AS_IT_IS, "white"), (VALIDATED, "0.35")):
        if kind not in set(points["kind"]):
            continue
        marker: dict[str, Any] = {"color": "0.35", "marker": "o", "markerfacecolor": face}
        first.plot([], [], label=kind, linestyle="", **marker)
    count, seeds = int(points["masks"].max()), int(points["seeds"].max())
    note = f"{kit.examples_note(points)}, {count} mask{'s' * (count != 1)}"
    bars = f"; bars: 95 % over {seeds} seeds" if seeds > 1 else ""
    page.title(f"Calibration\n{note}{bars}")
    page.legend(axes)


def _draw_panel(axis: Axes, points: pd.DataFrame, page: kit.Page) -> None:
    for run, style, shift in beside(points, page):
        for kind, rows in points[points["run"] == run].groupby("kind", sort=False):
            x = rows["predictor"].map(PREDICTORS.index) + shift
            axis.vlines(x, rows["low"], rows["high"], color=style["color"], linewidth=0.7)
            face: dict[str, Any] = {} if kind == VALIDATED else {"markerfacecolor": "white"}
            axis.plot(x, rows["value"], linestyle="", **style, **face)
        axis.plot([], [], linestyle="", label=run, **style)
    axis.set_xticks(range(len(PREDICTORS)), PREDICTORS)
    axis.set_xlim(-0.5, len(PREDICTORS) - 0.5)
    slant_names(axis)
