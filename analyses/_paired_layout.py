"""Tables and figure of `paired_differences.compute`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses._scores import ACCURACY, AVERAGE, LOSS
from subspace_lab.figures.style import PALETTE, new_figure, paper_style
from subspace_lab.stats.intervals import Interval, spread_text

# Measure: title, unit, scale, format.
MEASURES = {
    ACCURACY: ("Accuracy", "%", 100.0, ".1f"),
    LOSS: ("Loss of the right response", "nats/token", 1.0, ".3f"),
}


def as_markdown(table: pd.DataFrame, *, baseline: str, remarks: Sequence[str] = ()) -> str:
    """Write two tables per measure, means and differences to the baseline, and the remarks."""
    parts = []
    for measure, (title, unit, scale, form) in MEASURES.items():
        rows = table[table["measure"] == measure]
        if rows.empty:
            continue

        def mean(row: Any, scale: float = scale, form: str = form) -> str:
            interval = Interval(row.mean, row.low, row.high, 0.95, row.seeds)
            spread = spread_text(interval, form, scale=scale)
            return f"{scale * row.mean:{form}} {spread} ({row.seeds})".replace("  ", " ")

        def difference(row: Any, scale: float = scale, form: str = form) -> str:
            if math.isnan(row.paired_seeds):
                return ""
            low, high = scale * row.difference_low, scale * row.difference_high
            interval = "" if math.isnan(low) else f" [{low:+{form}}, {high:+{form}}]"
            error = f"{scale * row.examples_error:{form}}"
            return f"{scale * row.difference:+{form}}{interval} ({error})"

        others = rows[rows["configuration"] != baseline]
        parts += [
            f"{title} ({unit}): mean ± half width, or ends, of its 95 % interval over seeds (seeds)"
        ]
        parts += [_grid(rows, mean)]
        parts += [
            f"{title} ({unit}): paired difference to {baseline}, 95 % interval over seeds "
            "(standard error over test examples)"
        ]
        parts += [_grid(others, difference)]
    if remarks:
        parts += ["Not compared:", "\n".join(f"- {remark}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def _grid(rows: pd.DataFrame, cell: Callable[[Any], str]) -> str:
    tasks = list(dict.fromkeys(rows["task"]))
    lines = [["configuration", *tasks], ["---"] * (1 + len(tasks))]
    for name, group in rows.groupby("configuration", sort=False):
        cells = {row.task: cell(row) for row in group.itertuples()}
        lines.append([str(name), *(cells.get(task, "") for task in tasks)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(table: pd.DataFrame, *, baseline: str) -> Figure:
    """Draw the difference to the baseline of each configuration, over all tasks together.

    Where nothing was paired over all tasks, each task has a place of its own.
    """
    rows = table[table["paired_seeds"].notna()]
    if AVERAGE in set(rows["task"]):
        rows = rows[rows["task"] == AVERAGE]
    shown = [measure for measure in MEASURES if measure in set(rows["measure"])]
    places = rows["configuration"]
    if rows["task"].nunique() > 1:
        places = places + ", " + rows["task"]
    with paper_style():
        names = list(dict.fromkeys(places))[::-1]
        figure, axes = new_figure(len(shown), row_height=0.75 + 0.27 * len(names), share_x=False)
        for panel, measure in zip(axes[:, 0], shown, strict=True):
            title, unit, scale, _ = MEASURES[measure]
            found = rows[rows["measure"] == measure]
            low = found["difference"] - found["difference_low"]
            high = found["difference_high"] - found["difference"]
            panel.axvline(0, color="0.6", linewidth=0.6)
            panel.errorbar(
                scale * found["difference"],
                places[found.index].map(names.index),
                xerr=[scale * low, scale * high],
                fmt="o",
                capsize=2,
                color=PALETTE[0],
            )
            panel.set_yticks(range(len(names)), [_wrapped(name) for name in names], fontsize=5.5)
            panel.set_ylim(-0.6, len(names) - 0.4)
            panel.set_title(title.lower())
            panel.set_xlabel("percentage points" if unit == "%" else unit)
        seeds, tests = int(rows["paired_seeds"].min()), int(rows["examples"].min())
        figure.suptitle(
            f"Difference to {baseline}\n{seeds} seeds, 95 % t intervals; {tests} test examples per "
            "task"
        )
    return figure


def _wrapped(name: str) -> str:
    """Break a configuration's name within its mask's description."""
    return name.replace(" mask, ", " mask,\n")
