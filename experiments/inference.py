"""X4: several ways of inference with one trained adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from analyses import ensemble_vs_single
from experiments.comparisons import corrected, difference
from experiments.design import Design, Rates
from subspace_lab.runs.run import Run

MASKS = 16
PREDICTORS = ("arithmetic", "geometric", "singles", "scaled")
"""Those compared with the full update; of the ensembles the largest one."""
PRIMARY, PRIMARY_ARMS = ("arithmetic", "calibrated_loss"), ("step", "LoRA")


def inference_table(design: Design, final: Path, own: Rates) -> pd.DataFrame:
    """Score the predictors of `analyses.ensemble_vs_single` for each final run at its own rate.

    They are scored on the test examples that the run was scored on.

    Returns:
        Its table but for single masks, of which it has the means, with the columns regime, arm and
        seed.
    """
    parts = []
    for cell in tqdm(design.final_cells(own), desc="ensembles", disable=None):
        if cell.learning_rate != design.rates_at(cell.regime, cell.arm, own)["own"]:
            continue
        run = Run(final / cell.name)
        table = ensemble_vs_single.compute(
            run,
            masks=MASKS,
            examples=run.config["test_size"],
            validation=run.config["eval_size"],
        )
        place = {"regime": cell.regime, "arm": cell.arm, "seed": cell.fields["seed"]}
        parts.append(table[table["predictor"] != "single"].assign(**place))
    return pd.concat(parts, ignore_index=True)


def inference_differences(
    table: pd.DataFrame, *, outcomes: Sequence[str] = ("calibrated_loss", "loss", "accuracy")
) -> pd.DataFrame:
    """Compare each predictor with the full update of the same run.

    Args:
        table: of `inference_table`.
        outcomes: its columns.

    Returns:
        Columns regime, arm, predictor, scale, outcome, those of `comparisons.difference`, primary
        and holm.
    """
    table = table[table["predictor"].isin(["full", *PREDICTORS])]
    ensembles = table["predictor"].isin(["arithmetic", "geometric"])
    table = table[~ensembles | (table["masks"] == table["masks"].max())]
    rows = []
    for (regime, arm), group in table.groupby(["regime", "arm"], sort=False):
        full = group[group["predictor"] == "full"].set_index("seed")
        for (predictor, scale), one in group.groupby(["predictor", "scale"], sort=False):
            if predictor == "full":
                continue
            for outcome in outcomes:
                differences = (one.set_index("seed")[outcome] - full[outcome]).dropna()
                place = {"regime": regime, "arm": arm, "predictor": predictor, "scale": scale}
                primary = (predictor, outcome) == PRIMARY and arm in PRIMARY_ARMS
                measured = difference(differences.to_numpy())
                rows.append({**place, "outcome": outcome, **measured, "primary": primary})
    return corrected(pd.DataFrame(rows))
