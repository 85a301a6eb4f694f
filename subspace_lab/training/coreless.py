"""The recorder of what has no factors A and B in reach: metrics, masks and snapshots only."""

from __future__ import annotations

from typing import Any

import pandas as pd
from transformers import TrainerState, TrainingArguments

from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.core_batches import MODULE_COLUMNS


class CorelessRecorder(SubspaceRecorder):
    """Records metrics, masks and snapshots of a model without rank cores.

    Args:
        modules: rows of the module table; may be empty.
        arguments: those of `SubspaceRecorder` but `cores`.
    """

    def __init__(self, *args: Any, modules: list[dict[str, Any]], **arguments: Any) -> None:
        super().__init__(*args, **(arguments | {"cores": "never"}))
        self._given = pd.DataFrame(modules, columns=MODULE_COLUMNS)

    def _module_table(self) -> pd.DataFrame:
        return self._given

    def _prepare_cores(self, args: TrainingArguments, state: TrainerState) -> None:
        """Leave the matrices alone."""
