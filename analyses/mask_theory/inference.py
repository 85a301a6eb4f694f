"""T11 and T12: what masks do to the trained model, from the tables of two other analyses.

The mask ensemble comes from `ensemble_vs_single`, the cost of random gates from `gate_expansion`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pandas as pd
import scipy

from analyses.mask_theory.comparison import (
    Comparison,
    indicative,
    no_exceptions,
    within_limits,
    within_rounding,
)
from analyses.mask_theory.laws import Law
from analyses.mask_theory.prediction import Need, known, prediction
from subspace_lab import files
from subspace_lab.runs.run import Run

FLOAT32 = 1e-5  # relative, of losses summed over tokens
PREDICTORS = {"full", "single", "geometric", "arithmetic"}


class Tables(NamedTuple):
    """Tables of other analyses about a run, at its last step; None where they were not made."""

    ensembles: pd.DataFrame | None
    gates: pd.DataFrame | None


def read_tables(run: Run) -> Tables:
    """Read the tables that lie in the run's folder of analyses."""
    return Tables(*(_read(run, name) for name in ("ensemble_vs_single", "gate_expansion")))


def _read(run: Run, analysis: str) -> pd.DataFrame | None:
    path = run.output_folder / f"{analysis}.parquet"
    if not path.is_file():
        return None
    table = files.read_table(path)
    last: pd.DataFrame = table[table["step"] == table["step"].max()]
    return last


ENSEMBLES = Need(
    lambda tables: tables.ensembles is not None, "analyses.ensemble_vs_single was not run"
)
SEVERAL_MASKS = Need(
    lambda tables: (
        set(tables.ensembles["predictor"]) >= PREDICTORS
        and (tables.ensembles["predictor"] == "single").sum() > 1
    ),
    "analyses.ensemble_vs_single was run with fewer than two masks",
    ENSEMBLES,
)
GATES = Need(lambda tables: tables.gates is not None, "analyses.gate_expansion was not run")

of_ensembles = functools.partial(prediction, "T12", always=(SEVERAL_MASKS,))


def mean_losses(table: pd.DataFrame) -> tuple[dict[str, float], int]:
    """Give mean losses by predictor in nats per token, and the number of single masks."""
    means = table.groupby("predictor")["loss"].mean()
    losses = {str(name): float(loss) for name, loss in means.items()}
    return losses, int((table["predictor"] == "single").sum())


def _jensen_gap(table: pd.DataFrame) -> float:
    return float(table.loc[table["predictor"] == "geometric", "jensen_gap"].iloc[0])


@of_ensembles(
    "single = geometric + Jensen gap", "the cost of masks is not their Jensen gap", tests="identity"
)
def jensen(tables: Tables) -> Comparison:
    """The mean loss of single masks is that of their geometric ensemble plus the Jensen gap."""
    table = known(tables.ensembles)
    losses, masks = mean_losses(table)
    predicted, single = losses["geometric"] + _jensen_gap(table), losses["single"]
    basis = "nats per token; rounding of float32 logits"
    return within_rounding(
        predicted, single, tolerance=FLOAT32 * single, basis=basis, samples=masks
    )


@of_ensembles(
    "arithmetic ensemble <= single",
    "the ensemble has a higher loss than its members",
    tests="identity",
)
def convex(tables: Tables) -> Comparison:
    """Averaged probabilities never have a higher loss than single masks have on average."""
    losses, _ = mean_losses(known(tables.ensembles))
    return no_exceptions([losses["arithmetic"] > losses["single"] * (1 + FLOAT32)])


@of_ensembles(
    "single masks' gap is the Jensen gap",
    "the full model is not the geometric ensemble",
    tests="trained model",
)
def jensen_alone(tables: Tables) -> Comparison:
    """The full model is the geometric ensemble, so that masks cost the Jensen gap."""
    table = known(tables.ensembles)
    losses, masks = mean_losses(table)
    gap, basis = _jensen_gap(table), "exact for adapters on the logits only, with rescaled masks"
    return indicative(
        gap, losses["single"] - losses["full"], tolerance=0.25 * gap, basis=basis, samples=masks
    )


@prediction(
    "T11",
    "gates' gap is its second order",
    "the regularizer is not what masks cost this network",
    GATES,
    tests="trained model",
)
def gate_gap(tables: Tables) -> Comparison:
    """The measured gap is the second order of its expansion, the regularizer.

    It may be compared with the run only where the third and fourth order are small beside it; then
    it may miss by their size and by what chance does.
    """
    last = known(tables.gates).iloc[-1]
    predicted, measured = float(last["second"]), float(last["measured"])
    orders = {name: abs(float(last[name])) for name in ("third", "fourth")}
    large = [name for name, size in orders.items() if size > last["tolerance"] * predicted]
    samples = int(last["masks"])
    if large:
        why = f"the expansion is not valid: its {large[0]} order is not small beside the second"
        scale = abs(predicted) or 1.0
        return indicative(predicted, measured, tolerance=scale, basis=why, samples=samples)
    # With few masks the standard error itself is uncertain.
    chance = Law(scipy.stats.t(samples - 1, loc=predicted, scale=float(last["excess_error"])))
    low, high = chance.limits()
    higher = sum(orders.values())
    return within_limits(
        predicted,
        measured,
        limits=(low - higher, high + higher),
        probability=chance.probability(measured),
        power=chance.caught[1] + higher,
        unit="of measured",
        basis="Student's quantile over masks, and the third and fourth order",
        samples=samples,
    )
