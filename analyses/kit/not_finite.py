"""Cores with nan or infinities, which training leaves when it diverges: their numbers are nan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
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
    bad = set(zip(batch.steps[steps].tolist(), names[modules], strict=True))
    tables = function(replace(batch, core=_finite_core(batch.core, torch.from_numpy(finite))))
    if isinstance(tables, list):
        return [_blank(table, bad) for table in tables]
    return _blank(tables, bad)


def _finite_core(core: RankCore, finite: torch.Tensor) -> RankCore:
    """Put identities in the place of cores that are not finite, and no displacement."""

    def part(matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return matrix.where(finite[..., None, None], other)

    def displacement(given: Displacement | None) -> Displacement | None:
        if given is None:
            return None
        zero = given.along.new_zeros(given.along.shape[-1], given.along.shape[-1])
        return Displacement(part(given.along, zero), part(given.across, zero))

    def frame(frame: Frame) -> Frame:
        identity = torch.eye(frame.R.shape[-1], dtype=frame.R.dtype)
        return Frame(
            part(frame.R, identity), displacement(frame.previous), displacement(frame.start)
        )

    return RankCore(frame(core.row), frame(core.column), core.scaling)


def _blank(table: pd.DataFrame, bad: set[tuple[int, str]]) -> pd.DataFrame:
    """Replace the numbers in the rows of the given steps and modules."""
    pairs = zip(table["step"], table["module"], strict=True)
    rows = np.fromiter((pair in bad for pair in pairs), dtype=bool, count=len(table))
    for name, column in table.items():
        if is_float_dtype(column):
            table[name] = column.mask(rows)
        elif is_object_dtype(column):  # lists of angles
            table[name] = column.mask(rows, column.map(lambda values: values[:0]))
    return table
