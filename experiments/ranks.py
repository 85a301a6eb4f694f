"""X6: effective ranks of single runs, and of what runs of different masks have in common.

With dW_s the update of mask seed s among S, everything else being equal,

    dW_s = mean + deviation_s,        mean = (1/S) sum_s dW_s.

If masks drive a random walk around a common signal, the rank is in the deviations; the mean of S
runs keeps 1/S of their squared norm, spread over up to S r directions. The bias of that remainder
is removed from norms by

    ||signal||_F^2 = S/(S - 1) (||mean||_F^2 - (1/S^2) sum_s ||dW_s||_F^2),

and from a spectrum by crossing: with the singular vectors u_i, v_i of the mean over one half of the
runs, u_i^T M v_i of the mean M over the other half has no remainder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.comparisons import difference
from experiments.design import Cell, Design
from experiments.running import Rates
from subspace_lab.linalg import Measure, effective_rank
from subspace_lab.runs.run import Run

MEASURES: tuple[Measure, ...] = ("entropy", "stable", "participation")


def rank_table(design: Design, final: Path, own: Rates) -> pd.DataFrame:
    """Measure each regime, arm and seed: medians over modules.

    Args:
        design: the experiment.
        final: the folder of its final runs.
        own: the chosen rate of each place.

    Returns:
        Columns regime, arm, seed, runs (how many differ in their mask seed only), and those of
        `rank_rows`.
    """
    rows = []

    def place(cell: Cell) -> tuple[str, str, int]:
        return cell.regime, cell.arm, cell.fields["seed"]

    for (regime, arm, seed), cells in groupby(design.final_cells(own), place):
        folders = [final / cell.name for cell in cells]
        medians = pd.DataFrame(rank_rows(folders)).median(numeric_only=True)
        row = {"regime": regime, "arm": arm, "seed": seed, "runs": len(folders)}
        rows.append(row | medians.to_dict())
    return pd.DataFrame(rows)


def rank_differences(table: pd.DataFrame, *, baseline: str) -> pd.DataFrame:
    """Compare each arm's ranks with the baseline's single ones, paired by seed.

    Returns:
        Columns regime, arm, quantity (such as single_entropy), baseline_mean, arm_mean and those of
        `comparisons.difference`.
    """
    quantities = [
        f"{kind}_{name}"
        for kind in ("single", "mean", "crossed")
        for name in (*MEASURES, "norm")
        if f"{kind}_{name}" in table
    ]
    rows = []
    for regime, of_regime in table.groupby("regime", sort=False):
        first = of_regime[of_regime["arm"] == baseline].set_index("seed")
        for arm, of_arm in of_regime.groupby("arm", sort=False):
            for quantity in quantities:
                second = of_arm.set_index("seed")[quantity]
                usual = first["single_" + quantity.partition("_")[2]]
                both = (second - usual).dropna().to_numpy(np.float64)
                if not len(both):  # crossed spectra need several runs
                    continue
                values = {"baseline_mean": usual.mean(), "arm_mean": second.mean()}
                row = {"regime": regime, "arm": arm, "quantity": quantity, **values}
                rows.append(row | difference(both))
    return pd.DataFrame(rows)


def update(run: Run, module: str) -> Float[Tensor, "m n"]:
    """Give dW of a module at a run's last step, in float64."""
    factors = run.factors(run.final_step, module)
    product: Tensor = factors.scaling * (factors.B.double() @ factors.A.double())
    return product


def rank_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Measure runs that differ in their mask seed only, one by one and as their mean.

    Args:
        runs: their folders; a single one is its own mean.

    Returns:
        A row for each module: the mean over runs of each effective rank and of the norm (Frobenius)
        of dW as `single_MEASURE` and `single_norm`, those of the mean of dW as `mean_MEASURE` and
        `mean_norm`; of several runs also `signal_share`, ||signal||_F^2 over the mean of
        ||dW_s||_F^2, and `crossed_MEASURE`, of crossed spectra.
    """
    opened = [Run(folder) for folder in runs]
    return [
        {"module": module, **ranks_of([update(run, module) for run in opened])}
        for module in opened[0].modules["module"]
    ]


def ranks_of(updates: Sequence[Float[Tensor, "m n"]]) -> dict[str, float]:
    """Measure several updates of one module and their mean; see `rank_rows`.

    >>> a, b = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    >>> row = ranks_of([a.double(), b.double()])
    >>> round(row["single_entropy"], 6), round(row["mean_entropy"], 6), row["signal_share"]
    (1.0, 2.0, 0.0)
    """
    stacked = torch.stack(list(updates))
    count, mean = len(stacked), stacked.mean(0)
    singular, of_mean = torch.linalg.svdvals(stacked), torch.linalg.svdvals(mean)
    squares = float((singular**2).sum(-1).mean())
    row: dict[str, float] = {}
    for measure in MEASURES:
        row[f"single_{measure}"] = float(effective_rank(singular, measure=measure).mean())
        row[f"mean_{measure}"] = float(effective_rank(of_mean, measure=measure))
    row["single_norm"] = float(singular.square().sum(-1).sqrt().mean())
    row["mean_norm"] = float(of_mean.norm())
    if count > 1:
        signal = count / (count - 1) * (float(of_mean.square().sum()) - squares / count)
        row["signal_share"] = signal / squares
        crossed = crossed_spectra(stacked)
        for measure in MEASURES:
            row[f"crossed_{measure}"] = float(effective_rank(crossed, measure=measure).mean())
    return row


def crossed_spectra(updates: Float[Tensor, "runs m n"]) -> Float[Tensor, "crossings k"]:
    """Give spectra of one half's mean in the singular vectors of the other's, descending.

    Halves are the first and second runs, and the even and odd ones, each crossed both ways.
    Values below zero, which no signal has, are set to zero: what noise is left makes effective
    ranks too large, not too small.

    >>> same = torch.diag(torch.tensor([3.0, 1.0])).double().expand(4, 2, 2)
    >>> crossed_spectra(same)[0]
    tensor([3., 1.], dtype=torch.float64)
    """
    half = len(updates) // 2
    pairs = [(updates[:half], updates[half:]), (updates[::2], updates[1::2])]
    spectra = []
    for first, second in [*pairs, *(pair[::-1] for pair in pairs)]:
        U, _, Vh = torch.linalg.svd(first.mean(0), full_matrices=False)
        crossed = torch.einsum("mk,mn,kn->k", U, second.mean(0), Vh)
        spectra.append(crossed.clamp(min=0).sort(descending=True).values)
    return torch.stack(spectra)
