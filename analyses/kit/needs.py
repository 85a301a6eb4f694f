"""What an analysis needs from a run, and what to do about a run that lacks it."""

from __future__ import annotations

import enum

from analyses.kit.notes import why_nothing
from subspace_lab.errors import UserError
from subspace_lab.runs.projections import projection_steps
from subspace_lab.runs.run import Run


class Needs(enum.Flag):
    """Parts of a run that an analysis reads; combine them with `|`.

    Attributes:
        METRICS: losses and evaluations of the training.
        FACTORS: modules with factors B and A.
        CORES: rank cores, recorded or computed from saved adapters.
        DISPLACEMENTS: recorded cores, which hold the displacements since earlier steps; or the
            projections of GaLore, each beside the one before.
        STEP_MASKS: the mask of every optimizer step.
        SNAPSHOTS: saved adapters with factors.
        MODEL: the trained model: a saved adapter and its base.
        EVALUATIONS: results of `python -m subspace_lab.evaluate`.
    """

    METRICS = enum.auto()
    FACTORS = enum.auto()
    CORES = enum.auto()
    DISPLACEMENTS = enum.auto()
    STEP_MASKS = enum.auto()
    SNAPSHOTS = enum.auto()
    MODEL = enum.auto()
    EVALUATIONS = enum.auto()


def what_is_missing(run: Run, needs: Needs) -> str | None:
    """Say in one sentence what a run lacks and how to record it; None if it has all."""
    checks = {
        Needs.METRICS: (
            (run.path / "metrics.parquet").is_file(),
            "has no metrics.parquet: it is not a recorded run, or has just begun",
        ),
        Needs.FACTORS: (
            not run.modules.empty,
            f"has no modules with factors B and A that can be read: {why_nothing(run)}",
        ),
        Needs.CORES: (
            bool(run.steps),
            "has no rank cores and no saved adapters: record it with `cores` or `snapshots`",
        ),
        Needs.DISPLACEMENTS: (
            bool(run.core_steps or projection_steps(run.path)),
            "has no displacements, only adapters: record a run with `cores`",
        ),
        Needs.STEP_MASKS: (
            bool(run.mask_steps or run.steps_without_mask),
            "has no step masks: train with `method` droplora and `granularity` step",
        ),
        Needs.SNAPSHOTS: (
            bool(run.snapshots),
            "has no saved adapters with factors B and A: record them with `snapshots`",
        ),
        Needs.MODEL: (
            bool(run.adapter_folders),
            "has no saved adapter: name a run or folder that holds one",
        ),
        Needs.EVALUATIONS: (
            (run.path / "evaluations").is_dir(),
            f"was not evaluated: run python -m subspace_lab.evaluate --run {run.path}",
        ),
    }
    lacking = (text for need, (has, text) in checks.items() if need in needs and not has)
    return next((f"{run.path} {text}" for text in lacking), None)


def check_needs(run: Run, needs: Needs) -> None:
    """Refuse a run that lacks something.

    Raises:
        UserError: naming the first part that it lacks, and how to record it.
    """
    if (sentence := what_is_missing(run, needs)) is not None:
        raise UserError(sentence)
