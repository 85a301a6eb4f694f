"""The recorder of methods that have no factors A and B: metrics and snapshots only."""

from __future__ import annotations

from typing import Any

import pandas as pd
from transformers import TrainerControl, TrainerState, TrainingArguments

from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.run import MODULE_COLUMNS
from subspace_lab.recording.writer import RunWriter


class CorelessRecorder(SubspaceRecorder):
    """Records metrics and snapshots of a model without rank cores.

    Args:
        modules: rows of the module table; may be empty.
        arguments: those of `SubspaceRecorder` but `cores`.
    """

    def __init__(self, *args: Any, modules: list[dict[str, Any]], **arguments: Any) -> None:
        super().__init__(*args, **(arguments | {"cores": "never"}))
        self._modules = pd.DataFrame(modules, columns=MODULE_COLUMNS)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the run directory and save step 0."""
        self._model = kwargs["model"]
        self._core_is_due_now = False
        if not state.is_world_process_zero:
            return
        self._writer = RunWriter(
            self.folder, self._describe(), self._modules, resume_at=self._resume_at
        )
        if self._resume_at is None:
            self._save_snapshot(0)
