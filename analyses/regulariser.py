"""What rank masks penalise, over training: the regulariser, and its distance from its minimum.

    python -m analyses.regulariser --run RUN [--run RUN2 ...]

For inputs of unit second moment the expected squared loss under Bernoulli rank masks of keep_prob q
and rescale s is the loss of the mean update s q dW plus s^2 q (1 - q) times (T7)

    R = gamma^2 sum_i ||b_i||^2 ||a_i||^2,        dW = gamma B A:

(1 - q) / q times R with dropout's rescale s = 1/q, and q (1 - q) times R without one (Equation 2,
s = 1). R depends on the gauge: the same dW has R >= ||dW||_*^2 / r, attained where all rank
directions are equally long and balanced. R / ||dW||_F^2 is the balance ratio: 1 if the terms
b_i a_i^T are orthogonal, more if they cancel. If masks regularise as theory says, masked runs come
closer to the minimum of R than plain LoRA does. Exact for one linear layer under a squared loss;
elsewhere R is a local picture (`analyses.gate_expansion` measures how good).

What masks do to the size of the update is exact in any network: E||dW_D||_F^2 is ||E dW_D||_F^2
plus s^2 q (1 - q) R, the column `penalty`. (Masks of exactly k directions have a penalty of their
own, see `theory.masked_moments.output_energy_variance`.) The last panel holds ||dW_D||_F^2 under
the mask that the run drew next against it, all modules of a step together; the band is where chance
leaves 95 % of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.figures.curves import (
    Looks,
    draw_curves,
    draw_names,
    group_column,
    looks,
    sample_note,
    thin,
)
from subspace_lab.figures.style import PREDICTION, legend_below, new_figure, step_axis
from subspace_lab.runs.run import Run
from subspace_lab.theory import masked_moments
from subspace_lab.theory.mask_law import MaskLaw
from subspace_lab.theory.regularizer import explicit_regularizer, nuclear_norm_bound

LABELS = {"regulariser": "R", "least": "least R of the same ΔW"}


def compute(
    run: Run, *, steps: Sequence[int] | None = None, modules: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compute the regulariser of every core.

    Args:
        run: a run, or adapters of another tool.
        steps: only these steps; None: all.
        modules: only these modules; None: all.

    Returns:
        A row is a run, step and module: `run, step, module, layer, projection, regulariser` (R),
        `least` (||dW||_*^2 / r), `balance_ratio` (R / ||dW||_F^2), `least_ratio`
        (least / ||dW||_F^2), `penalty` (Var dW_D, summed over entries, under the run's own mask
        law; nan without one), `masked` (||dW_D||_F^2 under the recorded mask of the next step; nan
        where there is none), `masked_mean` and `masked_std` (what its law predicts; the latter nan
        for exact-k masks). Ratios are nan where dW = 0.
    """
    law = run.mask_law
    masks = kit.StepMasks(run) if law is not None and len(run.mask_steps) else None

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        B, A = batch.core.column.R, batch.core.row.R.mT
        squared = batch.core.scaling**2
        norm = (batch.core.norm() ** 2).masked_fill(batch.core.norm() == 0, float("nan"))
        R, least = squared * explicit_regularizer(B, A), squared * nuclear_norm_bound(B, A)
        columns = {
            "regulariser": R,
            "least": least,
            "balance_ratio": R / norm,
            "least_ratio": least / norm,
        }
        return kit.grid_table(run, batch, columns | _under_masks(batch, law, masks))

    return kit.concatenate(kit.over_batches(run, of_batch, steps=steps, modules=modules))


def _under_masks(
    batch: kit.CoreBatch, law: MaskLaw | None, masks: kit.StepMasks | None
) -> dict[str, torch.Tensor]:
    """Make the columns about masked updates, (T, M)."""
    B, A = batch.core.column.R, batch.core.row.R.mT
    names = ("penalty", "masked", "masked_mean", "masked_std")
    columns = {name: torch.full(B.shape[:-2], torch.nan, dtype=torch.float64) for name in names}
    if law is not None and law.diagonal and law.constant:
        moments, squared = law.gate_moments(B.shape[-1]), batch.core.scaling**2
        columns["penalty"] = squared * masked_moments.output_energy_variance(B, A, moments)
        columns["masked_mean"] = squared * masked_moments.expected_output_energy(B, A, moments)
        if law.binary and law.independent_gates:
            variance = masked_moments.variance_of_output_energy(B, A, keep_prob=law.keep_prob)
            columns["masked_std"] = squared * law.factor**2 * variance.sqrt()
        if masks is not None:
            known = masks.has(batch.steps + 1)
            kept = torch.from_numpy(masks.at(batch.steps[known] + 1, batch.modules["module"]))
            d = law.rescaled(kept).double()
            H = masked_moments.gram_product(B, A)[known]
            columns["masked"][known] = squared[known] * torch.einsum("tmi,tmij,tmj->tm", d, H, d)
    return columns


def draw(table: pd.DataFrame) -> Figure:
    """Draw R and its least over steps, both relative to the update, and masked norms."""
    table = thin(table)
    look = looks(table, LABELS)
    masked = table[table["masked_mean"] > 0].dropna(subset="masked")
    figure, axes = new_figure(2 if masked.empty else 3, row_height=1.3)
    value, ratio = axes[:2, 0]
    shown = (("regulariser", "balance_ratio"), ("least", "least_ratio"))
    for name, relative in shown:
        draw_curves(value, table, name, name=name, looks=look)
        draw_curves(ratio, table, relative, name=name, looks=look)
    draw_names(value, table, LABELS)
    value.set(title="regulariser R = γ² Σ ‖bᵢ‖² ‖aᵢ‖²", ylabel="Frobenius norm²")
    value.set_ylim(bottom=0)
    ratio.set(title="relative to the update: balance ratio", ylabel="R / ‖ΔW‖²")
    ratio.set_ylim(bottom=0)
    if not masked.empty:
        _draw_masked(axes[2, 0], masked, look)
    step_axis(axes[-1, 0])
    figure.suptitle(f"Regulariser\n{sample_note(table)}", fontsize="medium")
    legend_below(figure, axes[:, 0])

    return figure


def _draw_masked(axis: Axes, table: pd.DataFrame, look: Looks) -> None:
    """Draw squared norms under recorded masks over their expectation, summed over modules."""
    axis.axhline(1, label="mean over masks", **PREDICTION)
    table = table.assign(variance=table["masked_std"] ** 2)
    for group, rows in table.groupby(group_column(table), observed=True, sort=False):
        sums = rows.groupby("step")[["masked", "masked_mean", "variance"]].sum(min_count=1)
        colour = look[str(group), "regulariser"]["color"]
        axis.plot(sums.index, sums["masked"] / sums["masked_mean"], color=colour)
        half = 1.96 * sums["variance"] ** 0.5 / sums["masked_mean"]
        axis.fill_between(sums.index, 1 - half, 1 + half, color=colour, alpha=0.12, linewidth=0)
    axis.set(title="‖ΔW‖² under the recorded masks, over its mean", ylabel="ratio")


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians over modules at the last step."""
    found: dict[str, dict[str, float]] = {}
    for run, rows in table.groupby("run", observed=True):
        last = rows[rows["step"] == rows["step"].max()]
        found[f"{run}, step {last['step'].iloc[0]}"] = {
            "R": float(last["regulariser"].median()),
            "least R": float(last["least"].median()),
            "balance ratio": float(last["balance_ratio"].median()),
            "least": float(last["least_ratio"].median()),
        }
    return found


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="regulariser",
    description=__doc__,
    question="what do masks penalise, and does training reduce it?",
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="On average over masks, a linear layer is trained with a penalty on R, the sum over "
    "rank directions of ‖bᵢ‖²·‖aᵢ‖². The same ΔW can be written with larger or smaller R: dashed "
    "is the minimum, ‖ΔW‖<sub>*</sub>²/r, where all directions are alike. Masked runs are "
    "predicted to come closer to it than plain LoRA. Middle: both relative to the size of the "
    "update. Bottom: the squared size of the update under the mask that was drawn next, over its "
    "mean over all masks, of which R is a part; chance leaves 95 % of the steps inside the band.",
    position=50,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
