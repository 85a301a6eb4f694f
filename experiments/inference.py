"""X4: several ways of inference with one trained adapter."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analyses import ensemble_vs_single
from experiments.design import Design
from experiments.running import Rates
from subspace_lab.runs.run import Run

MASKS, EXAMPLES = 16, 300


def inference_table(design: Design, final: Path, own: Rates) -> pd.DataFrame:
    """Score the predictors of `analyses.ensemble_vs_single` for each final run.

    Returns:
        Its table, with the columns regime, arm and seed.
    """
    parts = []
    for cell in design.final_cells(own):
        table = ensemble_vs_single.compute(Run(final / cell.name), masks=MASKS, examples=EXAMPLES)
        parts.append(table.assign(regime=cell.regime, arm=cell.arm, seed=cell.fields["seed"]))
    return pd.concat(parts, ignore_index=True)
