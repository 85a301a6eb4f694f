"""The set: which figure shows what, from which analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analyses import (
    effective_rank,
    ensemble_vs_single,
    frame_drift,
    gate_expansion,
    kit,
    learning_rates,
    merged_spectra,
    paired_differences,
    regulariser,
    subspace_angles,
    subspace_motion,
)
from analyses.figures import samples
from analyses.figures.heat_maps import layers_over_steps, seeds_overlap
from analyses.figures.over_seeds import over_seeds
from analyses.figures.sources import Source, of_all_runs, of_each_run, overlaps_of_seeds


@dataclass(frozen=True)
class SetFigure:
    """One figure of the set; those with one source share its table.

    `shows` is what the caption begins with, in ASCII and without LaTeX, and `sample` gives sample
    size and interval of what is drawn.
    """

    name: str
    shows: str
    source: Source
    plot: kit.Plot
    sample: Callable[[pd.DataFrame], tuple[str, str]] = samples.of_curves


def _stable_rank(table: pd.DataFrame) -> pd.DataFrame:
    of_update = table["matrix"].isin(["update", "product"])
    return table[of_update & (table["measure"] == "stable")]


ranks = of_each_run(effective_rank.ANALYSIS)

FIGURES = (
    SetFigure(
        "effective_rank",
        "Effective ranks of the update and of the masked update over training, by measure.",
        ranks,
        effective_rank.plot,
    ),
    SetFigure(
        "merged_spectra",
        "Singular values of the final update beside those of the base weight, what the update does "
        "to the leading singular values of the merged weight, and its size by projection.",
        of_each_run(merged_spectra.ANALYSIS),
        merged_spectra.plot,
    ),
    SetFigure(
        "subspace_angles",
        "Successive masks: directions kept and shared, and the angles between the subspaces that "
        "they select, beside what chance gives (dotted).",
        of_each_run(subspace_angles.ANALYSIS),
        subspace_angles.plot,
    ),
    SetFigure(
        "jump_and_drift",
        "Mask jump against frame drift: how much of the subspace that a step trains is new in the "
        "next one, by a new mask and by the motion of the frame itself; random subspaces dotted.",
        of_each_run(subspace_motion.ANALYSIS),
        subspace_motion.ANALYSIS.plots["subspace_motion"],
    ),
    SetFigure(
        "seeds_overlap_input",
        "Grassmann overlap of the leading directions of two seeds' final updates in input space.",
        overlaps_of_seeds,
        seeds_overlap("row"),
        samples.of_overlaps,
    ),
    SetFigure(
        "seeds_overlap_output",
        "Grassmann overlap of the leading directions of two seeds' final updates in output space.",
        overlaps_of_seeds,
        seeds_overlap("column"),
        samples.of_overlaps,
    ),
    SetFigure(
        "ensemble_vs_single",
        "Ensemble of masks against single masks: loss over the inference scale of the update, loss "
        "above that of the full update, and exact match.",
        of_each_run(ensemble_vs_single.ANALYSIS),
        over_seeds(ensemble_vs_single.plot, keys=["panel", "predictor", "kind", "scale"]),
        samples.of_points,
    ),
    SetFigure(
        "regulariser",
        "The regularizer R of rank masks and its minimum for the same update over training, also "
        "relative to the size of the update, and the update's size under the recorded masks.",
        of_each_run(regulariser.ANALYSIS),
        regulariser.plot,
    ),
    SetFigure(
        "gate_expansion",
        "The gap between the mean loss under random gates and the loss under their mean, over "
        "training, beside its second order, the regularizer. Hollow: the second order is not shown "
        "to stand for the gap.",
        of_each_run(
            gate_expansion.ANALYSIS,
            all_snapshots=True,
            examples=gate_expansion.figure.MIN_EXAMPLES,
            masks=4,
        ),
        over_seeds(gate_expansion.plot, keys=["step", "quantity"]),
        samples.of_points,
    ),
    SetFigure(
        "effective_rank_layers",
        "Stable rank of the update by layer over training.",
        ranks,
        layers_over_steps("value", unit="stable rank", rows=_stable_rank),
        samples.of_layers,
    ),
    SetFigure(
        "frame_drift_layers",
        "Largest angle between the row space of A and that at the start, by layer over training.",
        of_each_run(frame_drift.ANALYSIS),
        layers_over_steps("max_angle", unit="angle (degrees)", rows=frame_drift.turns_of_rows),
        samples.of_layers,
    ),
    SetFigure(
        "paired_differences",
        "Difference to LoRA on test examples, paired by seed.",
        of_all_runs(paired_differences.ANALYSIS),
        paired_differences.ANALYSIS.plots["paired_differences"],
        samples.of_scores,
    ),
    SetFigure(
        "learning_rates",
        "Scores on test examples over the learning rate, and the difference to LoRA at equal rate "
        "and with each method at its own, which validation examples choose.",
        of_all_runs(learning_rates.ANALYSIS),
        learning_rates.ANALYSIS.plots["learning_rates"],
        samples.of_scores,
    ),
)
