"""Tables from rank cores: iterate over all cores of a run on all processors.

A table's row is one entry of an array (T, M, *axes): steps, modules that share a rank, and axes of
the analysis's own, such as side or measure.
"""

from __future__ import annotations

import collections
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api.types import is_float_dtype, is_object_dtype
from torch import Tensor
from tqdm import tqdm

from analyses.kit.tables import concatenate, grid_table
from subspace_lab.errors import UserError
from subspace_lab.linalg.rank_core import Displacement, Frame, RankCore
from subspace_lab.runs.core_batches import CoreBatch
from subspace_lab.runs.run import Run
from subspace_lab.runs.steps import ranges

Item = TypeVar("Item")
Result = TypeVar("Result")
Tables = TypeVar("Tables", pd.DataFrame, list[pd.DataFrame])
Steps = Collection[int] | None
"""The steps of a run that an analysis is about; None: all."""
Modules = Collection[str] | None
"""Its modules; None: all."""


def over_cores(
    *, axes: Mapping[str, Sequence[str]] | None = None, **columns: Callable[[RankCore], Tensor]
) -> Callable[..., pd.DataFrame]:
    """Make the `compute` of an analysis whose columns are functions of a core alone.

    Args:
        axes: name and labels of each axis that the functions' values have beyond (T, M).
        columns: name of each column, and its function of a batch of cores, batch dimensions
            (T, M), to values (T, M, *axes).
    """

    def compute(run: Run, *, steps: Steps = None, modules: Modules = None) -> pd.DataFrame:
        def of_batch(batch: CoreBatch) -> pd.DataFrame:
            values = {name: function(batch.core) for name, function in columns.items()}
            return grid_table(run, batch, values, axes=axes)

        return concatenate(over_batches(run, of_batch, steps=steps, modules=modules))

    return compute


def over_batches(
    run: Run,
    function: Callable[[CoreBatch], Tables],
    *,
    steps: Steps,
    modules: Modules,
    displacements: bool = False,
) -> Iterator[Tables]:
    """Apply a function to all cores of a run, a few at a time: by step, and by rank.

    Reading and factorising take place in the pool, too. The function makes tables with the columns
    `step` and `module` of a batch of cores (T, M) of modules that share a rank; for cores that are
    not finite their numbers are nan. Displacements are read only with `displacements`.
    """
    chosen = len(run.modules if modules is None else modules)
    return map_parallel(
        lambda pending: nan_where_not_finite(function, pending.load()),
        run.pending_cores(steps=steps, modules=modules, displacements=displacements),
        total=chosen * len(run.steps if steps is None else steps),
        unit="core",
        description=run.name,
        size=lambda pending: pending.count,
    )


def nan_where_not_finite(function: Callable[[CoreBatch], Tables], batch: CoreBatch) -> Tables:
    """Apply a function to a batch; its numbers for cores that are not finite become nan.

    Training leaves such cores (nan, infinities) when it diverges, and LAPACK refuses them, with an
    error that names none. They are replaced by identities, and every float in the rows of their
    step and module by nan (lists become empty).
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


def _finite_core(core: RankCore, finite: Tensor) -> RankCore:
    """Put identities in the place of cores that are not finite, (T, M)."""

    def part(matrix: Tensor) -> Tensor:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        return matrix.where(finite[..., None, None], identity)

    def displacement(given: Displacement | None) -> Displacement | None:
        return given and Displacement(part(given.along), part(given.across))

    def frame(given: Frame) -> Frame:
        return Frame(part(given.R), displacement(given.previous), displacement(given.start))

    return RankCore(frame(core.row), frame(core.column), core.scaling)


def map_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    total: int,
    unit: str,
    description: str,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Result]:
    """Apply a function to items, in order, with a progress bar.

    LAPACK works outside Python's lock, so threads use all processors, one each. At most two items
    per thread are held at once, so memory stays bounded however many there are. The bar counts the
    `size` of items in a `unit` up to their `total`, behind a `description`.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: collections.deque[tuple[int, Future[Result]]] = collections.deque()
    with (
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(total=total, unit=unit, desc=description, disable=None) as bar,
    ):
        for item in items:
            waiting.append((size(item), pool.submit(function, item)))
            if len(waiting) > 2 * (threads or 1):
                done, result = waiting.popleft()
                yield result.result()
                bar.update(done)
        for done, result in waiting:
            yield result.result()
            bar.update(done)


class StepMasks:
    """All step masks of a run, for looking them up by step and module; none if it has none.

    Warns of steps whose masks are missing from the record, since analyses leave them out.

    Raises:
        UserError: if all of its masks were deleted.
    """

    def __init__(self, run: Run) -> None:
        if missing := run.steps_without_mask:
            warnings.warn(
                f"{run.path} lacks the masks of the steps {ranges(missing)}, which are left out: "
                f"restore the missing chunk in {run.path / 'masks'}",
                stacklevel=2,
            )
        self._path = run.path
        self._steps = np.array([], dtype=np.int64)
        self._masks: dict[str, NDArray[np.bool_]] = {}
        for rank in run.modules["r"].unique() if run.mask_steps or missing else ():
            self._steps, masks = run.masks_of_rank(int(rank))
            names = run.modules.loc[run.modules["r"] == rank, "module"]
            self._masks |= dict(zip(names, masks.swapaxes(0, 1), strict=True))

    def has(self, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell whether the masks of the given steps were recorded (T,)."""
        return np.isin(steps, self._steps)

    def at(self, steps: NDArray[np.int64], modules: Collection[str]) -> NDArray[np.bool_]:
        """Give the masks (T, M, r) of recorded steps and of modules that share a rank.

        Raises:
            UserError: if the mask of a step was not recorded.
        """
        if missing := steps[~self.has(steps)].tolist():
            raise UserError(f"{self._path} has no masks of the steps {ranges(missing)}")
        places = np.searchsorted(self._steps, steps)
        return np.stack([self._masks[module][places] for module in modules], axis=1)

    def kept(self, steps: NDArray[np.int64], batch: CoreBatch) -> Tensor:
        """Give the masks (T, M, r) as 0 and 1; nan at steps whose masks were not recorded."""
        recorded = self.has(steps)
        kept = torch.full(batch.core.row.R.shape[:-1], torch.nan, dtype=torch.float64)
        if recorded.any():
            masks = self.at(steps[recorded], batch.modules["module"])
            kept[torch.from_numpy(recorded)] = torch.from_numpy(masks).double()
        return kept
