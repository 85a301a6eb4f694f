"""What a run's saved adapters hold besides the factors that analyses read, with the reasons."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.peft_files.checkpoints import Checkpoints

NOT_IN_TABLE = "it is not in the run's module table (of run.json, or of the last checkpoint)"
COLUMNS = ["kind", "name", "reason", "parameters"]


def left_out(snapshots: Checkpoints, *, modules: Collection[str]) -> pd.DataFrame:
    """List what is not analyzed; a row is a module or a checkpoint, and one reason.

    Args:
        snapshots: the saved adapters.
        modules: the modules that are analyzed.

    Returns:
        Columns kind (module, checkpoint), name, reason, parameters (how many trained numbers the
        last adapter that has the module holds of it; 0 for checkpoints).
    """
    tables = []
    for adapter in snapshots.values():
        other = adapter.modules.loc[~adapter.modules["module"].isin(list(modules)), ["module"]]
        other = other.assign(reason=NOT_IN_TABLE, parameters=0)
        tables += [
            table.rename(columns={"module": "name"}).assign(kind="module")
            for table in (adapter.skipped, other)
        ]
    checkpoints = snapshots.left_out.rename(columns={"folder": "name"})
    tables.append(checkpoints.assign(kind="checkpoint", parameters=0))
    rows = [row for table in tables for row in table[COLUMNS].to_dict(orient="records")]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.drop_duplicates(COLUMNS[:3], keep="last").reset_index(drop=True)


def coverage(snapshots: Checkpoints) -> tuple[int, int]:
    """Count the trained parameters of the last adapter: those analyzed, and all (0 without one)."""
    last: AdapterFolder | None = snapshots[max(snapshots)] if snapshots else None
    if last is None:
        return 0, 0
    return last.parameters, last.parameters + int(last.skipped["parameters"].sum())
