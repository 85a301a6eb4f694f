"""The metrics table of a run: one row per optimizer step."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from subspace_lab import files
from subspace_lab.errors import UserError


def read_metrics(run: Path) -> pd.DataFrame:
    """Read the metrics table of a run directory.

    Raises:
        UserError: if there is none.
    """
    path = run / "metrics.parquet"
    if not path.is_file():
        raise UserError(
            f"{run} has no metrics.parquet: it is not a recorded run, or has just begun"
        )
    return files.read_table(path)


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of a metrics table whose step was evaluated.

    Those that say on how many examples; where none does, those with a number in any `eval_*`.
    """
    columns = [name for name in metrics if str(name).startswith("eval_")]
    if "eval_examples" in metrics and metrics["eval_examples"].notna().any():
        columns = ["eval_examples"]
    return metrics[metrics[columns].notna().any(axis=1)]
