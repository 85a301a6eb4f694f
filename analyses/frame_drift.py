"""How far the frame itself moves: angles of row(A) and col(B) to a step ago and to the start.

    python -m analyses.frame_drift --run runs/first
    python -m analyses.frame_drift --run runs/lora runs/droplora --steps every:10

A rank mask chooses among the directions of a frame (see analyses.subspace_angles for that jump);
only the motion of the frame brings in new directions. For each module, step and side (row: the row
space of A; column: the column space of B), since the previous step and since the start:

    angles      principal angles between the full frames then and now, in radians; none where the
                frame then was still zero, as B usually is at the start
    step_norm   Frobenius norm of the displacement of A or B
    leakage     share of the squared step norm that lies on rank directions which the step's mask
                had dropped (since previous, with step masks only)

A GaLore run has no A and B: its frame is the projection that it draws at each refresh (see
subspace_lab.adapters.galore), of one side only; the previous step is the previous refresh, and an
orthonormal frame has no step norm. analyses.subspace_motion draws all three kinds of motion.

Under plain SGD a dropped direction does not move: leakage 0. AdamW moves it by its momentum; the
dotted line is the prediction for stationary gradients without weight decay (T16),
beta_1^2 (1 - keep_prob), with beta_1 = 0.9: 0.405 at keep_prob 0.5. (The share of the mean
displacement is beta_1 (1 - keep_prob).) The figure and the summary give the ratio of sums over all
modules, which the prediction is about; the table's leakage is that of one module, and the mean of
such ratios lies 0.01 to 0.03 above it at rank 8. Rates of drift scale with the learning rate:
compare runs at equal update norm.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from analyses import kit
from analyses._mask_laws import law_of, moments_of
from analyses._projections import projection_drift
from subspace_lab import linalg
from subspace_lab.figures.curves import (
    draw_curves,
    draw_names,
    draw_prediction,
    group_column,
    looks,
    sample_note,
    thin,
)
from subspace_lab.figures.style import legend_below, new_figure, step_axis
from subspace_lab.linalg.rank_core import RankCore, Since
from subspace_lab.runs.projections import projection_steps
from subspace_lab.runs.run import Run
from subspace_lab.theory.adam import squared_leakage

SIDES = {"row": "row space of A", "column": "column space of B"}
SINCE: tuple[Since, ...] = ("previous", "start")
SMALL_ANGLE = 10.0  # degrees


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
) -> pd.DataFrame:
    """Compute the table; a row is (run, step, module, side, since).

    Args:
        run: a run with recorded cores, or the projections of GaLore.
        steps: only these steps; None: all but step 0 (of projections: all but the first).
        modules: only these modules; None: all.

    Returns:
        Columns run, step, module, layer, projection, side, since (previous, start); angles (list,
        radians, ascending; empty where the earlier frame was still zero, as B is at the start),
        max_angle (radians); step_norm; leakage (share in [0, 1]; nan without step masks and since
        the start) and expected_leakage (for AdamW, else nan).

    Raises:
        UserError: if no displacements were recorded.
    """
    kit.check_needs(run, kit.Needs.DISPLACEMENTS)
    if projection_steps(run.path):
        drift = projection_drift(run, steps=steps, modules=modules)
        return drift.assign(step_norm=np.nan, leakage=np.nan, expected_leakage=np.nan)
    moved = [step for step in (run.steps if steps is None else steps) if step > 0]
    masks = kit.StepMasks(run) if run.mask_steps else None
    law = law_of(run) if masks is not None and run.config.get("optimizer") == "adamw" else None

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        core = batch.core
        angles, norms = [], []
        for frame in (core.row, core.column):
            for since in SINCE:
                angles.append(linalg.principal_angles(frame.now(), frame.before(since)))
                norms.append(frame.displacement(since).norm)
        shape = (*batch.finite.shape, len(SIDES), len(SINCE))
        stacked = torch.stack(angles, dim=-2).unflatten(-2, shape[-2:])  # (T, M, side, since, r)
        largest = stacked.nan_to_num(-1.0).amax(-1)
        expected = np.nan
        if law is not None:
            keep_prob = float(moments_of(law, core.row.R.shape[-1]).mean[0])
            expected = squared_leakage(keep_prob=keep_prob)
        columns = {
            "angles": kit.ragged(stacked.flatten(0, -2).numpy()).reshape(shape),
            "max_angle": largest.where(largest >= 0, torch.nan),
            "step_norm": torch.stack(norms, dim=-1).unflatten(-1, shape[-2:]),
            "leakage": _leakage(core, masks, batch),
            "expected_leakage": [expected if since == "previous" else np.nan for since in SINCE],
        }
        return kit.grid_table(run, batch, columns, axes={"side": list(SIDES), "since": list(SINCE)})

    return kit.concatenate(
        kit.over_batches(run, of_batch, steps=moved, modules=modules, displacements=True)
    )


def _leakage(core: RankCore, masks: kit.StepMasks | None, batch: kit.CoreBatch) -> torch.Tensor:
    """Share of the squared step norm on dropped directions, (T, M, side, since)."""
    leakage = torch.full((*core.row.R.shape[:2], 2, 2), torch.nan, dtype=torch.float64)
    if masks is None:
        return leakage
    recorded = masks.has(batch.steps)
    where = torch.from_numpy(recorded)
    dropped = ~torch.from_numpy(masks.at(batch.steps[recorded], batch.modules["module"]))
    for side, frame in enumerate((core.row, core.column)):
        if frame.previous is not None:
            squares = frame.previous.coordinates[where].square().sum(-2)  # (T, M, r)
            leakage[where, :, side, 0] = (squares * dropped).sum(-1) / squares.sum(-1)
    return leakage


def pooled_leakage(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Give the leakage of all rows of a group together: the ratio of sums, not a mean of ratios.

    Args:
        table: from `compute`.
        by: columns that name the groups, each of one `since`.

    Returns:
        A row per group that has leakage: `by`, leakage, and the mean expected_leakage.
    """
    known = table.dropna(subset=["leakage"])
    squares = known["step_norm"] ** 2
    sums = (
        known.assign(total=squares, masked=known["leakage"] * squares)
        .groupby(by, observed=True)
        .agg(
            masked=("masked", "sum"),
            total=("total", "sum"),
            expected_leakage=("expected_leakage", "mean"),
        )
    )
    return sums.assign(leakage=sums["masked"] / sums["total"]).reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Draw the largest angles, the step norms and the leakage over steps."""
    table = thin(table)
    table = table.assign(degrees=np.degrees(table["max_angle"]))
    previous, start = (table[table["since"] == since] for since in SINCE)
    # The projections of GaLore jump; frames creep, at first much faster than later.
    scale = "log" if previous["degrees"].min() < SMALL_ANGLE else "linear"
    no_frame = ""
    if start.loc[start["side"] == "column", "max_angle"].isna().all():
        no_frame = "  (B starts at zero)"
    panels = [
        (previous, "degrees", "largest angle to the previous step", "degrees", scale),
        (start, "degrees", f"largest angle to the start{no_frame}", "degrees", "linear"),
    ]
    if table["step_norm"].notna().any():
        panels.append((previous, "step_norm", "length of the step", "Frobenius norm", "log"))
    if table["leakage"].notna().any():
        by = list(dict.fromkeys(["run", group_column(table), "step", "side"]))
        pooled = pooled_leakage(previous, by)
        title = "step on dropped directions, all modules"
        panels.append((pooled, "leakage", title, "share of ‖·‖²", "linear"))
    look = looks(table, SIDES)
    figure, axes = new_figure(len(panels), row_height=1.15)
    for axis, (rows, value, title, unit, scale) in zip(axes[:, 0], panels, strict=True):
        for side in SIDES:
            shown = rows[rows["side"] == side]
            draw_curves(axis, shown[shown[value] > 0], value, name=side, looks=look)
        axis.set(title=title, ylabel=unit, yscale=scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        if value == "leakage":
            draw_prediction(axis, rows, "expected_leakage", label="β₁² (1 − keep_prob)")
    draw_names(axes[0, 0], table, SIDES)
    step_axis(axes[-1, 0])
    figure.suptitle(f"Frame drift\n{sample_note(table)}", fontsize="medium")
    legend_below(figure, axes[:, 0])
    return figure


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians over modules of the drift, and the leakage of the second half of the steps.

    The early steps are left out of the leakage: the momentum starts at zero, so that nothing leaks
    in the first, and the longest steps would outweigh the stationary ones.
    """
    found: dict[str, dict[str, float]] = {}
    middle = table.groupby("run", observed=True)["step"].transform("max") / 2
    late = pooled_leakage(table[table["step"] > middle], ["run", "side"])
    leaks = late.set_index(["run", "side"])
    for run, of_run in table.groupby("run", observed=True):
        for side, label in SIDES.items():
            rows = of_run[of_run["side"] == side]
            previous = rows[rows["since"] == "previous"]
            start = rows[(rows["since"] == "start") & (rows["step"] == rows["step"].max())]
            found[f"{run}, {label}"] = {
                "largest angle to the start (rad)": float(start["max_angle"].median()),
                "to the previous step (rad)": float(previous["max_angle"].median()),
                **_distance(start),
                **_leakage_of(leaks, (run, side)),
            }
    return found


def _distance(start: pd.DataFrame) -> dict[str, float]:
    """Give the distance from the start; projections, which are orthonormal, have none."""
    distance = float(start["step_norm"].median())
    return {} if np.isnan(distance) else {"distance from the start": distance}


def _leakage_of(leaks: pd.DataFrame, key: tuple[Any, str]) -> dict[str, float]:
    if key not in leaks.index:
        return {}
    row = leaks.loc[key]
    return {
        "leakage, second half of the steps": float(row["leakage"]),
        "expected": float(row["expected_leakage"]),
    }


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="frame_drift",
    description=__doc__,
    question="how fast do the directions themselves turn, and what leaks past the mask?",
    needs=kit.Needs.FACTORS | kit.Needs.DISPLACEMENTS,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="The angle between the row space of A (or the column space of B) now and one step ago, "
    "or at the start, all directions counted. This is the only way in which new directions enter. "
    "<i>Leakage</i> is the share of a step's squared length that lies on masked directions: "
    "their gradient is exactly zero, but Adam's momentum moves them all the same.",
    position=40,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
