"""The figure of the expansion in the gates, and the table of the numbers that it shows."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.figures.style import PALETTE, legend_below, new_figure, step_axis

ORDERS = ("second", "third", "fourth")
MIN_EXAMPLES = 8  # fewer do not represent the model
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


def draw(points: pd.DataFrame) -> Figure:
    """Draw the gap and its second order over snapshots, one panel per run."""
    runs = list(dict.fromkeys(points["run"]))
    figure, axes = new_figure(len(runs), row_height=1.35)
    for axis, run in zip(axes[:, 0], runs, strict=True):
        rows = points[points["run"] == run]
        _draw_run(axis, rows)
        law = rows.iloc[0]
        assumed = " (assumed)" if law["assumed"] else ""
        title = f"{run}: {law['granularity']} gates, keep_prob {law['keep_prob']:g}{assumed}"
        axis.set(title=title, ylabel="nats/token")
    step_axis(axes[-1, 0])
    axes[-1, 0].margins(x=0.15)
    samples = f"{kit.examples_note(points)}, {points['masks'].max()} masks"
    figure.suptitle(
        f"Cost of random gates\n{samples}, {points['dtype'].iloc[0]}; 95 % over masks",
        fontsize="medium",
    )
    legend_below(figure, axes[:, 0], columns=1)
    return figure


def _draw_run(axis: Axes, points: pd.DataFrame) -> None:
    """Draw one run: the gap, hollow where the second order is not shown to explain it."""
    axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    second, measured = (points[points["quantity"] == name] for name in ("second", "measured"))
    dashed = {"color": PALETTE[1], "marker": "s", "linestyle": "--"}
    _draw_intervals(axis, second, label="second order", **dashed)
    _draw_intervals(axis, measured, color=PALETTE[0])
    for holds, fill in ((True, "full"), (False, "none")):
        shown = measured[measured["holds"] == holds]
        meaning = "measured; second order holds" if holds else "measured; not shown to hold"
        style: dict[str, Any] = {"color": PALETTE[0], "marker": "o", "fillstyle": fill}
        axis.plot(shown["step"], shown["value"], linestyle="", **style)
        axis.plot([], [], linestyle="", label=meaning, **style)


def _draw_intervals(axis: Axes, points: pd.DataFrame, **style: Any) -> None:
    ends = points[["low", "high"]].sub(points["value"], axis=0).abs().to_numpy().T
    axis.errorbar(points["step"], points["value"], ends, **style)
