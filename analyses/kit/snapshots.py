"""Tables of evaluations: what a function makes of a run's trained model, snapshot by snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from analyses.kit.cores import Steps
from subspace_lab.evaluation.trained_model import TrainedModel, load_trained
from subspace_lab.models import Precision
from subspace_lab.runs.run import Run


def over_snapshots(
    run: Run,
    function: Callable[[TrainedModel], pd.DataFrame | Iterable[dict[str, Any]]],
    *,
    steps: Steps,
    dtype: Precision = "fp32",
) -> pd.DataFrame:
    """Evaluate adapters of a run, one after another.

    Args:
        run: the run.
        function: from a trained model to a table, or to its rows.
        steps: which snapshots; None: the last.
        dtype: what the models compute in.

    Returns:
        Columns run, step, those of the tables, dtype; empty without snapshots.
    """
    tables = []
    for step in [None] if steps is None else steps:
        trained = load_trained(run, step=step, dtype=dtype)
        table = pd.DataFrame(function(trained))
        table.insert(0, "run", run.name)
        table.insert(1, "step", trained.step)
        tables.append(table.assign(dtype=trained.dtype))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
