"""What an analysis needs from a run, and what to do about a run that lacks it."""

from __future__ import annotations

import enum

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


LACKS = {
    Needs.METRICS: "has no metrics.parquet: it is not a recorded run, or has just begun",
    Needs.FACTORS: "has no modules with factors B and A that can be read: {why}",
    Needs.CORES: "has no rank cores and no saved adapters: record it with `cores` or `snapshots`",
    Needs.DISPLACEMENTS: "has no displacements, only adapters: record a run with `cores`",
    Needs.STEP_MASKS: "has no step masks: train with `method` droplora and `granularity` step",
    Needs.SNAPSHOTS: "has no saved adapters with factors B and A: record them with `snapshots`",
    Needs.MODEL: "has no saved adapter: name a run or folder that holds one",
    Needs.EVALUATIONS: "was not evaluated: run python -m subspace_lab.evaluate --run {path}",
}
"""What is said of a run that lacks something, and how to record it."""


def check_needs(run: Run, needs: Needs) -> None:
    """Refuse a run that lacks something.

    Raises:
        UserError: naming the first part that it lacks, and how to record it.
    """
    present = {
        Needs.METRICS: (run.path / "metrics.parquet").is_file(),
        Needs.FACTORS: not run.modules.empty,
        Needs.CORES: bool(run.steps),
        Needs.DISPLACEMENTS: bool(run.core_steps or projection_steps(run.path)),
        Needs.STEP_MASKS: bool(run.mask_steps or run.steps_without_mask),
        Needs.SNAPSHOTS: bool(run.snapshots),
        Needs.MODEL: bool(run.adapter_folders),
        Needs.EVALUATIONS: (run.path / "evaluations").is_dir(),
    }
    for need, sentence in LACKS.items():
        if need in needs and not present[need]:
            why = next(iter(run.left_out["reason"]), "its adapter has no factors B and A")
            raise UserError(f"{run.path} {sentence.format(why=why, path=run.path)}")
