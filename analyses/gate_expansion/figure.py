"""The figure of the expansion in the gates, and the table of the numbers that it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses import kit
from subspace_lab.figures.style import step_axis

ORDERS = ("second", "third", "fourth")
MIN_EXAMPLES = 8  # fewer do not represent the model
FEW_STEPS = 6  # up to here each has its tick
NORMAL = 1.96  # quantile of a 95 % interval
SAMPLES = ["granularity", "keep_prob", "assumed", "examples", "split", "masks", "dtype"]


def figure_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn: gap (measured) and second order at each step of each run.

    Columns: `run`, `step`, `quantity` (measured, second), `value`, `low` and `high` (of the 95 %
    interval over masks), `holds` (whether the second order explains the gap, on enough examples),
    and what was evaluated.
    """
    shared = table[["run", "step", *SAMPLES]].assign(
        holds=table["trustworthy"] & (table["examples"] >= MIN_EXAMPLES)
    )
    parts = []
    for name in ("measured", "second"):
        value, half = table[name], NORMAL * table[f"{name}_error"]
        columns = {"quantity": name, "value": value, "low": value - half, "high": value + half}
        parts.append(shared.assign(**columns))
    return pd.concat(parts, ignore_index=True).sort_values(["quantity", "step"])


def draw(points: pd.DataFrame, page: kit.Page) -> None:
    """Draw the gap and its second order over snapshots, one panel per run."""
    runs = list(dict.fromkeys(points["run"]))
    axes = page.panels(runs, row_height=1.5)
    for run, axis in axes.items():
        rows = points[points["run"] == run]
        _draw_run(axis, rows, page.style(run)["color"])
        law = rows.iloc[0]
        assumed = " (assumed)" if law["assumed"] else ""
        title = f"{run}: {law['granularity']} gates, keep_prob {law['keep_prob']:g}{assumed}"
        page.set_title(axis, title)
        axis.set_ylabel("nats/token")
    samples = f"{kit.examples_note(points)}, {points['masks'].max()} masks"
    page.title(f"Cost of random gates\n{samples}, {points['dtype'].iloc[0]}; 95 % over masks")
    page.legend(axes, columns=1)


def _draw_run(axis: Axes, points: pd.DataFrame, color: str) -> None:
    """Draw one run: the gap, hollow where the second order is not shown to explain it.

    The second order stands a little to the right, so that its intervals are seen.
    """
    axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    steps = sorted(points["step"].unique())
    spacing = min(np.diff(steps), default=2)
    points = points.assign(x=points["step"] + 0.1 * spacing * (points["quantity"] == "second"))
    second, measured = (points[points["quantity"] == name] for name in ("second", "measured"))
    _draw_intervals(axis, second, label="second order", color="0.45", marker="s", linestyle="--")
    _draw_intervals(axis, measured, color=color)
    for holds, fill in ((True, "full"), (False, "none")):
        shown = measured[measured["holds"] == holds]
        meaning = "measured; second order holds" if holds else "measured; not shown to hold"
        style: dict[str, Any] = {"color": color, "marker": "o", "fillstyle": fill}
        axis.plot(shown["x"], shown["value"], linestyle="", **style)
        if not shown.empty:
            axis.plot([], [], linestyle="", label=meaning, **style)
    step_axis(axis)
    axis.set_xlim(steps[0] - 0.5 * spacing, steps[-1] + 0.5 * spacing)
    if len(steps) <= FEW_STEPS:
        axis.set_xticks(steps)


def _draw_intervals(axis: Axes, points: pd.DataFrame, **style: Any) -> None:
    ends = points[["low", "high"]].sub(points["value"], axis=0).abs().to_numpy().T
    axis.errorbar(points["x"], points["value"], ends, **style)
