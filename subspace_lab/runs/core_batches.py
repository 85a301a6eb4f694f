"""Batches of rank cores: read from a run's chunks, or computed from adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from subspace_lab import files, linalg
from subspace_lab.linalg.rank_core import Frame, RankCore
from subspace_lab.module_table import MODULE_COLUMNS
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.runs.chunks import Chunk
from subspace_lab.runs.stored_cores import stored_names, unpacked

CORES_PER_BATCH = 512
"""Cores that are read at once: work on them stays in the processor's cache."""
MODULES_PER_BATCH = 8
"""Modules of an adapter whose cores are computed in one go: few enough to occupy many processors,
and so many that the tables made of them cost less than the cores."""


@dataclass(frozen=True)
class CoreBatch:
    """Cores of several steps and of modules that share a rank.

    Attributes:
        steps: (T,) optimizer steps.
        modules: module table of the M modules, in the order of the core's second dimension.
        core: the rank cores, batch dimensions (T, M).
    """

    steps: NDArray[np.int64]
    modules: pd.DataFrame
    core: RankCore

    def at(self, steps: NDArray[np.bool_]) -> CoreBatch:
        """Keep some of the steps, (T,) True = kept."""
        return CoreBatch(self.steps[steps], self.modules, self.core[torch.from_numpy(steps)])

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether a core's numbers are all finite, (T, M); training that diverged leaves nan."""
        return np.asarray(
            self.core.row.R.isfinite().all(-1).all(-1)
            & self.core.column.R.isfinite().all(-1).all(-1)
        )


@dataclass(frozen=True)
class PendingBatch:
    """A batch of cores that is not in memory yet.

    Attributes:
        count: how many cores it holds.
        load: reads or computes it; safe to call in any thread.
    """

    count: int
    load: Callable[[], CoreBatch]


def recorded_batches(
    chunks: Sequence[Chunk],
    table: pd.DataFrame,
    *,
    modules: Collection[str],
    steps: Collection[int] | None = None,
    displacements: bool = True,
) -> Iterator[PendingBatch]:
    """List cores in chunks, `CORES_PER_BATCH` at a time (one step's, if they are more).

    Args:
        chunks: the run's chunks of cores, in ascending order.
        table: the run's module table.
        modules: only these.
        steps: only these; None: all.
        displacements: also read the displacements since the previous step and since the start.
    """
    for chunk in chunks:
        wanted = np.arange(len(chunk.steps))
        if steps is not None:
            wanted = np.flatnonzero(np.isin(chunk.steps, list(steps)))
        for rank in table["r"].unique():
            same_rank = table[table["r"] == rank]
            chosen = np.isin(same_rank["module"], list(modules))
            if not chosen.any():
                continue
            same_rank = same_rank[chosen].reset_index(drop=True)
            scaling = torch.tensor(same_rank["scaling"].to_numpy())
            length = max(1, CORES_PER_BATCH // len(same_rank))
            for start in range(0, len(wanted), length):
                places = wanted[start : start + length]
                load = functools.partial(
                    _load_recorded, chunk, same_rank, places, chosen, scaling, displacements
                )
                yield PendingBatch(len(places) * len(same_rank), load)


def _load_recorded(
    chunk: Chunk,
    modules: pd.DataFrame,
    places: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    scaling: torch.Tensor,
    displacements: bool,
) -> CoreBatch:
    rank = int(modules["r"].iloc[0])
    with files.open_tensors(chunk.path) as tensors:
        stored = stored_names(tensors.keys(), rank, displacements=displacements)
        arrays = {
            name: _read(tensors.get_slice(key), places, chosen) for name, key in stored.items()
        }
    return CoreBatch(chunk.steps[places], modules, unpacked(arrays, rank, scaling))


def computed_batches(
    adapters: Mapping[int, AdapterFolder],
    *,
    modules: Collection[str],
    steps: Collection[int] | None = None,
    ranks: Mapping[str, int],
) -> Iterator[PendingBatch]:
    """List cores that are computed from the adapters themselves, `MODULES_PER_BATCH` at a time.

    The module table is each adapter's own: ranks differ from step to step in AdaLoRA.

    Args:
        adapters: adapters by step.
        modules: only these.
        steps: only these; None: all.
        ranks: how many rank directions of a module count (all, if it is not there): snapshots of a
            split base (PiSSA, MiLoRA) hold the subtracted start behind the r trained directions,
            [A; A0] and [B, -B0].
    """
    for step in sorted(adapters):
        if steps is not None and step not in steps:
            continue
        table = adapters[step].modules[MODULE_COLUMNS]
        table = table[table["module"].isin(list(modules))]
        stored = zip(table["module"], table["r"], strict=True)
        table = table.assign(r=[min(rank, ranks.get(name, rank)) for name, rank in stored])
        for rank in table["r"].unique():
            same_rank = table[table["r"] == rank].reset_index(drop=True)
            for start in range(0, len(same_rank), MODULES_PER_BATCH):
                chosen = same_rank[start : start + MODULES_PER_BATCH].reset_index(drop=True)
                load = functools.partial(_compute, adapters[step], step, chosen)
                yield PendingBatch(len(chosen), load)


def _compute(adapter: AdapterFolder, step: int, modules: pd.DataFrame) -> CoreBatch:
    cores = []
    for name, rank in zip(modules["module"], modules["r"], strict=True):
        factors = adapter.factors(name)
        row = linalg.triangular_factor(factors.A[:rank].mT)
        column = linalg.triangular_factor(factors.B[:, :rank])
        scaling = torch.tensor(factors.scaling, dtype=torch.float64)
        cores.append(RankCore(Frame(row), Frame(column), scaling))
    return CoreBatch(np.array([step]), modules, RankCore.stack(cores)[None])


def _read(stored: Any, steps: NDArray[np.int64], modules: NDArray[np.bool_]) -> torch.Tensor:
    """Read the places of steps (ascending) and of modules from an array of a chunk."""
    first, end = int(steps[0]), int(steps[-1]) + 1
    array: torch.Tensor = stored[first:end]
    if len(array) > len(steps):
        array = array[steps - first]
    return array if modules.all() else array[:, modules]
