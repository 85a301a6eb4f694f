"""The chunks of a recorded run: files with the cores or the masks of successive steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from subspace_lab import files
from subspace_lab.errors import UserError

Kind = Literal["cores", "masks"]


@dataclass(frozen=True)
class Chunk:
    """One file: its path, and its steps (T,) in ascending order."""

    path: Path
    steps: NDArray[np.int64]


def list_chunks(run: Path, kind: Kind) -> list[Chunk]:
    """List the chunks of a kind in the order of their steps.

    Raises:
        UserError: if two chunks hold the same step.
    """
    chunks: list[Chunk] = []
    for path in sorted((run / kind).glob("steps-*.safetensors")):
        with files.open_tensors(path) as tensors:
            steps = tensors.get_tensor("steps").numpy()
        if chunks and steps[0] <= chunks[-1].steps[-1]:
            raise UserError(
                f"{chunks[-1].path} and {path.name} both hold step {steps[0]}: delete the one "
                "that does not belong to this run"
            )
        chunks.append(Chunk(path, steps))
    return chunks


def read_masks(chunks: Sequence[Chunk], rank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read all masks of the modules of a rank: steps (T,) and masks (T, M, r), True = kept."""
    packed = []
    for chunk in chunks:
        with files.open_tensors(chunk.path) as tensors:
            packed.append(tensors.get_tensor(f"r{rank}").numpy())
    unpacked = np.unpackbits(np.concatenate(packed), axis=-1, count=rank)
    return np.concatenate([chunk.steps for chunk in chunks]), unpacked.view(np.bool_)
