"""The numbers of a step that are logged while a run trains, from the cores that are recorded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from subspace_lab.adapters.methods import SPLIT_THE_BASE
from subspace_lab.recording.core_recorder import one_thread
from subspace_lab.runs.core_batches import CoreBatch
from subspace_lab.runs.run import Run
from subspace_lab.runs.step_numbers import medians, step_numbers
from subspace_lab.runs.stored_cores import unpacked


def was_taken_from_the_base(run: Run) -> bool:
    """Whether B0 A0 was taken out of the base at the start, so that the update is B A - B0 A0."""
    notes = " ".join(note for adapter in run.snapshots.values() for note in adapter.modules["note"])
    method = run.config.get("method")
    if method == "dora" or "DoRA" in notes:  # B A is the update of the direction
        return False
    return method in SPLIT_THE_BASE or "not converted" in notes


class LiveNumbers:
    """Computes the numbers of a step from its packed cores.

    Args:
        modules: the module table.
        since_start: see `step_numbers`.
        by_projection: also give the medians of each projection.
    """

    def __init__(self, modules: pd.DataFrame, *, since_start: bool, by_projection: bool) -> None:
        self._modules = modules
        self._since_start = since_start
        self._by_projection = by_projection

    def of_step(
        self, step: int, arrays: Mapping[str, Tensor], kept: Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, float]:
        """Give medians over modules by name.

        Args:
            step: the step.
            arrays: its packed cores, `rR/NAME` (modules of rank R, ...).
            kept: its step masks, module name to (r,).
        """
        with one_thread():
            batches = [self._batch(step, rank, arrays) for rank in self._modules["r"].unique()]
            numbers = step_numbers(batches, kept, since_start=self._since_start)
        return medians(numbers, by_projection=self._by_projection)

    def _batch(self, step: int, rank: int, arrays: Mapping[str, Tensor]) -> CoreBatch:
        prefix = f"r{rank}/"
        of_rank = {
            name.removeprefix(prefix): array[None].cpu()
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        modules = self._modules[self._modules["r"] == rank].reset_index(drop=True)
        scaling = torch.tensor(modules["scaling"].tolist(), dtype=torch.float64)
        return CoreBatch(np.array([step]), modules, unpacked(of_rank, int(rank), scaling))
