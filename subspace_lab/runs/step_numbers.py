"""A few numbers that say how a step changed a run's update: for its log, and for watching it.

    effective_rank   exp of the entropy of the singular values of the update (Roy and Vetterli 2007)
    step_length      ||dW_t - dW_(t-1)||_F
    row_drift        largest principal angle between the row spaces of A now and a step ago, radians
    column_drift     the same of the column spaces of B
    balance_ratio    sum_i ||b_i||^2 ||a_i||^2 / ||B A||_F^2
    kept_share       share of the rank directions that the step's mask kept

The definitions are those of the analyses `effective_rank` (matrix `update` or `product`, measure
`entropy`), `frame_drift` (since `previous`) and `regulariser`, so that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from subspace_lab import linalg
from subspace_lab.linalg.rank_core import Frame
from subspace_lab.runs.core_batches import CoreBatch
from subspace_lab.theory.regularizer import explicit_regularizer

NAMES = (
    "effective_rank", "step_length", "row_drift", "column_drift", "balance_ratio", "kept_share",
)  # fmt: skip


def step_numbers(
    batches: Iterable[CoreBatch],
    kept: Mapping[str, NDArray[np.bool_]],
    *,
    since_start: bool,
) -> pd.DataFrame:
    """Compute the numbers of one step, module by module.

    Args:
        batches: the cores of the step, with displacements.
        kept: its step masks, module name to (r,); empty: none.
        since_start: the update is B A - B0 A0, since B0 A0 was taken out of the base (PiSSA).

    Returns:
        A row per module whose core is finite: module, projection and the columns `NAMES`; nan where
        there is nothing to measure (a frame that was zero, no masks).
    """
    tables = [_of_batch(batch, since_start=since_start) for batch in batches]
    table = pd.concat(tables, ignore_index=True)
    shares = {module: float(mask.mean()) for module, mask in kept.items()}
    return table.assign(kept_share=table["module"].map(shares).astype(float))


def medians(numbers: pd.DataFrame, *, by_projection: bool = False) -> dict[str, float]:
    """Give medians over modules by name, `effective_rank`; what no module has is left out.

    Args:
        numbers: from `step_numbers`.
        by_projection: also those of each projection, `effective_rank/q_proj`.
    """
    columns = list(NAMES)
    found = dict(numbers[columns].median().dropna())
    if by_projection:
        for projection, rows in numbers.groupby("projection", sort=False):
            of_projection = rows[columns].median().dropna()
            found |= {f"{name}/{projection}": value for name, value in of_projection.items()}
    return {str(name): float(value) for name, value in found.items()}


def _of_batch(batch: CoreBatch, *, since_start: bool) -> pd.DataFrame:
    finite = batch.finite[0]
    core = batch.core[0][torch.from_numpy(finite)]
    norm = core.norm()
    sigma = torch.linalg.svdvals(core.change("start")) if since_start else core.singular_values()
    regularizer = core.scaling**2 * explicit_regularizer(core.column.R, core.row.R.mT)
    values = {
        "effective_rank": linalg.effective_rank(sigma, measure="entropy"),
        "step_length": core.change_norm("previous"),
        "row_drift": _drift(core.row),
        "column_drift": _drift(core.column),
        "balance_ratio": regularizer / norm.masked_fill(norm == 0, torch.nan) ** 2,
    }
    of_modules = batch.modules.loc[finite, ["module", "projection"]].reset_index(drop=True)
    numbers = {name: value.numpy() for name, value in values.items()}
    table: pd.DataFrame = pd.concat([of_modules, pd.DataFrame(numbers)], axis=1)
    return table


def _drift(frame: Frame) -> Float[Tensor, "*batch"]:
    """Largest angle to the frame of the previous step; nan where that was zero."""
    angles = linalg.principal_angles(frame.now(), frame.before("previous"))
    largest = angles.nan_to_num(-1.0).amax(-1)
    drift: Tensor = largest.where(largest >= 0, torch.nan)
    return drift
