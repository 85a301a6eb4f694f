"""Rank cores come back from a chunk as they went in, whatever version wrote it."""

from __future__ import annotations

import pytest
import torch

from subspace_lab import files
from subspace_lab.linalg.rank_core import RankCore, frame_core
from subspace_lab.runs.stored_cores import frame_arrays, stored_names, unpacked

RANK = 3


def batch() -> RankCore:
    """Make cores (2, 4) with displacements since the previous step and since the start."""
    torch.manual_seed(0)
    row, column = (frame_core(*torch.randn(3, 2, 4, n, RANK, dtype=torch.float64)) for n in (9, 7))
    return RankCore(row, column, torch.full((2, 4), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("version", ["0.1.0", "now"])
def test_cores_come_back(tmp_path, version):
    core = batch()
    arrays = {
        f"r{RANK}/{name}": array
        for side in ("row", "column")
        for name, array in frame_arrays(side, getattr(core, side))
    }
    if version == "0.1.0":
        arrays = {key.replace(".previous.", ".step."): array for key, array in arrays.items()}
    files.write_tensors(tmp_path / "chunk.safetensors", arrays)
    with files.open_tensors(tmp_path / "chunk.safetensors") as tensors:
        stored = stored_names(tensors.keys(), RANK, displacements=True)
        read = {name: tensors.get_tensor(key) for name, key in stored.items()}
    again = unpacked(read, RANK, core.scaling[0])
    for since in ("previous", "start"):
        assert torch.equal(again.change(since), core.change(since))
    assert torch.equal(again.singular_values(), core.singular_values())


def test_cores_stored_in_float32_are_computed_with_in_float64():
    core = batch()
    arrays = {
        name: array.float()
        for side in ("row", "column")
        for name, array in frame_arrays(side, getattr(core, side))
    }
    again = unpacked(arrays, RANK, core.scaling[0])
    assert again.row.R.dtype == again.change("previous").dtype == torch.float64
    torch.testing.assert_close(again.change("start"), core.change("start"), rtol=1e-6, atol=1e-6)
