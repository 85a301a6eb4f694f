"""Paired differences between arms, and what the primary ones decide.

Of the differences d of n seeds with mean m and standard deviation s: Student's t interval, the
p-value of m sqrt(n) / s, and the smallest difference that n seeds of that spread detect with a
probability of 80 %,

    (t_{n-1, 0.975} + t_{n-1, 0.8}) s / sqrt(n).

The primary differences of an experiment are corrected together (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from experiments.design import Design
from experiments.results import OUTCOMES
from subspace_lab.stats.intervals import mean_interval
from subspace_lab.stats.multiple import holm

PRIMARY = "test_calibrated_loss"
LEVEL, POWER = 0.95, 0.8
AT = ("own", "equal")
AT_ARMS_RATE = "arm"


def compare(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Compare every arm with the baseline, and the primary and secondary pairs.

    Args:
        table: of `results_table`.
        design: the experiment.

    Returns:
        Columns regime, arm, against, at (`own`: each at its own rate; `equal`: both at the
        baseline's; `arm`: both at the arm's, where the baseline has another), learning_rate and
        against_rate, outcome, difference (arm minus against), low, high, p_value, pairs, spread
        (standard deviation of the differences), detectable, primary, and holm (the adjusted p-value
        of primary comparisons, else nan).
    """
    rows = []
    for regime, arms in design.arms_of.items():
        others = [(arm, design.baseline) for arm in arms if arm != design.baseline]
        pairs = [*design.primary, *design.secondary]
        others += [pair for pair in pairs if pair not in others]
        for arm, against in others:
            for at in (*AT, AT_ARMS_RATE) if against == design.baseline else AT:
                first, second = _compared(table, regime, (arm, against), at)
                if first.empty or second.empty:
                    continue
                for outcome in OUTCOMES:
                    if outcome not in table:
                        continue
                    differences = (first[outcome] - second[outcome]).dropna()
                    if differences.empty:
                        continue
                    primary = (
                        (arm, against) in design.primary
                        and at == "own"
                        and regime in design.primary_regimes
                    )
                    rows.append(
                        {
                            "regime": regime,
                            "arm": arm,
                            "against": against,
                            "at": at,
                            "learning_rate": first["learning_rate"].iloc[0],
                            "against_rate": second["learning_rate"].iloc[0],
                            "outcome": outcome,
                            **difference(differences.to_numpy()),
                            "primary": primary and outcome == PRIMARY,
                        }
                    )
    rows += [slope_row(table, design, arms) for arms in design.primary if design.slope]
    return corrected(pd.DataFrame(rows))


def _compared(
    table: pd.DataFrame, regime: str, arms: tuple[str, str], at: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the runs by seed of two arms."""
    if at != AT_ARMS_RATE:
        first, second = (runs_by_seed(table, regime, arm, at) for arm in arms)
        return first, second
    own = runs_by_seed(table, regime, arms[0], "own")
    at_its_rate = ~table["own"] & table["learning_rate"].isin(own["learning_rate"])
    return own, runs_by_seed(table.assign(arm_rate=at_its_rate), regime, arms[1], "arm_rate")


def slope_row(table: pd.DataFrame, design: Design, arms: tuple[str, str]) -> dict[str, Any]:
    """Test the slopes of the primary difference over a setting.

    Returns:
        A row of `compare` about the slopes, whose regime lists those that it is fitted to.
    """
    slopes = slopes_by_seed(table, design.slope, arms)
    return {
        "regime": "slope over " + ", ".join(design.slope),
        "arm": arms[0],
        "against": arms[1],
        "at": "own",
        "outcome": PRIMARY,
        **difference(np.asarray(slopes, dtype=np.float64)),
        "primary": True,
    }


def slopes_by_seed(
    table: pd.DataFrame, settings: Mapping[str, float], arms: tuple[str, str]
) -> pd.Series[float]:
    """Fit the difference of two arms over a setting, for each seed that all its regimes have.

    Args:
        table: of `results_table`.
        settings: the regimes with their values of the setting.
        arms: first minus second, each at its own rate.

    Returns:
        Slopes of PRIMARY.
    """
    columns = []
    for regime in settings:
        first, second = (runs_by_seed(table, regime, arm, "own")[PRIMARY] for arm in arms)
        columns.append((first - second).rename(regime))
    differences = pd.concat(columns, axis=1).dropna()
    x = np.array(list(settings.values()))
    slopes = differences.to_numpy(np.float64) @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return pd.Series(slopes, index=differences.index)


def runs_by_seed(table: pd.DataFrame, regime: str, arm: str, at: str) -> pd.DataFrame:
    """Give an arm's runs by seed; those that differ in another seed only are averaged."""
    rows = table[(table["regime"] == regime) & (table["arm"] == arm) & table[at]]
    return rows.groupby("seed").mean(numeric_only=True)


def difference(values: NDArray[np.float64]) -> dict[str, float]:
    """Summarize paired differences (n,); without a spread there is no test.

    >>> row = difference(np.array([1.0, 2.0, 3.0]))
    >>> row["difference"], round(row["p_value"], 3), round(row["detectable"], 2)
    (2.0, 0.074, 3.1)
    """
    interval, n = mean_interval(values, level=LEVEL), len(values)
    mean = float(interval.estimate)
    spread = float(np.std(values, ddof=1)) if n > 1 else math.nan
    error = spread / math.sqrt(n)
    t = mean / error if error else math.nan
    quantiles = stdtrit(n - 1, (1 + LEVEL) / 2) + stdtrit(n - 1, POWER)
    return {
        "difference": mean,
        "low": float(interval.low),
        "high": float(interval.high),
        "p_value": float(2 * stdtr(n - 1, -abs(t))),
        "pairs": n,
        "spread": spread,
        "detectable": float(quantiles * error),
    }


def corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """Add Holm's adjusted p-values of the primary comparisons."""
    rows = rows.assign(holm=math.nan)
    primary = rows["primary"] & rows["p_value"].notna()
    if primary.any():
        rows.loc[primary, "holm"] = holm(rows.loc[primary, "p_value"])
    return rows
