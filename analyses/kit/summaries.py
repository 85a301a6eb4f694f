"""Summaries that several analyses share."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analyses.kit.analysis import Summary


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

    def medians(rows: pd.DataFrame) -> dict[str, float]:
        if within is None:
            return {name: float(rows[column].median()) for name, column in columns.items()}
        of_labels = rows.groupby(within, observed=True, sort=False)[values[0]].median()
        return {str(label): float(median) for label, median in of_labels.items()}

    def summarize(table: pd.DataFrame) -> Summary:
        summary: dict[str, dict[str, float]] = {}
        for run, of_run in table.groupby("run", observed=True, sort=False):
            last = of_run[of_run["step"] == of_run["step"].max()]
            name = f"{run}, step {last['step'].iloc[0]}"
            if by is None:
                summary[name] = medians(last)
                continue
            for label, rows in last.groupby(by, observed=True, sort=False):
                summary[f"{name}, {label}"] = medians(rows)
        return summary

    return summarize
