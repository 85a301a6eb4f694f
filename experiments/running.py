"""Training what a design lists, each run once, however many experiments have it in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.design import Cell, Design, Rates
from experiments.results import scores
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.sweeping.grid import Job, Sweep, read_configuration
from subspace_lab.sweeping.running import run_here
from subspace_lab.sweeping.state import refuse_other_runs
from subspace_lab.training.command_line import training_parser

CRITERION = "validation_calibrated_loss"
"""By which a learning rate is chosen: validation loss at its best temperature, at the last step."""


def train(design: Design, cells: Sequence[Cell], out: Path, *, jobs: int) -> None:
    """Train the runs that are not finished.

    Raises:
        UserError: if a run failed, or `out` holds other runs under these names.
    """
    sweep = Sweep(tuple(make_jobs(design, cells)))
    refuse_other_runs(sweep, out)
    if failed := run_here(sweep, out, jobs=jobs):
        raise UserError(
            f"{len(failed)} runs failed, such as {failed[0]}: see {out / 'logs' / failed[0]}.log"
        )


def make_jobs(design: Design, cells: Sequence[Cell]) -> list[Job]:
    """Make the jobs of runs."""
    parser = training_parser("")
    jobs = []
    for cell in cells:
        arguments, config = read_configuration(parser, *design.settings(cell))
        values = {"regime": cell.regime, "arm": cell.arm, "learning_rate": cell.learning_rate}
        jobs.append(Job(cell.name, {**values, **cell.fields}, arguments, config))
    return jobs


def validation_losses(design: Design, out: Path) -> pd.DataFrame:
    """Table the validation losses from which rates are chosen.

    Returns:
        Columns regime, arm, learning_rate, seed, loss (what chooses, in nats per token; inf where a
        run diverged), and the runs' `results.OUTCOMES`, which do not choose.
    """
    rows = [
        {
            "regime": cell.regime,
            "arm": cell.arm,
            "learning_rate": cell.learning_rate,
            **cell.fields,
            "loss": _last_loss(run),
            **scores(run),
        }
        for cell in design.rate_cells()
        for run in [Run(out / cell.name)]
    ]
    return pd.DataFrame(rows)


def _last_loss(run: Run) -> float:
    loss = float(run.metrics[CRITERION].iloc[-1])
    return math.inf if run.diverged_at is not None or math.isnan(loss) else loss


def own_rates(losses: pd.DataFrame) -> Rates:
    """Choose the rate of the lowest mean validation loss of each regime and arm; ties: the lowest.

    >>> losses = pd.DataFrame({"regime": "A", "arm": "step", "learning_rate": [1, 1, 2, 2],
    ...                        "seed": [0, 1, 0, 1], "loss": [0.4, 0.2, 0.1, 0.4]})
    >>> own_rates(losses)
    {('A', 'step'): 2.0}
    """
    if losses.empty:
        return {}
    means = losses.groupby(["regime", "arm", "learning_rate"])["loss"].mean()
    best: Mapping[Any, Any] = means.groupby(["regime", "arm"]).idxmin().to_dict()
    return {(regime, arm): float(key[2]) for (regime, arm), key in best.items()}
