"""Cores with nan or infinities, which training leaves when it diverges: their numbers are nan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pandas as pd
import torch
from pandas.api.types import is_float_dtype, is_object_dtype

from subspace_lab.linalg.rank_core import Displacement, Frame, RankCore
from subspace_lab.runs.core_batches import CoreBatch

Tables = TypeVar("Tables", pd.DataFrame, list[pd.DataFrame])


def nan_where_not_finite(function: Callable[[CoreBatch], Tables], batch: CoreBatch) -> Tables:
    """Apply a function to a batch; its numbers for cores that are not finite become nan.

    LAPACK refuses such matrices, with an error that names none of them. They are replaced by
    identities, and every float in the rows of their step and module by nan (lists become empty).

    Args:
        function: from a batch to tables with the columns `step` and `module`.
        batch: the batch.
    """
    finite = batch.finite
    if finite.all():
        return function(batch)
    steps, modules = (~finite).nonzero()
    names = batch.modules["module"].to_numpy()
    bad = pd.MultiIndex.from_arrays([batch.steps[steps], names[modules]])
    tables = function(replace(batch, core=_finite_core(batch.core, torch.from_numpy(finite))))
    for table in tables if isinstance(tables, list) else [tables]:
        rows = pd.MultiIndex.from_arrays([table["step"], table["module"].astype(str)]).isin(bad)
        for name, column in table.items():
            if is_float_dtype(column):
                table[name] = column.mask(rows)
            elif is_object_dtype(column):  # lists of angles
                table[name] = column.mask(rows, column.map(lambda values: values[:0]))
    return tables


def _finite_core(core: RankCore, finite: torch.Tensor) -> RankCore:
    """Put identities in the place of cores that are not finite, (T, M)."""

    def part(matrix: torch.Tensor) -> torch.Tensor:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        return matrix.where(finite[..., None, None], identity)

    def displacement(given: Displacement | None) -> Displacement | None:
        return given and Displacement(part(given.along), part(given.across))

    def frame(given: Frame) -> Frame:
        return Frame(part(given.R), displacement(given.previous), displacement(given.start))

    return RankCore(frame(core.row), frame(core.column), core.scaling)
