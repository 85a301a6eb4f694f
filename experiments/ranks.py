"""X6: effective ranks of single runs, and of what runs of different masks have in common.

With dW_s the update of mask seed s among S, everything else being equal,

    dW_s = mean + deviation_s,        mean = (1/S) sum_s dW_s.

If masks drive a random walk around a common signal, the rank is in the deviations; the mean of S
runs keeps 1/S of their squared norm, spread over up to S r directions. The bias of that remainder
is removed from norms by

    ||signal||_F^2 = S/(S - 1) (||mean||_F^2 - (1/S^2) sum_s ||dW_s||_F^2),

and from a spectrum by crossing: with the singular vectors u_i, v_i of the mean over one half of the
runs, u_i^T M v_i of the mean M over the other half has no remainder of its own. What is left of the
noise turns u_i and v_i away from the signal's directions, so that crossed spectra fall off too fast
where the signal is weak. They are therefore compared with their own null: the baseline's update
under the same deviations, planted_s = dW_baseline + sqrt(S/(S - 1)) deviation_s, crossed alike.
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
from tqdm import tqdm

from experiments.comparisons import difference
from experiments.design import Cell, Design, Rates
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

    cells_by_place = [(key, list(cells)) for key, cells in groupby(design.own_cells(own), place)]
    usual = {
        (regime, seed): final / cells[0].name
        for (regime, arm, seed), cells in cells_by_place
        if arm == design.baseline
    }
    for (regime, arm, seed), cells in tqdm(cells_by_place, desc="ranks", disable=None):
        folders = [final / cell.name for cell in cells]
        measured = rank_rows(folders, baseline=usual[regime, seed])
        medians = pd.DataFrame(measured).median(numeric_only=True)
        row = {"regime": regime, "arm": arm, "seed": seed, "runs": len(folders)}
        rows.append(row | medians.to_dict())
    return pd.DataFrame(rows)


def rank_differences(table: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Compare each arm's ranks with the single ones of its baseline, paired by seed.

    Crossed ones are compared with those of the baseline planted among the arm's deviations.

    Args:
        table: of `rank_table`.
        design: the experiment.

    Returns:
        Columns regime, arm, against, quantity (such as single_entropy), baseline_mean, arm_mean and
        those of `comparisons.difference`.
    """
    quantities = [
        f"{kind}_{name}"
        for kind in ("single", "mean", "crossed")
        for name in (*MEASURES, "norm")
        if f"{kind}_{name}" in table
    ]
    rows = []
    for regime, of_regime in table.groupby("regime", sort=False):
        for arm, of_arm in of_regime.groupby("arm", sort=False):
            against = design.baseline_of.get(str(arm), design.baseline)
            first = of_regime[of_regime["arm"] == against].set_index("seed")
            for quantity in quantities:
                second = of_arm.set_index("seed")[quantity]
                kind, _, measure = quantity.partition("_")
                usual = first[f"single_{measure}"]
                if kind == "crossed":
                    usual = of_arm.set_index("seed")[f"planted_{measure}"]
                both = (second - usual).dropna().to_numpy(np.float64)
                if not len(both):  # crossed spectra need several runs
                    continue
                values = {"baseline_mean": usual.mean(), "arm_mean": second.mean()}
                place = {"regime": regime, "arm": arm, "against": against}
                rows.append({**place, "quantity": quantity, **values, **difference(both)})
    return pd.DataFrame(rows)


def update(run: Run, module: str) -> Float[Tensor, "m n"]:
    """Give dW of a module at a run's last step, in float64."""
    factors = run.factors(run.final_step, module)
    product: Tensor = factors.scaling * (factors.B.double() @ factors.A.double())
    return product


def rank_rows(runs: Sequence[Path], *, baseline: Path) -> list[dict[str, Any]]:
    """Measure runs that differ in their mask seed only, one by one and as their mean.

    Args:
        runs: their folders; a single one is its own mean.
        baseline: the run whose update is planted.

    Returns:
        A row for each module: the mean over runs of each effective rank and of the norm (Frobenius)
        of dW as `single_MEASURE` and `single_norm`, those of the mean of dW as `mean_MEASURE` and
        `mean_norm`; of several runs also `signal_share`, ||signal||_F^2 over the mean of
        ||dW_s||_F^2, and `crossed_MEASURE` and `planted_MEASURE`, of crossed spectra of the runs
        and of the baseline's update under their deviations.
    """
    if len(runs) == 1:
        return _rows_of_one(Run(runs[0]))
    opened, usual = [Run(folder) for folder in runs], Run(baseline)
    rows = []
    for module in opened[0].modules["module"]:
        updates = torch.stack([update(run, module) for run in opened])
        null = planted(updates, update(usual, module))
        row = {"module": module, **ranks_of(list(updates)), **crossed_ranks(null, "planted")}
        rows.append(row)
    return rows


def _rows_of_one(run: Run) -> list[dict[str, Any]]:
    """Measure one run from its last core, whose singular values are dW's."""
    rows = []
    for module in run.modules["module"]:
        singular = run.core(run.final_step, module).singular_values().double()
        row = {"module": module}
        for kind in ("single", "mean"):
            row |= {
                f"{kind}_{measure}": float(effective_rank(singular, measure=measure))
                for measure in MEASURES
            }
            row[f"{kind}_norm"] = float(singular.norm())
        rows.append(row)
    return rows


def planted(
    updates: Float[Tensor, "runs m n"], signal: Float[Tensor, "m n"]
) -> Float[Tensor, "runs m n"]:
    """Give a signal the deviations of runs, with the variance that these have about their own."""
    count = len(updates)
    null: Tensor = signal + (count / (count - 1)) ** 0.5 * (updates - updates.mean(0))
    return null


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
        row |= crossed_ranks(stacked, "crossed")
    return row


def crossed_ranks(updates: Float[Tensor, "runs m n"], name: str) -> dict[str, float]:
    """Give `NAME_MEASURE`, the mean effective rank of crossed spectra."""
    spectra = crossed_spectra(updates)
    return {
        f"{name}_{measure}": float(effective_rank(spectra, measure=measure).mean())
        for measure in MEASURES
    }


def crossed_spectra(updates: Float[Tensor, "runs m n"]) -> Float[Tensor, "crossings k"]:
    """Give spectra of one half's mean in the singular vectors of the other's, descending.

    Halves are the first and second runs, and the even and odd ones, each crossed both ways.
    Values below zero, which no signal has, are set to zero.

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
