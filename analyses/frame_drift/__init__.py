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
orthonormal frame has no step norm. analyses.subspace_motion draws all three kinds of motion. After
a restart the previous frame is the redrawn one; the redraw shows in the angle to the start.

Under plain SGD a dropped direction does not move: leakage 0. AdamW moves it by its momentum; the
dotted line is the prediction for stationary gradients without weight decay (T16),
beta_1^2 (1 - keep_prob), with beta_1 = 0.9: 0.405 at keep_prob 0.5. (The share of the mean
displacement is beta_1 (1 - keep_prob).) The figure and the summary give the ratio of sums over all
modules, which the prediction is about; the table's leakage is that of one module, and the mean of
such ratios lies 0.01 to 0.03 above it at rank 8. Rates of drift scale with the learning rate:
compare runs at equal update norm.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from analyses import kit
from analyses.frame_drift.projections import projection_drift
from subspace_lab import linalg
from subspace_lab.linalg.rank_core import Since
from subspace_lab.runs.projections import projection_steps
from subspace_lab.runs.run import Run
from subspace_lab.theory.adam import squared_leakage

SIDES = {"row": "row space of A", "column": "column space of B"}
SINCE: tuple[Since, ...] = ("previous", "start")


def compute(run: Run, *, steps: kit.Steps = None, modules: kit.Modules = None) -> pd.DataFrame:
    """Compute the table of a run with recorded cores, without step 0.

    Returns:
        A row is (run, step, module, side, since). Columns run, step (of GaLore one of a refresh),
        module, layer, projection, side, since (previous, start); angles (list, radians, ascending;
        empty where the earlier frame was still zero), max_angle (radians); step_norm; leakage
        (nan without step masks and since the start) and expected_leakage (for AdamW, else nan).

    Raises:
        UserError: if no displacements were recorded.
    """
    kit.check_needs(run, kit.Needs.DISPLACEMENTS)
    if projection_steps(run.path):
        drift = projection_drift(run, steps=steps, modules=modules)
        return drift.assign(step_norm=np.nan, leakage=np.nan, expected_leakage=np.nan)
    moved = [step for step in (run.steps if steps is None else steps) if step > 0]
    masks, law = kit.StepMasks(run), run.mask_law
    expected = np.nan
    if law is not None and law.plain and run.mask_steps and run.config.get("optimizer") == "adamw":
        expected = squared_leakage(keep_prob=law.keep_prob)

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        frames = (batch.core.row, batch.core.column)
        pairs = [(frame, since) for frame in frames for since in SINCE]
        shape = (len(SIDES), len(SINCE))

        def stacked(values: Iterable[torch.Tensor]) -> torch.Tensor:
            """Stack values of pairs (T, M, ...) to (T, M, side, since, ...)."""
            together: torch.Tensor = torch.stack(list(values), dim=2).unflatten(2, shape)
            return together

        angles = stacked(linalg.principal_angles(X.now(), X.before(since)) for X, since in pairs)
        largest = angles.nan_to_num(-1.0).amax(-1)
        norms = stacked(X.displacement(since).norm for X, since in pairs)
        squares = [X.displacement("previous").coordinates.square().sum(-2) for X in frames]
        dropped = 1 - masks.kept(batch.steps, batch)
        shares = [(square * dropped).sum(-1) / square.sum(-1) for square in squares]
        leakage = torch.full_like(norms, torch.nan)  # since the start there is none
        leakage[..., 0] = torch.stack(shares, dim=-1)
        columns = {
            "angles": kit.ragged(angles),
            "max_angle": largest.where(largest >= 0, torch.nan),
            "step_norm": norms,
            "leakage": leakage,
            "expected_leakage": [expected, np.nan],
        }
        return kit.grid_table(run, batch, columns, axes={"side": list(SIDES), "since": SINCE})

    return kit.concatenate(
        kit.over_batches(run, of_batch, steps=moved, modules=modules, displacements=True)
    )


def pooled_leakage(table: pd.DataFrame, by: Iterable[str]) -> pd.DataFrame:
    """Give the leakage of all rows of a group together: the ratio of sums, not a mean of ratios.

    A row per group that has leakage: `by`, leakage, and the mean expected_leakage. A group is of
    one `since`.
    """
    known = table.dropna(subset=["leakage"])
    squares = known["step_norm"] ** 2
    groups = known.assign(total=squares, masked=known["leakage"] * squares).groupby(
        list(by), observed=True
    )
    sums = groups.agg({"masked": "sum", "total": "sum", "expected_leakage": "mean"})
    return sums.assign(leakage=sums["masked"] / sums["total"]).reset_index()


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians over modules of the drift, and the leakage of the second half of the steps.

    The early steps are left out of the leakage: the momentum starts at zero, so that nothing leaks
    in the first, and the longest steps would outweigh the stationary ones.
    """
    summary = {}
    for (run, side), rows in table.groupby(["run", "side"], observed=True):
        last = table.loc[table["run"] == run, "step"].max()
        previous, start = (rows[rows["since"] == since] for since in SINCE)
        at_end = start[start["step"] == last]
        numbers = {
            "largest angle to the start (rad)": at_end["max_angle"].median(),
            "to the previous step (rad)": previous["max_angle"].median(),
        }
        if rows["step_norm"].notna().any():  # projections are orthonormal, and have none
            numbers["distance from the start"] = at_end["step_norm"].median()
        for late in pooled_leakage(rows[rows["step"] > last / 2], ["run"]).itertuples():
            numbers["leakage, second half of the steps"] = late.leakage
            numbers["expected"] = late.expected_leakage
        summary[f"{run}, {SIDES[str(side)]}"] = {name: float(n) for name, n in numbers.items()}
    return summary


def _leakage_by_step(table: pd.DataFrame) -> pd.DataFrame:
    return pooled_leakage(table, dict.fromkeys(["run", kit.group_column(table), "step", "side"]))


def turns_of_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Give the largest angles of row(A) to the start, in degrees."""
    rows = table[(table["since"] == "start") & (table["side"] == "row")]
    return rows.assign(max_angle=np.degrees(rows["max_angle"]))


by_side = functools.partial(kit.Panel, by="side", labels=SIDES)
to_previous = functools.partial(by_side, where={"since": "previous"})

plot = kit.curves_over_steps(
    to_previous(
        "max_angle",
        title="largest angle to the previous step", unit="degrees", degrees=True, scale="log"
    ),
    by_side(
        "max_angle", where={"since": "start"}, title="largest angle to a start that is not zero",
        unit="degrees", degrees=True, limits=(0, None)
    ),
    to_previous("step_norm", title="length of the step", unit="Frobenius norm", scale="log"),
    to_previous(
        "leakage", title="step on dropped directions, all modules", unit="share of ‖·‖²",
        rows=_leakage_by_step, limits=(0, None),
        expected="expected_leakage", expected_label="β₁² (1 − keep_prob)"
    ),
    title="Frame drift",
)  # fmt: skip

modules = kit.module_map(
    "max_angle", title="Turn of row(A) since the start, at the last step", unit="largest angle (°)",
    name="degrees_since_start", rows=turns_of_rows
)  # fmt: skip

ANALYSIS = kit.Analysis(
    name="frame_drift",
    description=__doc__,
    question="how fast do the directions themselves turn, and what leaks past the mask?",
    needs=kit.Needs.FACTORS | kit.Needs.DISPLACEMENTS,
    compute=compute,
    plot={"frame_drift": plot, "frame_drift_modules": modules},
    summarize=summarize,
    reading="The angle between the row space of A (or the column space of B) now and one step ago, "
    "or at the start, all directions counted. This is the only way in which new directions enter. "
    "<i>Leakage</i> is the share of a step's squared length that lies on masked directions: "
    "their gradient is exactly zero, but Adam's momentum moves them all the same.",
    position=40,
)
