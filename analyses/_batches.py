"""Work on all processors: cores in batches, and their masks."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from analyses._not_finite import Tables, nan_where_not_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subspace_lab.recording.core_batches import CoreBatch
    from subspace_lab.recording.run import Run

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    LAPACK works outside Python's lock, so threads use all processors. At most two items per
    thread are held at once, so memory stays bounded however many there are.

    Args:
        function: of an item.
        items: taken as they are needed.
        total: sum of the items' sizes.
        unit: what sizes count.
        description: shown before the bar.
        size: of an item.
    """
    import torch
    from tqdm import tqdm

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


def map_cores(
    run: Run,
    function: Callable[[CoreBatch], Tables],
    *,
    steps: Collection[int] | None,
    modules: Collection[str] | None,
    motions: bool = False,
) -> Iterator[Tables]:
    """Apply a function to all cores of a run, a few steps at a time, in order.

    Args:
        run: the run.
        function: from a batch of cores (T, M) of modules that share a rank to tables with the
            columns `step` and `module`; of cores that are not finite their numbers are nan.
        steps: only these; None: all.
        modules: only these; None: all.
        motions: whether the function needs the displacements.
    """
    chosen = len(run.modules if modules is None else modules)
    return map_parallel(
        functools.partial(nan_where_not_finite, function),
        run.cores(steps=steps, modules=modules, motions=motions),
        total=chosen * len(run.steps if steps is None else steps),
        unit="core",
        description=run.name,
        size=lambda batch: len(batch.steps) * len(batch.modules),
    )


class StepMasks:
    """All step masks of a run, for looking them up by step and module.

    Warns of steps whose masks are missing from the record, since analyses leave them out.

    Args:
        run: the run.

    Raises:
        UserError: if the run has no step masks.
    """

    def __init__(self, run: Run) -> None:
        import warnings

        from subspace_lab.recording.run import ranges

        if missing := run.steps_without_mask:
            warnings.warn(
                f"{run.path} lacks the masks of the steps {ranges(missing)}, which are left out: "
                f"restore the missing chunk in {run.path / 'masks'}",
                stacklevel=2,
            )
        self._path = run.path
        self._masks: dict[str, NDArray[np.bool_]] = {}
        for rank in run.modules["r"].unique():
            self._steps, masks = run.masks_of_rank(int(rank))
            names = run.modules.loc[run.modules["r"] == rank, "module"]
            self._masks |= dict(zip(names, masks.swapaxes(0, 1), strict=True))

    def has(self, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell whether the masks of the given steps were recorded (T,)."""
        import numpy as np

        return np.isin(steps, self._steps)

    def at(self, steps: NDArray[np.int64], modules: Collection[str]) -> NDArray[np.bool_]:
        """Give the masks (T, M, r) of recorded steps and of modules that share a rank.

        Raises:
            UserError: if the mask of a step was not recorded.
        """
        import numpy as np

        from subspace_lab.errors import UserError
        from subspace_lab.recording.run import ranges

        if missing := steps[~self.has(steps)].tolist():
            raise UserError(f"{self._path} has no masks of the steps {ranges(missing)}")
        places = np.searchsorted(self._steps, steps)
        return np.stack([self._masks[module][places] for module in modules], axis=1)
