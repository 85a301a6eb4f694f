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
from typing import TYPE_CHECKING, Any

from analyses._command import Summary, analysis_parser, run_analysis
from analyses._mask_laws import law_of, moments_of
from analyses.kit.cores import StepMasks, over_batches
from analyses.kit.tables import concatenate, grid_columns, ragged
from subspace_lab.errors import UserError, exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from subspace_lab.recording.core_batches import CoreBatch
    from subspace_lab.recording.cores import Frame, Motion
    from subspace_lab.recording.run import Run

SIDES = {"row": "row space of A", "column": "column space of B"}
SINCE = {"previous": "step", "start": "start"}  # as in the table, and in a core


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
) -> pd.DataFrame:
    """Compute the table; a row is (run, step, module, side, since).

    Args:
        run: a run with recorded cores.
        steps: only these steps; None: all but step 0.
        modules: only these modules; None: all.

    Returns:
        Columns run, step, module, layer, projection, side, since (previous, start); angles (list,
        radians, ascending; empty where the earlier frame was still zero, as B is at the start),
        max_angle (radians); step_norm; leakage (share in [0, 1]; nan without step masks and since
        the start) and expected_leakage (for AdamW, else nan).

    Raises:
        UserError: if no displacements were recorded.
    """
    import pandas as pd
    import torch

    from subspace_lab import linalg
    from subspace_lab.theory.adam import squared_leakage

    masks = StepMasks(run) if run.mask_steps else None
    law = law_of(run) if masks is not None and run.config.get("optimizer") == "adamw" else None

    def motion_of(frame: Frame, since: str) -> Motion:
        motion: Motion | None = getattr(frame, SINCE[since])
        if motion is None:
            raise UserError(
                f"{run.path} has no displacements, only adapters: frame drift needs a run that "
                "was recorded with --cores"
            )
        return motion

    def of_batch(batch: CoreBatch) -> pd.DataFrame:
        motions = [
            (frame, motion_of(frame, since))
            for frame in (batch.core.row, batch.core.column)
            for since in SINCE
        ]
        steps, moved = batch.steps[batch.steps > 0], torch.from_numpy(batch.steps > 0)
        if not steps.size:
            return pd.DataFrame()
        core = batch.core[moved]
        leaks = _leakage(core.row, core.column, masks, steps, batch)
        angles, norms = [], []
        for frame, motion in motions:
            now, then = frame.now()[moved], frame.then(motion)[moved]
            angles.append(linalg.principal_angles(now, then))
            norms.append(motion.norm[moved])
        stacked = torch.stack(angles, dim=-2)  # (T, M, side and since, r)
        columns = grid_columns(run, batch, steps=steps, side=list(SIDES), since=list(SINCE))
        columns["angles"] = ragged(stacked.flatten(0, -2).numpy())
        columns["max_angle"] = stacked.nan_to_num(-1.0).amax(-1).flatten().numpy()
        columns["step_norm"] = torch.stack(norms, dim=-1).flatten().numpy()
        columns["leakage"] = leaks.flatten().numpy()
        table = pd.DataFrame(columns)
        table["max_angle"] = table["max_angle"].where(table["max_angle"] >= 0)
        table["expected_leakage"] = float("nan")
        if law is not None:
            keep_prob = float(moments_of(law, core.row.R.shape[-1]).mean[0])
            previous = table["since"] == "previous"
            table.loc[previous, "expected_leakage"] = squared_leakage(keep_prob=keep_prob)
        return table

    return concatenate(
        over_batches(run, of_batch, steps=steps, modules=modules, displacements=True)
    )


def _leakage(
    row: Frame, column: Frame, masks: StepMasks | None, steps: Any, batch: CoreBatch
) -> torch.Tensor:
    """Share of the squared step norm on dropped directions, (T, M, side, since)."""
    import torch

    leakage = torch.full((*row.R.shape[:2], 2, 2), torch.nan, dtype=torch.float64)
    if masks is None:
        return leakage
    recorded = masks.has(steps)
    where = torch.from_numpy(recorded)
    dropped = ~torch.from_numpy(masks.at(steps[recorded], batch.modules["module"]))
    for side, frame in enumerate((row, column)):
        if frame.step is not None:
            squares = frame.step.coordinates[where].square().sum(-2)  # (T, M, r)
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


def plot(table: pd.DataFrame) -> Figure:
    """Draw the largest angles, the step norms and the leakage over steps."""
    from subspace_lab.figures.curves import thin
    from subspace_lab.figures.style import paper_style

    with paper_style():
        return _draw(thin(table))


def _draw(table: pd.DataFrame) -> Figure:
    import numpy as np

    from subspace_lab.figures.curves import (
        draw_curves,
        draw_names,
        draw_prediction,
        group_column,
        looks,
        sample_note,
    )
    from subspace_lab.figures.style import legend_below, new_figure, step_axis

    table = table.assign(degrees=np.degrees(table["max_angle"]))
    previous, start = (table[table["since"] == since] for since in SINCE)
    no_frame = ""
    if start.loc[start["side"] == "column", "max_angle"].isna().all():
        no_frame = "  (B starts at zero)"
    panels = [
        (previous, "degrees", "largest angle to the previous step", "degrees", "log"),
        (start, "degrees", f"largest angle to the start{no_frame}", "degrees", "linear"),
        (previous, "step_norm", "length of the step", "Frobenius norm", "log"),
    ]
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


def summarise(table: pd.DataFrame) -> Summary:
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
                "distance from the start": float(start["step_norm"].median()),
                **_leakage_of(leaks, (run, side)),
            }
    return found


def _leakage_of(leaks: pd.DataFrame, key: tuple[Any, str]) -> dict[str, float]:
    if key not in leaks.index:
        return {}
    row = leaks.loc[key]
    return {
        "leakage, second half of the steps": float(row["leakage"]),
        "expected": float(row["expected_leakage"]),
    }


@exit_code_2_on_user_error
def main() -> None:
    """Run the analysis from the command line."""
    run_analysis(analysis_parser("frame_drift", __doc__), compute, plot, summarise)


if __name__ == "__main__":
    main()
