"""What is drawn of single runs, reduced to configurations: means with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analyses import kit


def over_seeds(plot: kit.Plot, *, keys: Sequence[str]) -> kit.Plot:
    """Make the plot of configurations from one that draws points of runs.

    The table of what it draws has the columns run, value, low, high and `keys`, which tell a run's
    points apart.
    """
    return kit.Plot(plot.draw, points_over_seeds(plot.shown, keys))


def points_over_seeds(
    points_of: Callable[[pd.DataFrame], pd.DataFrame], keys: Sequence[str]
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Make the function from an analysis's table to the points of configurations.

    Of several seeds a point is their mean with its 95 % t interval, of one it keeps its own; single
    masks stay single. The column `run` names the configuration, `seeds` counts its runs; flags hold
    where they hold for all.
    """

    def data(table: pd.DataFrame) -> pd.DataFrame:
        points = points_of(table)
        first = table.drop_duplicates("run")
        of_run = dict(zip(first["run"].astype(str), first["configuration"], strict=True))
        points = points.assign(run=points["run"].astype(str).map(of_run), seeds=1)
        single = points["kind"] == "one mask" if "kind" in points else points["seeds"] == 0
        reduced = kit.over_seeds(points[~single], by=["run", *keys])
        return pd.concat([reduced, points[single]], ignore_index=True)

    return data
