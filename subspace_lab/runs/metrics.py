"""The metrics table of a run: one row per optimizer step."""

from __future__ import annotations

import pandas as pd


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """Select the rows of a metrics table whose step was evaluated.

    Those that say on how many examples; where none does, those with a number in any `eval_*`.
    """
    columns = [name for name in metrics if str(name).startswith("eval_")]
    if "eval_examples" in metrics and metrics["eval_examples"].notna().any():
        columns = ["eval_examples"]
    return metrics[metrics[columns].notna().any(axis=1)]
