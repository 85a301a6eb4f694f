"""Training what a design lists, each run once, however many experiments have it in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.design import Cell, Design
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.sweeping.grid import Job, Sweep
from subspace_lab.sweeping.running import run_here
from subspace_lab.sweeping.state import refuse_other_runs
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import TrainConfig

Rates = Mapping[tuple[str, str], float]
"""The learning rate chosen for each regime and arm."""
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
        presets, fields = design.settings(cell)
        arguments = [f"--config={preset}" for preset in presets]
        arguments += [f"--{name}={_flag(value)}" for name, value in fields.items()]
        config = TrainConfig(**parse(parser, arguments))
        values = {"regime": cell.regime, "arm": cell.arm, "learning_rate": cell.learning_rate}
        jobs.append(Job(cell.name, {**values, **cell.fields}, tuple(arguments), config))
    return jobs


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def validation_losses(design: Design, out: Path) -> pd.DataFrame:
    """Table the validation losses from which rates are chosen.

    Returns:
        Columns regime, arm, learning_rate, seed and loss (nats per token; inf where a run
        diverged).
    """
    rows = [
        {
            "regime": cell.regime,
            "arm": cell.arm,
            "learning_rate": cell.learning_rate,
            **cell.fields,
            "loss": _last_loss(Run(out / cell.name)),
        }
        for cell in design.rate_cells()
    ]
    return pd.DataFrame(rows)


def _last_loss(run: Run) -> float:
    loss = float(run.metrics[CRITERION].iloc[-1])
    return math.inf if run.diverged_at is not None or math.isnan(loss) else loss


def own_rates(losses: pd.DataFrame) -> dict[tuple[str, str], float]:
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
