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
    points = points.reset_index(drop=True)
    repeated = points.duplicated(list(by), keep=False)
    reduced = [points[~repeated].assign(seeds=1)]
    groups = points[repeated].groupby(list(by), sort=False, observed=True, dropna=False)
    for _, rows in groups:
        mean = mean_interval(rows["value"])
        point = rows.iloc[:1].assign(
            value=mean.estimate, low=mean.low, high=mean.high, seeds=len(rows)
        )
        flags = rows.select_dtypes("bool").all()
        reduced.append(point.assign(**{str(name): flag for name, flag in flags.items()}))
    return pd.concat(reduced).sort_index().reset_index(drop=True)
