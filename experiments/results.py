"""What the final runs of a design scored, a row a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.design import Design, Rates
from subspace_lab.runs.run import Run

OUTCOMES = {
    "test_calibrated_loss": "test loss at the validated temperature (nats per token)",
    "test_response_loss": "test loss (nats per token)",
    "test_exact_match": "exact match on test examples",
    "chosen_test_calibrated_loss": "the first, at the step of lowest validation loss",
    "chosen_test_exact_match": "exact match, at the step of lowest validation loss",
    "test_temperature": "validated temperature",
    "eval_response_loss": "validation loss (nats per token)",
    "train_clean_response_loss": "training loss on clean examples (nats per token)",
    "train_exchanged_response_loss": "training loss on exchanged examples (nats per token)",
    "train_true_response_loss": "loss of exchanged examples' true responses (nats per token)",
}
"""Columns of the table, and what they mean; without label noise some are empty."""


def results_table(design: Design, out: Path, own: Rates) -> pd.DataFrame:
    """Table the final runs.

    Args:
        design: the experiment.
        out: the folder of its final runs.
        own: the chosen rate of each place.

    Returns:
        Columns regime, arm, learning_rate, own and equal (whether that is the arm's own rate, and
        the baseline's), seed and other seeds, diverged, and OUTCOMES, those of the last step but
        where `chosen` says otherwise.
    """
    rows = []
    for cell in design.final_cells(own):
        run = Run(out / cell.name)
        rates = design.rates_at(cell.regime, cell.arm, own)
        rows.append(
            {
                "regime": cell.regime,
                "arm": cell.arm,
                "learning_rate": cell.learning_rate,
                "own": cell.learning_rate == rates["own"],
                "equal": cell.learning_rate == rates.get("equal"),
                **cell.fields,
                "diverged": run.diverged_at is not None,
                **scores(run),
            }
        )
    return pd.DataFrame(rows)


def scores(run: Run) -> dict[str, float]:
    """Give a run's OUTCOMES, as far as it has them."""
    metrics = run.metrics.set_index("step")
    last = metrics.iloc[-1]
    scores = {name: float(last[name]) for name in OUTCOMES if name in metrics}
    if run.chosen_step is not None:
        for name in ("test_calibrated_loss", "test_exact_match"):
            scores[f"chosen_{name}"] = float(metrics[name].loc[run.chosen_step])
    return scores
