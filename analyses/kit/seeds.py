"""Points of runs, reduced to points of configurations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from subspace_lab.stats.intervals import mean_interval


def over_seeds(points: pd.DataFrame, *, by: Sequence[str]) -> pd.DataFrame:
    """Reduce several seeds to their mean with its 95 % t interval; one seed keeps its own ends.

    Args:
        points: columns value, low, high and `by`, a row for each seed.
        by: what tells a configuration's points apart.

    Returns:
        A row for each point, with the other columns of its first seed, and `seeds`, their number;
        flags hold where they hold for all.
    """
    reduced = []
    for _, rows in points.groupby(list(by), sort=False, observed=True, dropna=False):
        flags = rows.select_dtypes("bool").all()
        point = rows.iloc[:1].assign(
            seeds=len(rows), **{str(name): of for name, of in flags.items()}
        )
        if len(rows) > 1:
            mean = mean_interval(rows["value"])
            point = point.assign(value=mean.estimate, low=mean.low, high=mean.high)
        reduced.append(point)
    return pd.concat(reduced, ignore_index=True)
