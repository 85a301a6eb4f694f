"""Every difference that the experiments measured, in one table, whatever its own table is called.

Most are rows of `x*-differences.csv`, `x*-inference-differences.csv` and
`x*-rank-differences.csv`. A few that the paper's claims need are made here, paired by seed, of what
the same files hold for each run: between arms that no table compares (keep_probs), between gains
(over single masks, over ranks), and between effective ranks at equal norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.comparisons import PRIMARY, difference, runs_by_seed, slopes_by_seed

COLUMNS = (
    "experiment", "regime", "comparison", "outcome", "rates",
    "difference", "low", "high", "p_value", "pairs", "holm",
)  # fmt: skip
GAIN_OVER_SINGLES = "gain_over_single_masks"
WEIGHTED = "weighted_entropy"
SLOPE_OVER_RANK = "slope_over_log2_rank"
EQUAL_NORM = "entropy_at_equal_norm"
AT_LORAS_RATE = ("x6",)
"""Experiments in which every arm has LoRA's own rate."""
KEEP_PROBS = (("token-0.25", "token"), ("token-0.8", "token"))
RANKS: Mapping[str, Mapping[str, float]] = {
    regime: {f"{regime}-rank-4": 2.0, regime: 4.0, f"{regime}-rank-32": 5.0}
    for regime in ("A", "B", "C")
}
"""Regimes of X5 by log2 of their rank."""


def measured_differences(results: Path) -> pd.DataFrame:
    """Collect the differences of all experiments whose tables are in a folder.

    Args:
        results: the folder.

    Returns:
        COLUMNS: experiment, such as x1; regime; comparison, such as "step - LoRA"; outcome; rates
        (`own` or `equal`); difference, low, high and p_value of `comparisons.difference`; pairs;
        holm (of primary comparisons, else nan).
    """
    found = list(_rows(results))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return table.reindex(columns=list(COLUMNS))


def _rows(results: Path) -> Iterator[pd.DataFrame]:
    for path in sorted(results.glob("*.csv")):
        kinds = [kind for kind in READERS if path.stem.endswith(f"-{kind}")]
        if kinds:  # "rank-differences" is one of "differences", too
            kind = max(kinds, key=len)
            experiment = path.stem.removesuffix(f"-{kind}")
            table = READERS[kind](pd.read_csv(path)).assign(experiment=experiment)
            yield table.assign(rates="equal") if experiment in AT_LORAS_RATE else table


def between_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Read a table of `comparisons.compare`."""
    comparison = table["arm"] + " - " + table["against"]
    return table.assign(comparison=comparison).rename(columns={"at": "rates"})


def between_predictors(table: pd.DataFrame) -> pd.DataFrame:
    """Read the ensembles of a table of `inference.inference_differences`."""
    table = table[table["predictor"] != "scaled"]
    comparison = table["arm"] + ", " + table["predictor"] + " - full update"
    return table.assign(comparison=comparison, rates="own")


def between_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Read a table of `ranks.rank_differences`, of runs at their arm's rate."""
    table = table[table["arm"] != table["against"]]
    comparison = table["arm"] + " - " + table["against"]
    return table.assign(comparison=comparison, outcome=table["quantity"], rates="own")


def gains_over_singles(table: pd.DataFrame) -> pd.DataFrame:
    """Compare what masked arms gain over single masks with what LoRA gains.

    The gain is the calibrated loss of single masks minus that of the full update, of one run.

    Args:
        table: of `inference.inference_table`.
    """
    losses = table[table["predictor"].isin(["full", "singles"])].pivot(
        index=["regime", "arm", "seed"], columns="predictor", values="calibrated_loss"
    )
    gains = (losses["singles"] - losses["full"]).unstack("arm")
    return pd.DataFrame(
        _row(str(regime), f"{arm} - LoRA", GAIN_OVER_SINGLES, of_regime[arm] - of_regime["LoRA"])
        for regime, of_regime in gains.groupby("regime", sort=False)
        for arm in gains.columns
        if arm != "LoRA"
    )


def between_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Compare keep_probs, and token masks' gains over ranks, where a table of runs has them."""
    rows = []
    for regime in table["regime"].unique():
        for arm, against in KEEP_PROBS:
            first, second = (
                runs_by_seed(table, regime, name, "own")[PRIMARY] for name in (arm, against)
            )
            if len(both := (first - second).dropna()):
                rows.append(_row(regime, f"{arm} - {against}", PRIMARY, both))
    for name, ranks in RANKS.items():
        slopes = slopes_by_seed(table, ranks, ("token", "LoRA"))
        if len(slopes):
            rows.append(_row(name, "token - LoRA", SLOPE_OVER_RANK, slopes))
    return pd.DataFrame(rows)


def at_equal_norm(table: pd.DataFrame) -> pd.DataFrame:
    """Compare effective ranks at equal norm of dW, of `trajectories.at_equal_norm`."""
    table = table.assign(
        comparison=table["arm"] + " - " + table["against"],
        gain=table["entropy"] - table["baseline_entropy"],
    )
    table = table[table["arm"] != table["against"]]
    return pd.DataFrame(
        _row(str(regime), str(comparison), EQUAL_NORM, gains)
        for (regime, comparison), gains in table.groupby(["regime", "comparison"], sort=False)[
            "gain"
        ]
    )


def beside_theory(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the effective rank of dW Σ^½ with LoRA's, of `against_theory.theory_table`."""
    ranks = table.pivot(index=["regime", "seed"], columns="arm", values=WEIGHTED)
    rises = ranks.drop(columns="LoRA").sub(ranks["LoRA"], axis=0)
    return pd.DataFrame(
        _row(str(regime), f"{arm} - LoRA", WEIGHTED, of_arm.dropna())
        for regime, of_regime in rises.groupby("regime", sort=False)
        for arm, of_arm in of_regime.items()
        if of_arm.notna().any()  # not every regime has every arm
    )


READERS = {
    "differences": between_arms,
    "inference-differences": between_predictors,
    "rank-differences": between_ranks,
    "inference": gains_over_singles,
    "runs": between_runs,
    "equal-norm": at_equal_norm,
    "theory": beside_theory,
}


def _row(regime: str, comparison: str, outcome: str, values: pd.Series[float]) -> dict[str, Any]:
    place = {"regime": regime, "comparison": comparison, "outcome": outcome, "rates": "own"}
    return place | difference(np.asarray(values, dtype=np.float64)) | {"holm": math.nan}
