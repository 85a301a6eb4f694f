"""The jump from one step's mask to the next: principal angles between the masked subspaces.

    python -m analyses.subspace_angles --run runs/first
    python -m analyses.subspace_angles --run 'runs/seed-*' --steps every:10 --modules q_proj

Step t trains the rank directions in its mask M_t, step t + 1 those in M_{t+1}. At the state
between them (A_t, B_t after step t) this compares, for each module,

    space coordinate   the coordinate subspaces of R^r that the two masks span: a statement about
                       coin flips only, whose angles are 0 (shared directions) or 90 degrees
    space row          the row spaces of the kept rows of A_t, in R^n
    space column       the column spaces of the kept columns of B_t, in R^m

Directions that both masks keep have angle exactly 0. Further numbers: kept directions, shared
ones, their Jaccard index |shared| / |union|, and phi, the mean of cos^2 over the angles (1: one
space contains the other; 0: orthogonal).

Dotted lines are what chance gives: q r kept, q^2 r shared and a Jaccard index of q / (2 - q) for
Bernoulli masks of keep_prob q, and the phi of masked parts of a random Gaussian frame. Real A
starts there; what departs from it later is learned alignment of the rank directions. The motion of
the frame itself is another thing: see analyses.frame_drift.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses import kit
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import MaskLaw

SPACES = {"row": "row space of A", "column": "column space of B"}
LARGEST_NULL_RANK = 128  # the null's expectation enumerates some r^3 / 6 overlaps


def compute(run: Run, *, steps: kit.Steps = None, modules: kit.Modules = None) -> pd.DataFrame:
    """Compute the table of the steps t whose mask, core and next mask were recorded.

    Returns:
        A row is (run, step, module, space). Columns run, step, next_step, module, layer,
        projection, space (coordinate, row, column); kept, next_kept, shared (directions); jaccard;
        phi; angles (list, radians, ascending), min_angle, median_angle, max_angle,
        min_residual_angle (smallest one that is not a shared direction; radians); expected_kept,
        expected_shared, expected_jaccard and null_phi (expectations under the run's mask law,
        null_phi for a Gaussian frame; nan where there is none). Angles are fewer than
        min(kept, next_kept) where columns of B are still zero.

    Raises:
        UserError: if the run has no step masks, or none of two successive steps.
    """
    kit.check_needs(run, kit.Needs.STEP_MASKS)
    masks = kit.StepMasks(run)
    available = np.array(run.steps if steps is None else list(steps))
    between = available[masks.has(available) & masks.has(available + 1)]

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        names = batch.modules["module"]
        mask = torch.from_numpy(masks.at(batch.steps, names))
        following = torch.from_numpy(masks.at(batch.steps + 1, names))
        frames = (batch.core.row, batch.core.column)
        on_weights = [linalg.masked_angles(frame.R, mask, following).angles for frame in frames]
        on_coordinates = _coordinate_angles(mask, following)
        angles = torch.stack([on_coordinates, *on_weights], dim=-2)  # (T, M, space, r)
        shared, union = (mask & following).sum(-1), (mask | following).sum(-1)
        jaccard = torch.where(union > 0, shared.double() / union, 1.0)  # two empty masks: 1
        of_masks = {
            "kept": mask.sum(-1),
            "next_kept": following.sum(-1),
            "shared": shared,
            "jaccard": jaccard,
        }
        columns = {
            "next_step": (batch.steps + 1)[:, None, None],
            **{name: values[..., None] for name, values in of_masks.items()},
            "phi": angles.cos().square().nanmean(-1),
            **_describe(angles),
            **_expected(run, batch),
        }
        return kit.grid_table(run, batch, columns, axes={"space": ["coordinate", *SPACES]})

    batches = kit.over_batches(run, of_batch, steps=between.tolist(), modules=modules)
    table = kit.concatenate(batches)
    if table.empty:
        chosen = " among those selected: omit --steps, or" if steps is not None else ":"
        raise UserError(
            f"{run.path} has no step whose core, mask and next mask were all recorded{chosen} "
            "record with --cores full"
        )
    return table


def _coordinate_angles(mask: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Angles between coordinate subspaces, (..., r): shared zeros, then right angles, then nan."""
    position = torch.arange(mask.shape[-1])
    shared = (mask & following).sum(-1, keepdim=True)
    count = torch.minimum(mask.sum(-1, keepdim=True), following.sum(-1, keepdim=True))
    angles = (position >= shared).double() * (torch.pi / 2)
    return torch.where(position < count, angles, torch.nan)


def _describe(angles: torch.Tensor) -> dict[str, Any]:
    """Columns of the angles (..., r), which ascend and are padded with nan."""
    count, zeros = angles.isfinite().sum(-1), (angles == 0).sum(-1)

    def at(place: torch.Tensor) -> torch.Tensor:
        return angles.gather(-1, place.clamp(0, angles.shape[-1] - 1)[..., None])[..., 0]

    return {
        "angles": kit.ragged(angles),
        "min_angle": at(count * 0),
        "median_angle": (at((count - 1) // 2) + at(count // 2)) / 2,
        "max_angle": at(count - 1),
        "min_residual_angle": at(zeros).where(zeros < count, torch.nan),
    }


def _expected(run: Run, batch: kit.CoreBatch) -> dict[str, Any]:
    """Columns of expectations under the run's mask law, (1, M, space) or a number."""
    law, rank = run.mask_law, int(batch.modules["r"].iloc[0])
    if law is None or not law.plain:
        names = ("expected_kept", "expected_shared", "expected_jaccard", "null_phi")
        return dict.fromkeys(names, np.nan)
    mean = law.moments(rank).mean
    sizes = batch.modules[["n", "m"]].to_numpy()  # of the row and of the column space
    null = [[np.nan, *(null_phi(int(n), rank, law) for n in module)] for module in sizes]
    return {
        "expected_kept": mean.sum(),
        "expected_shared": (mean**2).sum(),
        "expected_jaccard": law.jaccard(rank),
        "null_phi": [null],
    }


@functools.cache
def null_phi(n: int, rank: int, law: MaskLaw) -> float:
    """Mean phi of two masks of a Gaussian frame (n, rank); nan where it is not known."""
    if rank > min(n, LARGEST_NULL_RANK):
        return float("nan")
    return linalg.null_overlap(n, law.kept_pmf(rank)).phi


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give means over steps and modules beside their expectations."""
    summary: dict[str, dict[str, float]] = {}
    means = table.groupby(["run", "space"], observed=True).mean(numeric_only=True)
    for run in table["run"].unique():
        of_masks = means.loc[run, "coordinate"]
        for value in ("kept", "shared", "jaccard"):
            pair = {"measured": of_masks[value], "expected": of_masks[f"expected_{value}"]}
            summary[f"{run}, {value}"] = pair
        for space, label in SPACES.items():
            of_weights = means.loc[run, space]
            pair = {"measured": of_weights["phi"], "random": of_weights["null_phi"]}
            summary[f"{run}, phi of the {label}"] = pair
    return summary


by_chance = functools.partial(kit.Panel, expected_label="by chance")
of_masks = functools.partial(by_chance, where={"space": "coordinate"})
of_weights = functools.partial(by_chance, by="space", labels=SPACES)

plot = kit.curves_over_steps(
    of_masks(
        {"kept": "kept", "shared": "shared"}, expected="expected_{}",
        title="masks: directions kept, and shared with the next", unit="directions",
        limits=(0, None)
    ),
    of_masks(
        {"jaccard": "shared"}, expected="expected_jaccard",
        title="masks: shared / union", unit="Jaccard index", limits=(0, 1.05)
    ),
    of_weights(
        "phi", expected="null_phi",
        title="weights: overlap of successive subspaces", unit="φ = mean cos²", limits=(0, 1.05)
    ),
    of_weights(
        "min_residual_angle", degrees=True,
        title="weights: smallest angle that is not a shared direction", unit="degrees",
        limits=(0, 95)
    ),
    title="Mask jump",
)  # fmt: skip

ANALYSIS = kit.Analysis(
    name="subspace_angles",
    description=__doc__,
    question="how far apart are the subspaces of successive masks?",
    needs=kit.Needs.FACTORS | kit.Needs.CORES | kit.Needs.STEP_MASKS,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="Each mask keeps some rows of A, which span a subspace. Two successive masks share the "
    "rows that both keep: there the angle is exactly zero. The other directions are nearly "
    "perpendicular, as random directions in a space of hundreds of dimensions are (dotted: the "
    "random null). This jump is drawn by coin flips; learning has no part in it.",
    why_missing="its masks belong to no step (plain LoRA has none, token masks are drawn per "
    "token)",
    position=30,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
