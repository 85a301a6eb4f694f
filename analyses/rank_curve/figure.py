"""The figure of rank curves, and the table of the numbers that it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses import kit
from analyses.rank_curve.probes import LEFT_OUT
from analyses.rank_curve.tables import MEAN
from subspace_lab.figures.curves import MARKED
from subspace_lab.figures.style import LINES, MARKERS, PALETTE, PREDICTION, step_axis

CURVES = ("svd", "prefix", "random")
SAMPLES = ["examples", "split", "draws", "dtype"]
QUARTILES = np.array([0.25, 0.5, 0.75])
LABELS = {
    "cost": ("cost (nats/token)", "directions kept"),
    "accuracy": ("exact match", "directions kept"),
    LEFT_OUT: ("share of the cost", "direction left out, from the costliest on"),
}
"""Of the vertical and horizontal axes of the panels."""


def figure_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn of each run's last step, a row for each point.

    Runs of one configuration are one curve, the mean over them.

    Columns: `run` (or configuration), `seeds` (runs behind a point), `panel` (cost, accuracy;
    left_out: share of a module's cost), `curve`, `draw` (-1: the mean over random orders),
    `position` (directions kept, or place among those left out, from the costliest on), `value`,
    `low` and `high` (95 % over examples; quartiles over modules of left_out; of several seeds 95 %
    over seeds, Student's t), `even` (the share of interchangeable directions), and what was
    evaluated.
    """
    parts = []
    for run, of_run in kit.at_last_step(table).groupby("run", sort=False, observed=True):
        along = of_run[of_run["curve"] != LEFT_OUT]
        panels = [_points(along, panel) for panel in ("cost", "accuracy")]
        panels.append(_shares(of_run[of_run["curve"] == LEFT_OUT]))
        samples: dict[str, Any] = {name: of_run[name].iloc[0] for name in SAMPLES}
        samples["configuration"] = of_run[kit.group_column(table)].iloc[0]
        parts += [panel.assign(run=run, **samples) for panel in panels if len(panel)]
    points = pd.concat(parts, ignore_index=True)
    several = points.groupby("configuration", observed=True)["run"].transform("nunique") > 1
    points["run"] = points["configuration"].where(several, points["run"])
    points = points[~several | (points["draw"] == MEAN)].drop(columns="configuration")
    points.insert(0, "panel", points.pop("panel"))
    reduced = kit.over_seeds(points, by=["run", "panel", "curve", "draw", "position"])
    # In a curve over seeds, a point that only one of them has is without an interval.
    over_seeds = reduced.groupby("run", observed=True)["seeds"].transform("max") > 1
    alone = over_seeds & (reduced["seeds"] == 1)
    reduced.loc[alone, ["low", "high"]] = np.nan
    return reduced


def _points(along: pd.DataFrame, panel: str) -> pd.DataFrame:
    names = {"curve": "curve", "draw": "draw", "kept": "position"}
    names |= {panel: "value", f"{panel}_low": "low", f"{panel}_high": "high"}
    points = along[list(names)].rename(columns=names)
    return points.astype({"curve": str}).assign(panel=panel)


def _shares(left_out: pd.DataFrame) -> pd.DataFrame:
    """Sort each module's costs; quartiles over modules of the shares in their sum."""
    costs = left_out[["module", "cost"]].assign(cost=left_out["cost"].abs())
    by_module = costs.groupby("module", observed=True)["cost"]
    costs["share"] = costs["cost"] / by_module.transform("sum")
    costs["position"] = by_module.rank(method="first", ascending=False).astype(int)
    known = costs.dropna(subset="share")
    if known.empty:
        return pd.DataFrame()
    quartiles = known.groupby("position")["share"].quantile(QUARTILES).unstack()
    shares = quartiles.set_axis(["low", "value", "high"], axis=1).reset_index()
    return shares.assign(panel=LEFT_OUT, curve=LEFT_OUT, draw=MEAN, even=1 / len(shares))


def draw(points: pd.DataFrame, page: kit.Page) -> None:
    """Draw cost and exact match over the kept rank, and the shares of single directions."""
    panels = list(dict.fromkeys(points["panel"]))
    axes = page.panels(panels, row_height=1.45)
    styles = {run: page.style(run) for run in dict.fromkeys(points["run"])}
    for panel, axis in axes.items():
        for run, style in styles.items():
            rows = points[(points["panel"] == panel) & (points["run"] == run)]
            if panel == LEFT_OUT:
                _draw_curve(axis, rows, label=run, **style)
            else:
                _draw_orders(axis, rows, run, style if page.several else None)
        _label(axis, panel, points)
    if page.several:
        for name, line in zip(CURVES, LINES, strict=False):
            next(iter(axes.values())).plot([], [], color="0.3", linestyle=line, label=name)
    note = f"{kit.examples_note(points)}, {points['draws'].max()} random orders"
    bands = "bands: 95 % over examples; bottom: quartiles over modules"
    if (seeds := points["seeds"].max()) > 1:
        note, bands = f"{seeds} seeds, {note}", "bands: 95 % over seeds"
    page.title(f"Rank curves, not rescaled\n{note}, {points['dtype'].iloc[0]}\n{bands}")
    page.legend(axes)


def _draw_orders(axis: Axes, rows: pd.DataFrame, run: str, style: dict[str, Any] | None) -> None:
    """Draw a run's curves; with one run color and dashes tell them apart, else dashes do.

    Bands of several runs are drawn of the random mean only.
    """
    for i, name in enumerate(CURVES):
        look: dict[str, Any] = {"color": PALETTE[i], "marker": MARKERS[i], "label": name}
        if style:
            look = {**style, "label": run if i == 0 else None}
        curve = rows[rows["curve"] == name]
        for _, order in curve[curve["draw"] > MEAN].groupby("draw"):
            pale = {"color": look["color"], "alpha": 0.25, "linewidth": 0.6}
            axis.plot(order["position"], order["value"], **pale)
        banded = style is None or name == "random"
        _draw_curve(axis, curve[curve["draw"] == MEAN], banded, linestyle=LINES[i], **look)


def _draw_curve(axis: Axes, rows: pd.DataFrame, banded: bool = True, **style: Any) -> None:
    axis.plot(rows["position"], rows["value"], markevery=-(-len(rows) // MARKED), **style)
    if banded:
        band = {"color": style["color"], "alpha": 0.12, "lw": 0}
        axis.fill_between(rows["position"], rows["low"], rows["high"], **band)


def _label(axis: Axes, panel: str, points: pd.DataFrame) -> None:
    vertical, horizontal = LABELS[panel]
    axis.set_ylabel(vertical)
    step_axis(axis, label=horizontal)
    if panel == "accuracy":
        axis.set_ylim(0, 1)
    if panel == LEFT_OUT:
        for even in points["even"].dropna().unique():
            axis.axhline(even, **PREDICTION)
        axis.plot([], [], label="interchangeable", **PREDICTION)
        axis.set_ylim(bottom=0)
