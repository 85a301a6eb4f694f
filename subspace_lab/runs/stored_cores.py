"""How rank cores lie in a chunk: packed arrays `rR/SIDE.NAME` (T, modules, ...) for each rank R.

rR/SIDE.R                  R's upper triangle, row by row, (r (r + 1) / 2)
rR/SIDE.SINCE.along        (r, r), SINCE is `previous` or `start`
rR/SIDE.SINCE.across       upper triangle
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.linalg.rank_core import Displacement, Frame, RankCore, Since

SIDES = ("row", "column")


def frame_arrays(side: str, frame: Frame) -> Iterator[tuple[str, Tensor]]:
    """List a frame's matrices by name, such as `row.previous.across`; triangles come packed."""
    yield f"{side}.R", pack_triangle(frame.R)
    for since in get_args(Since):
        displacement = getattr(frame, since)
        if displacement is not None:
            yield f"{side}.{since}.along", displacement.along
            yield f"{side}.{since}.across", pack_triangle(displacement.across)


def stored_names(keys: Collection[str], rank: int, *, displacements: bool) -> dict[str, str]:
    """Map the names of a core's arrays to their keys in a chunk.

    Version 0.1.0 wrote `step` for `previous`.

    Args:
        keys: the chunk's keys.
        rank: of the modules.
        displacements: also those of the displacements.
    """
    names = [f"{side}.R" for side in SIDES]
    if displacements:
        names += [
            f"{side}.{since}.{part}"
            for side in SIDES
            for since in get_args(Since)
            for part in ("along", "across")
        ]
    stored = {name: f"r{rank}/{name}" for name in names}
    return {
        name: key if key in keys else key.replace(".previous.", ".step.")
        for name, key in stored.items()
    }


def unpacked(arrays: Mapping[str, Tensor], rank: int, scaling: Tensor) -> RankCore:
    """Undo `frame_arrays` for both sides of a batch (T, M); scaling (M,).

    Cores that are stored in float32, to take less space, are raised to float64.
    """
    arrays = {name: array.double() for name, array in arrays.items()}

    def displacement(name: str) -> Displacement | None:
        if f"{name}.along" not in arrays:
            return None
        across = unpack_triangle(arrays[f"{name}.across"], rank)
        return Displacement(arrays[f"{name}.along"], across)

    def frame(side: str) -> Frame:
        R = unpack_triangle(arrays[f"{side}.R"], rank)
        return Frame(R, *(displacement(f"{side}.{since}") for since in get_args(Since)))

    batch = arrays["row.R"].shape[:2]
    return RankCore(frame("row"), frame("column"), scaling.double().expand(batch))


def pack_triangle(R: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch packed"]:
    """Keep the r (r + 1) / 2 values of an upper triangle, row by row."""
    i, j = torch.triu_indices(R.shape[-1], R.shape[-1], device=R.device)
    return R[..., i, j]


def unpack_triangle(packed: Float[Tensor, "*batch packed"], rank: int) -> Tensor:
    """Undo `pack_triangle`: (..., r (r + 1) / 2) to (..., r, r)."""
    R = packed.new_zeros(*packed.shape[:-1], rank * rank)
    i, j = torch.triu_indices(rank, rank, device=packed.device)
    R.index_copy_(-1, rank * i + j, packed)  # several times faster than assigning to R[..., i, j]
    return R.view(*packed.shape[:-1], rank, rank)
