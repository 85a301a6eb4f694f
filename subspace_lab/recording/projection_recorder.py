"""Keeps the frames onto which GaLore projects the gradients, at each of their refreshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab.adapters.galore import projections
from subspace_lab.runs.projections import write_projections


class ProjectionRecorder(TrainerCallback):
    """Writes `projections/` into a run directory that a `SubspaceRecorder` has opened.

    Args:
        folder: the run directory.
        refresh_every: steps between two frames.
    """

    def __init__(self, folder: Path, *, refresh_every: int) -> None:
        self._folder = folder
        self._refresh_every = refresh_every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the frames if the step that was just taken has drawn new ones."""
        if state.is_world_process_zero and (state.global_step - 1) % self._refresh_every == 0:
            drawn = projections(kwargs["model"], kwargs["optimizer"])
            frames = {(module, str(p.side)): p.frame.cpu() for module, p in drawn.items()}
            write_projections(self._folder, state.global_step, frames)
