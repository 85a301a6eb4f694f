"""Adapted matrices in batches: all of one side, rank, length and device are reduced together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subspace_lab.adapters.modules import LoraModule

CACHED_BYTES = 2**21
"""Size up to which a processor factorizes a batch without leaving its cache."""


@dataclass
class ShapeBatch:
    """Matrices of one side, shape and device, handled as one batch.

    Attributes:
        side: `row` (the matrices A) or `column` (the matrices B).
        rank: r.
        places: positions of the batch's modules among the modules of rank r.
        weights: the live parameters.
        start: their values at step 0, (batch, ., .).
        previous: their values before the step that is being taken.
    """

    side: str
    rank: int
    places: list[int]
    weights: list[Tensor]
    start: Tensor
    previous: Tensor

    def stacked(self) -> Tensor:
        """Copy the live values, (batch, n, r) for both sides."""
        stacked = torch.stack([weight.detach() for weight in self.weights])
        return stacked.mT if self.side == "row" else stacked


def make_shape_batches(
    modules_of_rank: Mapping[int, list[LoraModule]], initial: Mapping[str, tuple[Tensor, Tensor]]
) -> list[ShapeBatch]:
    """Sort all matrices into batches of one side, rank, length and device.

    On a GPU all that share these make one batch; a processor takes as many as its cache holds.
    """
    members: dict[tuple[Any, ...], list[tuple[int, Tensor, Tensor]]] = defaultdict(list)
    for rank, modules in modules_of_rank.items():
        for place, module in enumerate(modules):
            A0, B0 = initial[module.name]
            row_key = ("row", rank, module.A.shape[1], module.A.device)
            column_key = ("column", rank, module.B.shape[0], module.B.device)
            members[row_key].append((place, module.A, A0.detach().mT))
            members[column_key].append((place, module.B, B0.detach()))
    batches = []
    for (side, rank, length, device), matrices in members.items():
        frames_bytes = 3 * rank * length * 8  # of the three float64 matrices of `frame_core`
        size = max(1, CACHED_BYTES // frames_bytes) if device.type == "cpu" else len(matrices)
        for first in range(0, len(matrices), size):
            part = zip(*matrices[first : first + size], strict=True)
            places, weights, starts = (list(column) for column in part)
            start = torch.stack(starts)
            batches.append(ShapeBatch(side, rank, places, weights, start, start))
    return batches
