"""Where a stopped run continues: at its last checkpoint that the record on disk reaches."""

from __future__ import annotations

from pathlib import Path

from subspace_lab import files
from subspace_lab.configurations import different_settings
from subspace_lab.errors import UserError
from subspace_lab.recording.run_folder import discard_unfinished, last_recorded_step
from subspace_lab.training.config import TrainConfig, filled_in

FINISHED = -1


def resume_point(config: TrainConfig, out: Path, *, processes: int, base_dtype: str) -> int | None:
    """Find the step to resume at: None for a new run, FINISHED, or a checkpoint's step.

    A run that was stopped before its first checkpoint is deleted, and starts again.

    Raises:
        UserError: if `out` holds a run of another configuration or precision, or several processes
            would delete it.
    """
    if not (out / "run.json").exists():
        return None
    description = files.read_json(out / "run.json")
    if different_settings(filled_in(description.get("config") or {}), config.to_dict()):
        raise UserError(
            f"{out} holds a run of another configuration (see {out / 'run.json'}): choose another "
            "folder (`out`)"
        )
    if description["status"] == "finished":
        return FINISHED
    used = description.get("provenance", {}).get("base_dtype")
    if used not in (None, base_dtype):
        raise UserError(
            f"{out} was trained in {used} so far, and base_dtype {config.base_dtype} is "
            f"{base_dtype} on this machine: resume it on a machine like its first, or choose "
            "another folder (`out`)"
        )
    checkpoints = usable_checkpoints(out)
    if not checkpoints:
        if processes > 1:  # which would race for it
            raise UserError(f"{out} was stopped before its first checkpoint: delete it first")
        print(f"{out} was stopped before its first checkpoint: it starts again from step 0")
        discard_unfinished(out)
        return None
    return max(checkpoints)


def usable_checkpoints(out: Path) -> list[int]:
    """List the steps of the checkpoints from which a run can continue.

    The Trainer must have written the last file of a checkpoint, its state, and the record on disk
    must reach its step: a run can be stopped while either is being written.
    """
    recorded = last_recorded_step(out)
    states = (out / "checkpoints").glob("checkpoint-*/trainer_state.json")
    steps = [int(state.parent.name.split("-")[1]) for state in states]
    return sorted(step for step in steps if step <= recorded)


def how_to_continue(out: Path) -> str:
    """Say in one line what is kept of an interrupted run, and how to resume it."""
    if not (out / "run.json").exists():
        return "interrupted before training began: nothing was recorded"
    checkpoints = usable_checkpoints(out)
    resumed = (
        f"continues from the checkpoint of step {max(checkpoints)}"
        if checkpoints
        else "starts again from step 0, since there is no checkpoint (see `checkpoint_every`)"
    )
    return (
        f"interrupted after step {last_recorded_step(out)}, which is recorded in {out}: the same "
        f"command with `resume` true {resumed}"
    )
