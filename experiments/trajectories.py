"""X6: effective rank against the size of the update, over training.

Two arms may differ in rank because one has come further. At the largest norm that both reach, they
are compared at equal size of dW.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses import kit
from experiments.design import Design, Rates
from subspace_lab.linalg import effective_rank
from subspace_lab.runs.run import Run


def trajectory_table(design: Design, final: Path, own: Rates) -> pd.DataFrame:
    """Follow dW over the recorded steps of the first run of each regime, arm and seed.

    Args:
        design: the experiment.
        final: the folder of its final runs.
        own: the chosen rate of each place.

    Returns:
        Columns regime, arm, seed, step, entropy (effective rank of dW) and norm (Frobenius), as
        medians over modules.
    """
    parts = []
    for (regime, arm, seed), cell in design.first_cells(own).items():
        of_run = trajectory(Run(final / cell.name))
        parts.append(of_run.assign(regime=regime, arm=arm, seed=seed))
    return pd.concat(parts, ignore_index=True)[["regime", "arm", "seed", *parts[0].columns[:3]]]


def trajectory(run: Run) -> pd.DataFrame:
    """Give step, entropy and norm of dW at each recorded step, medians over modules."""

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        sigma = batch.core.singular_values()
        values = {"entropy": effective_rank(sigma), "norm": sigma.square().sum(-1).sqrt()}
        return kit.grid_table(run, batch, values)

    table = kit.concatenate(
        kit.over_batches(run, of_batch, steps=None, modules=None, displacements=False)
    )
    return table.groupby("step")[["entropy", "norm"]].median().reset_index()


def at_equal_norm(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Give each arm's entropy effective rank and its baseline's at the same norm of dW.

    Args:
        table: of `trajectory_table`.
        design: the experiment.

    Returns:
        Columns regime, arm, against, seed, norm (the largest that both reach), entropy and
        baseline_entropy, interpolated between recorded steps; no row where one's
        smallest recorded norm is above the other's largest.
    """
    rows: list[dict[str, Any]] = []
    for (regime, seed), group in table.groupby(["regime", "seed"], sort=False):
        for arm, of_arm in group.groupby("arm", sort=False):
            against = design.baseline_of.get(str(arm), design.baseline)
            usual = _growing(group[group["arm"] == against])
            other = _growing(of_arm)
            norm = min(usual["norm"].max(), other["norm"].max())
            if norm < max(usual["norm"].min(), other["norm"].min()):
                continue  # one was never as small as the other at its largest
            entropy, of_baseline = (
                float(np.interp(norm, one["norm"], one["entropy"])) for one in (other, usual)
            )
            place = {"regime": regime, "arm": arm, "against": against, "seed": seed, "norm": norm}
            rows.append({**place, "entropy": entropy, "baseline_entropy": of_baseline})
    return pd.DataFrame(rows)


def _growing(trajectory: pd.DataFrame) -> pd.DataFrame:
    """Keep the steps at which the norm is larger than ever before, and not zero."""
    norm = trajectory["norm"]
    return trajectory[(norm > norm.cummax().shift(fill_value=0.0)) & (norm > 0)]
