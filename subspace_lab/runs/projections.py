"""The frames onto which GaLore projected the gradients, as a run keeps them.

`projections/step-NNNNNN.safetensors` holds, for each module NAME, `NAME/row` (n, r) or
`NAME/column` (m, r) with orthonormal columns: the frame that was drawn at optimizer step N and
used from that step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from subspace_lab import files

PROJECTIONS_FOLDER = "projections"


def write_projections(run: Path, step: int, frames: Mapping[tuple[str, str], Tensor]) -> None:
    """Write the frames (d, r) that were drawn at a step, by (module, side)."""
    folder = run / PROJECTIONS_FOLDER
    folder.mkdir(exist_ok=True)
    tensors = {f"{module}/{side}": frame for (module, side), frame in frames.items()}
    files.write_tensors(folder / f"step-{step:06d}.safetensors", tensors)


def projection_steps(run: Path) -> list[int]:
    """List the steps at which frames were drawn; empty for runs of other methods."""
    paths = (run / PROJECTIONS_FOLDER).glob("step-*.safetensors")
    return sorted(int(path.stem.removeprefix("step-")) for path in paths)


def read_projections(run: Path, step: int) -> dict[tuple[str, str], Float[Tensor, "d r"]]:
    """Read the frames that were drawn at a step, by (module, side)."""
    path = run / PROJECTIONS_FOLDER / f"step-{step:06d}.safetensors"
    with files.open_tensors(path) as tensors:
        frames = {}
        for key in set(tensors.keys()):
            module, side = key.rsplit("/", 1)
            frames[module, side] = tensors.get_tensor(key)
        return frames
