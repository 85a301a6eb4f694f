"""Comparisons of configurations in words: measures with their units, and the cells of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analyses import kit
from analyses.comparisons.scores import ACCURACY, CALIBRATED, LOSS
from subspace_lab.stats.intervals import Interval, spread_text

# Measure: title, unit, scale, format.
MEASURES = {
    ACCURACY: ("Accuracy", "%", 100.0, ".1f"),
    LOSS: ("Loss of the right response", "nats/token", 1.0, ".3f"),
    CALIBRATED: ("Loss at the validated temperature", "nats/token", 1.0, ".3f"),
}


def mean_text(row: Any) -> str:
    """Write a row's mean and its interval over seeds, in the unit of its measure."""
    _, _, scale, form = MEASURES[row.measure]
    interval = Interval(row.mean, row.low, row.high, 0.95, row.seeds)
    return f"{scale * row.mean:{form}} {spread_text(interval, form, scale=scale)}".strip()


def difference_text(row: Any) -> str:
    """Write a row's difference to the baseline with its interval; empty where none was paired."""
    if math.isnan(row.paired_seeds):
        return ""
    _, _, scale, form = MEASURES[row.measure]
    low, high = scale * row.difference_low, scale * row.difference_high
    interval = "" if math.isnan(low) else f" [{low:+{form}}, {high:+{form}}]"
    return f"{scale * row.difference:+{form}}{interval}"


def grid(corner: str, heads: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
    """Write lines of cells by their names as a table in Markdown."""
    named = ([name, *cells] for name, cells in lines.items())
    return kit.markdown_table([[corner, *heads], *named])


def cells_by(
    column: str, values: Sequence[Any], rows: pd.DataFrame, cell: Callable[[Any], str]
) -> dict[str, list[str]]:
    """Write the rows of each configuration, one cell for each value of a column; else empty."""
    lines = {}
    for name, group in rows.groupby("configuration", sort=False):
        known = {getattr(row, column): cell(row) for row in group.itertuples()}
        lines[str(name)] = [known.get(value, "") for value in values]
    return lines


def remarks_text(table: pd.DataFrame) -> list[str]:
    """List the remarks on what is not compared, under a line that says so; empty without any."""
    remarks = table.attrs.get("remarks", [])
    return ["Not compared:", "\n".join(f"- {remark}" for remark in remarks)] if remarks else []
