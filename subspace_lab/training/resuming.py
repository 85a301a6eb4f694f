"""Where a stopped run continues: at its last checkpoint that the record on disk reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subspace_lab import files
from subspace_lab.configurations import Config, different_settings, setting_text
from subspace_lab.errors import UserError
from subspace_lab.recording.run_folder import discard_unfinished, last_recorded_step
from subspace_lab.training.config import TrainConfig, filled_in

FINISHED = -1
SHOWN = 5  # settings in which two configurations differ, in one message


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
    _refuse_other_settings(out, filled_in(description.get("config") or {}), config.to_dict())
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


def _refuse_other_settings(out: Path, recorded: Config, asked: Config) -> None:
    names = different_settings(recorded, asked)
    if not names:
        return
    shown = ", ".join(
        f"`{name}` is {_text(recorded.get(name))} there and {_text(asked.get(name))} here"
        for name in names[:SHOWN]
    )
    more = f" and {len(names) - SHOWN} more differ" if len(names) > SHOWN else ""
    raise UserError(
        f"{out} holds a run of another configuration ({shown}{more}): choose another folder "
        "(`out`), or resume the run with its own settings"
    )


def _text(value: Any) -> str:
    return "unset" if value is None else setting_text(value)


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
