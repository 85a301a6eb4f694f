"""The jump from one step's mask to the next: principal angles between the masked subspaces.

    python -m analyses.subspace_angles --run runs/first
    python -m analyses.subspace_angles --run 'runs/seed-*' --steps every:10 --modules q_proj

Step t trains the rank directions in its mask M_t, step t + 1 those in M_{t+1}. At the state
between them (A_t, B_t after step t) this compares, for each module,

    space coordinate   the coordinate subspaces of R^r that the two masks span: a statement about
                       coin flips only, whose angles are 0 (shared directions) or 90 degrees
    space weights      the row spaces of the kept rows of A_t (side row) and the column spaces of
                       the kept columns of B_t (side column), in R^n and R^m

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
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.figures.curves import (
    draw_curves,
    draw_names,
    draw_prediction,
    looks,
    sample_note,
    thin,
)
from subspace_lab.figures.style import legend_below, new_figure, step_axis
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import MaskLaw

SIDES = {"row": "row space of A", "column": "column space of B"}
EXPECTATIONS = ("expected_kept", "expected_shared", "expected_jaccard", "null_phi")
LARGEST_NULL_RANK = 128  # the null's expectation enumerates some r^3 / 6 overlaps


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
) -> pd.DataFrame:
    """Compute the table; a row is (run, step, module, side, space).

    Args:
        run: a run with step masks.
        steps: only these steps t; None: all whose mask, core and next mask were recorded.
        modules: only these modules; None: all.

    Returns:
        Columns run, step, next_step, module, layer, projection, side, space; kept, next_kept,
        shared (directions); jaccard; phi; angles (list, radians, ascending), min_angle,
        median_angle, max_angle, min_residual_angle (smallest one that is not a shared direction;
        radians); expected_kept, expected_shared, expected_jaccard and null_phi (expectations under
        the run's mask law, null_phi for a Gaussian frame; nan where there is none). Angles are
        fewer than min(kept, next_kept) where columns of B are still zero.

    Raises:
        UserError: if the run has no step masks, or none of two successive steps.
    """
    masks = kit.StepMasks(run)
    available = np.array(run.steps if steps is None else list(steps))
    between = available[masks.has(available) & masks.has(available + 1)]

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        names = batch.modules["module"]
        mask = torch.from_numpy(masks.at(batch.steps, names))
        following = torch.from_numpy(masks.at(batch.steps + 1, names))
        on_weights = [
            linalg.masked_angles(frame.R, mask, following).angles
            for frame in (batch.core.row, batch.core.column)
        ]
        on_coordinates = [_coordinate_angles(mask, following)] * len(SIDES)
        angles = torch.stack([*on_coordinates, *on_weights], dim=-2)
        angles = angles.unflatten(-2, (2, len(SIDES)))  # (T, M, space, side, r)
        shared, union = (mask & following).sum(-1), (mask | following).sum(-1)
        jaccard = shared.double() / union.clamp(min=1)
        of_masks = {
            "kept": mask.sum(-1),
            "next_kept": following.sum(-1),
            "shared": shared,
            "jaccard": torch.where(union > 0, jaccard, 1.0),  # two empty masks: 1
        }
        columns = {
            "next_step": (batch.steps + 1)[:, None, None, None],
            **{name: values[..., None, None] for name, values in of_masks.items()},
            "phi": angles.cos().square().nanmean(-1),
            **_describe(angles),
            **_expected(run, batch),
        }
        axes = {"space": ["coordinate", "weights"], "side": list(SIDES)}
        return kit.grid_table(run, batch, columns, axes=axes)

    table = kit.concatenate(
        kit.over_batches(run, of_batch, steps=between.tolist(), modules=modules)
    )
    if table.empty:
        chosen = " among those selected: leave --steps out, or" if steps is not None else ":"
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

    residual = at(zeros).where(zeros < count, float("nan"))
    return {
        "angles": kit.ragged(angles.flatten(0, -2).numpy()).reshape(angles.shape[:-1]),
        "min_angle": at(count * 0),
        "median_angle": (at((count - 1) // 2) + at(count // 2)) / 2,
        "max_angle": at(count - 1),
        "min_residual_angle": residual,
    }


def _expected(run: Run, batch: kit.CoreBatch) -> dict[str, Any]:
    """Columns of expectations under the run's mask law, (T, M, space, side) or a number."""
    law, rank = run.mask_law, int(batch.modules["r"].iloc[0])
    if law is None or not law.plain:
        return dict.fromkeys(EXPECTATIONS, np.nan)
    mean = law.moments(rank).mean
    shape = (len(batch.steps), len(batch.modules), 2, len(SIDES))
    null = np.full(shape, np.nan)
    for side, size in enumerate(("n", "m")):
        lengths = batch.modules[size]
        null[:, :, 1, side] = [null_phi(int(n), rank, law) for n in lengths]
    expectations = (mean.sum(), (mean**2).sum(), law.jaccard(rank), null)
    return dict(zip(EXPECTATIONS, expectations, strict=True))


@functools.cache
def null_phi(n: int, rank: int, law: MaskLaw) -> float:
    """Mean phi of two masks of a Gaussian frame (n, rank); nan where it is not known."""
    if rank > min(n, LARGEST_NULL_RANK):
        return float("nan")
    return linalg.null_overlap(n, law.kept_pmf(rank)).phi


def draw(table: pd.DataFrame) -> Figure:
    """Draw counts, Jaccard index, phi and residual angles over steps, with what chance gives."""
    table = thin(table)
    masks = table[(table["space"] == "coordinate") & (table["side"] == "row")]
    weights = table[table["space"] == "weights"].copy()
    weights["degrees"] = np.degrees(weights["min_residual_angle"])
    names = {"kept": "kept", "shared": "shared", **SIDES}
    look = looks(table, names)
    figure, axes = new_figure(4, row_height=1.15)
    counts, jaccard, phi, angle = axes[:, 0]

    for value in ("kept", "shared"):
        draw_curves(counts, masks, value, name=value, looks=look)
    for side in SIDES:
        rows = weights[weights["side"] == side]
        draw_curves(phi, rows, "phi", name=side, looks=look)
        draw_prediction(phi, rows, "null_phi", label="by chance")
        draw_curves(angle, rows, "degrees", name=side, looks=look)
    for value in ("kept", "shared"):
        draw_prediction(counts, masks, f"expected_{value}", label="by chance")
    counts.set(title="masks: directions kept, and shared with the next", ylabel="directions")
    draw_curves(jaccard, masks, "jaccard", name="shared", looks=look)
    draw_prediction(jaccard, masks, "expected_jaccard", label="by chance")
    jaccard.set(title="masks: shared / union", ylabel="Jaccard index")
    phi.set(title="weights: overlap of successive subspaces", ylabel="φ = mean cos²")
    angle.set(title="weights: smallest angle that is no shared direction", ylabel="degrees")
    angle.set_yticks([0, 30, 60, 90])
    for axis, top in ((counts, None), (jaccard, 1.05), (phi, 1.05), (angle, 95)):
        axis.set_ylim(0, top)
    draw_names(counts, table, names)
    step_axis(angle)
    figure.suptitle(f"Mask jump\n{sample_note(table)}", fontsize="medium")
    legend_below(figure, axes[:, 0])
    return figure


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give means over steps and modules beside their expectations."""
    found: dict[str, dict[str, float]] = {}
    for run, rows in table.groupby("run", observed=True):
        masks = rows[(rows["space"] == "coordinate") & (rows["side"] == "row")]
        for value in ("kept", "shared", "jaccard"):
            found[f"{run}, {value}"] = {
                "measured": float(masks[value].mean()),
                "expected": float(masks[f"expected_{value}"].mean()),
            }
        for side in SIDES:
            weights = rows[(rows["space"] == "weights") & (rows["side"] == side)]
            found[f"{run}, phi of the {SIDES[side]}"] = {
                "measured": float(weights["phi"].mean()),
                "random": float(weights["null_phi"].mean()),
            }
    return found


plot = kit.Plot(draw)

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
