"""The folder of a run: whether it is free, and deleting what a run left in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.runs.observed_gates import GATES_FILE
from subspace_lab.runs.projections import PROJECTIONS_FOLDER
from subspace_lab.theory.mask_law import mask_law

OF_THE_RECORD = (
    "run.json", "metrics.parquet", GATES_FILE, "cores", "masks", "snapshots", PROJECTIONS_FOLDER,
    "ranks.parquet",
)  # fmt: skip
"""What a recorder writes into a run directory."""
EVENTS = "events.out.tfevents"
"""How the names of TensorBoard's files begin."""


def refuse_if_occupied(folder: Path, *, instead: str = "choose another folder") -> None:
    """Refuse to write a run where something is, other than TensorBoard's files.

    Args:
        folder: the run directory.
        instead: what the message tells the user to do.

    Raises:
        UserError: if `folder` is a file, or holds anything.
    """
    if (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run: {instead}, or resume that run")
    # The Trainer makes its own subfolder before the recorder starts, and trackers write there.
    others = (path for path in folder.rglob("*") if not path.name.startswith(EVENTS))
    if folder.is_file() or any(path.is_file() for path in others):
        raise UserError(f"{folder} already exists and is not empty: {instead}")


def last_recorded_step(folder: Path) -> int:
    """Return the step through which the record in a folder is on disk; 0 if none was taken."""
    path = folder / "metrics.parquet"
    return int(files.read_table(path)["step"].max()) if path.exists() else 0


def refuse_unless_recorded(
    folder: Path, step: int, modules: pd.DataFrame, mask: Mapping[str, Any] | None
) -> None:
    """Refuse to continue a record that is not that of the model's training up to a step.

    Args:
        folder: the run directory.
        step: the step after which the training continues.
        modules: the module table of the model.
        mask: settings of its mask law; None: no mask.

    Raises:
        UserError: if there is no record, it ends before the step, or it is of another model or
            mask.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"the training continues after step {step}, but {folder} holds no record of the steps "
            "before: name the folder of that record, or train from the start"
        )
    description = files.read_json(folder / "run.json")
    if description["modules"] != modules.to_dict(orient="records"):
        raise UserError(
            f"{folder} records a model with other adapted layers, ranks or scalings than the one "
            f"that continues after step {step}: name the folder of its own record"
        )
    recorded = description.get("mask")
    if (recorded and mask_law(**recorded)) != (mask and mask_law(**mask)):
        raise UserError(
            f"{folder} records a training under another rank mask (or none) than the one that "
            f"continues after step {step}: attach the same mask, or record into another folder "
            "from the start"
        )
    if (last := last_recorded_step(folder)) < step:
        raise UserError(
            f"the training continues after step {step}, but the record in {folder} ends at step "
            f"{last}: continue from an earlier checkpoint"
        )


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


def _shorten(chunk: Path, step: int) -> None:
    """Delete what a chunk holds of later steps, in one replacement of the file."""
    with files.open_tensors(chunk) as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    kept = tensors["steps"] <= step
    files.write_tensors(chunk, {name: tensor[kept] for name, tensor in tensors.items()})


def forget_after(folder: Path, step: int) -> dict[int, dict[str, float]]:
    """Delete what a run recorded after `step`, or left half-written; return the rows that stay."""
    for place in ("", "cores", "masks", "snapshots", PROJECTIONS_FOLDER):
        for half in (folder / place).glob(".*.unfinished"):
            _delete(half)
    for kind in ("cores", "masks"):
        for chunk in sorted((folder / kind).glob("steps-*.safetensors")):
            first, last = map(int, chunk.stem.split("-")[1:])
            if first > step:
                chunk.unlink()
            elif last > step:
                _shorten(chunk, step)
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
