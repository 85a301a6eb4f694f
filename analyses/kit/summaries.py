"""Summaries that several analyses share."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analyses.kit.analysis import Summary


def medians_at_last_step(*values: str, by: str | None = None) -> Callable[[pd.DataFrame], Summary]:
    """Make a summary: medians of columns over modules at each run's last step.

    Args:
        values: the columns.
        by: column whose labels get a median each; None: all rows together.
    """

    def summarize(table: pd.DataFrame) -> Summary:
        medians: dict[str, dict[str, float]] = {}
        for run, of_run in table.groupby("run", observed=True, sort=False):
            last = of_run[of_run["step"] == of_run["step"].max()]
            name = f"{run}, step {last['step'].iloc[0]}"
            if by is None:
                medians[name] = {value: float(last[value].median()) for value in values}
                continue
            for label, rows in last.groupby(by, observed=True, sort=False):
                medians[f"{name}, {label}"] = {v: float(rows[v].median()) for v in values}
        return medians

    return summarize
