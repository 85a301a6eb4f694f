"""The folder of a run: whether it is free, and deleting what a run left in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.runs.observed_gates import GATES_FILE
from subspace_lab.runs.projections import PROJECTIONS_FOLDER

OF_THE_RECORD = (
    "run.json", "metrics.parquet", GATES_FILE, "cores", "masks", "snapshots", PROJECTIONS_FOLDER,
    "ranks.parquet",
)  # fmt: skip
"""What a recorder writes into a run directory."""


def refuse_if_occupied(folder: Path) -> None:
    """Refuse to write a run where something is.

    Raises:
        UserError: if `folder` is a file, or holds anything.
    """
    if (folder / "run.json").exists():
        raise UserError(
            f"{folder} already holds a run: choose another folder (`out`), or continue it "
            "(`resume`)"
        )
    # The Trainer makes its own, still empty, subfolder before the recorder starts.
    if folder.is_file() or any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{folder} already exists and is not empty: choose another folder (`out`)")


def discard_unfinished(folder: Path) -> None:
    """Delete a run that was stopped before anything could be resumed from, and what came of it.

    Raises:
        UserError: if `folder` holds anything else; then nothing is deleted.
    """
    known = {*OF_THE_RECORD, "checkpoints", "analyses", "evaluations"}
    content = sorted(folder.iterdir())
    others = [path for path in content if path.name not in known and path.suffix != ".unfinished"]
    if others:
        raise UserError(
            f"{folder} was stopped before its first checkpoint and also holds {others[0].name}: "
            "move that away, or choose another folder (`out`)"
        )
    for path in content:
        _delete(path)


def discard_record(folder: Path) -> None:
    """Delete what a recorder wrote into a folder, and nothing else."""
    for name in OF_THE_RECORD:
        if (folder / name).exists():
            _delete(folder / name)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def forget_after(folder: Path, step: int) -> dict[int, dict[str, float]]:
    """Delete what a run recorded after `step`, or left half-written; return the rows that stay."""
    for place in ("", "cores", "masks", "snapshots", PROJECTIONS_FOLDER):
        for half in (folder / place).glob(".*.unfinished"):
            _delete(half)
    for kind in ("cores", "masks"):
        for chunk in sorted((folder / kind).glob("steps-*.safetensors")):
            if int(chunk.stem.split("-")[1]) > step:
                chunk.unlink()
    for kind in ("snapshots", PROJECTIONS_FOLDER):
        for path in sorted((folder / kind).glob("step-*")):
            if int(path.stem.split("-")[1]) > step:
                _delete(path)
    path = folder / "metrics.parquet"
    if not path.exists():
        return {}
    table = files.read_table(path)
    rows = table[table["step"] <= step].to_dict(orient="records")
    return {
        int(row.pop("step")): {str(k): v for k, v in row.items() if v == v}  # NaN: no value
        for row in rows
    }
