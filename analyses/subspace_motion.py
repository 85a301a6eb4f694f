"""How far the subspace in which training moves turns from one choice of it to the next.

    python -m analyses.subspace_motion --run runs/lora runs/droplora runs/galore

Three methods restrict an update to a low-dimensional subspace, and each changes it in its own way
(column `source`):

    frame        LoRA: row(A) and col(B), from one optimizer step to the next
    mask         step masks: the kept rows of A, or columns of B, under two successive masks
    projection   GaLore: the leading singular directions of the gradient, from one refresh to the
                 next; only the side that it projects (rows where m >= n, else columns)

For each module and side, with the principal angles theta_i between the two subspaces of dimensions
k and k':

    phi          mean of cos^2 theta_i: 1, one contains the other; 0, orthogonal. For k = k' it is
                 the overlap ||P^T P'||_F^2 / k of arXiv 2502.05790, which reports that GaLore's
                 subspaces freeze: that it tends to 1
    turned       1 - phi, the mean of sin^2 theta_i, which is drawn
    max_angle    the largest angle, radians
    null_phi     the mean of phi for two random subspaces: r / n (rows) or r / m (columns), and for
                 masks that of two masks of one Gaussian frame, which share directions

A step of LoRA, a step of DropLoRA and a refresh of GaLore are different amounts of training: the
column `interval` says how many optimizer steps lie between the two subspaces. Of a run with
restarts a frame is compared with the one that its step began with: the redraw is not shown.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses import frame_drift, kit, subspace_angles
from subspace_lab.runs.projections import projection_steps
from subspace_lab.runs.run import Run

SOURCES = {"frame": "frame (LoRA)", "mask": "mask", "projection": "projection (GaLore)"}
SIDES = {"row": "row directions", "column": "column directions"}
KEYS = ["run", "step", "module", "layer", "projection", "side"]


def compute(run: Run, *, steps: kit.Steps = None, modules: kit.Modules = None) -> pd.DataFrame:
    """Compute the table of a run with recorded cores or projections.

    Returns:
        A row is (run, step, module, side, source). Columns run, step (at which the later subspace
        is in use; of masks, the one before), module, layer, projection, side, source (frame, mask,
        projection), interval (optimizer steps), angles (list, radians, ascending), phi, turned,
        max_angle (radians), null_phi, null_turned (1 - null_phi).

    Raises:
        UserError: if the run has neither cores nor projections.
    """
    kit.check_needs(run, kit.Needs.DISPLACEMENTS)
    parts = [_drift(run, steps, modules)]
    if run.mask_steps:
        masks = subspace_angles.compute(run, steps=steps, modules=modules)
        masks = masks[masks["space"].isin(SIDES)]
        masks = masks.assign(side=masks["space"].astype(str).astype("category"))
        parts.append(_motion(masks, "mask").assign(interval=1, null_phi=masks["null_phi"]))
    table = kit.concatenate(parts)
    return table.assign(null_turned=1 - table["null_phi"])


def _drift(run: Run, steps: kit.Steps, modules: kit.Modules) -> pd.DataFrame:
    """Make the rows of the frames, or of the projections of a run that has some."""
    table = frame_drift.compute(run, steps=steps, modules=modules)
    table = table[table["since"] == "previous"]
    sizes = run.modules.set_index("module")[["n", "m"]].reindex(table["module"].astype(str))
    length = np.where(table["side"] == "row", sizes["n"], sizes["m"])
    dimensions = table["angles"].map(len).to_numpy()
    refreshes = projection_steps(run.path)
    intervals = dict(zip(refreshes[1:], np.diff(refreshes).tolist(), strict=True))
    return _motion(table, "projection" if refreshes else "frame").assign(
        interval=table["step"].map(intervals) if refreshes else 1,
        null_phi=np.where(dimensions > 0, dimensions / length, np.nan),
    )


def _motion(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Keep the angles of a table to the previous subspace, and what they amount to."""
    labels = pd.Categorical([source] * len(table), categories=list(SOURCES))
    squares = (np.sin(angles) ** 2 for angles in table["angles"])
    turned = np.array([square.mean() if len(square) else np.nan for square in squares])
    return table[[*KEYS, "angles", "max_angle"]].assign(
        source=labels, phi=1 - turned, turned=turned
    )


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians over steps and modules by run, source and side."""
    columns = ["phi", "null_phi", "max_angle"]
    rows = table.dropna(subset=["phi"])
    return {
        f"{run}, {SOURCES[str(source)]}, {SIDES[str(side)]}": dict(of_one[columns].median())
        for (run, source, side), of_one in rows.groupby(["run", "source", "side"], observed=True)
    }


PANELS = [
    kit.Panel(
        "turned",
        title=title,
        by="source",
        labels=SOURCES,
        where={"side": side},
        unit="1 − φ",
        scale="log",
        expected="null_turned",
        expected_label="random subspaces",
    )
    for side, title in SIDES.items()
]

ANALYSIS = kit.Analysis(
    name="subspace_motion",
    description=__doc__,
    question="how far does the subspace in which training moves turn, in LoRA, DropLoRA, GaLore?",
    needs=kit.Needs.FACTORS | kit.Needs.DISPLACEMENTS,
    compute=compute,
    plot=kit.curves_over_steps(*PANELS, title="Motion of the trained subspace"),
    summarize=summarize,
    reading="Each curve is how much of the subspace that a step trains is new in the next one, "
    "1 − φ = mean sin² θ: 0 where nothing changes, near the dotted line where the next is drawn at "
    "random. LoRA's frame creeps, DropLoRA's masks jump inside it, and GaLore replaces its "
    "projection at each refresh.",
    position=45,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
