"""Choosing a field's value, such as keep_prob, by validation scores. Test data plays no part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.sweeping.grid import Job, Selection, Sweep
from subspace_lab.sweeping.state import state_of

if TYPE_CHECKING:
    import pandas as pd


def select(sweep: Sweep, out: Path) -> pd.DataFrame:
    """Rank the values of the selected field by their mean validation score over seeds.

    Runs that differ in anything else form groups, and each group gets its own choice.

    Returns:
        One row per group and value: `group`, the field's own column, `score`, `mean`, `low` and
        `high` (95 % interval over seeds, Student's t; nan for one seed), `seeds`, `chosen`.

    Raises:
        UserError: if the sweep selects nothing, or a run is not finished or was not evaluated at
            its end.
    """
    import pandas as pd

    from subspace_lab.stats.intervals import mean_interval

    selection = sweep.selection
    if selection is None:
        raise UserError("the sweep file has no 'select': name the field to be selected")
    scores: dict[tuple[str, Any], list[float]] = {}
    for job in sweep.jobs:
        if selection.field in job.values:
            place = (_group(job, selection.field), job.values[selection.field])
            scores.setdefault(place, []).append(_score(job, out, selection))
    rows = []
    for (group, value), of_seeds in scores.items():
        interval = mean_interval(of_seeds)
        rows.append(
            {
                "group": group,
                selection.field: value,
                "score": selection.score,
                "mean": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "seeds": len(of_seeds),
            }
        )
    table = pd.DataFrame(rows)
    order = table["mean"] if selection.less_is_better else -table["mean"]
    table["chosen"] = table.index.isin(order.groupby(table["group"], sort=False).idxmin())
    return table


def _group(job: Job, field: str) -> str:
    others: Mapping[str, Any] = {
        key: value for key, value in job.values.items() if key not in (field, "seed")
    }
    return ", ".join(f"{key} {value}" for key, value in others.items()) or "all"


def _score(job: Job, out: Path, selection: Selection) -> float:
    """Read the score after the last step; a loss that is not a number is the worst of all."""
    run, column = out / job.name, f"eval_{selection.score}"
    if state_of(run) != "finished":
        raise UserError(f"{run} is not finished: run the sweep to its end before selecting")
    metrics = files.read_table(run / "metrics.parquet")
    if column not in metrics or not metrics["eval_examples"].iloc[-1] > 0:
        raise UserError(f"{run} was not evaluated at its end: train it again, with evaluations")
    score = float(metrics[column].iloc[-1])
    return math.inf if math.isnan(score) and selection.less_is_better else score
