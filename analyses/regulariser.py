"""What rank masks penalize, over training: the regularizer and its distance from its minimum.

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

import numpy as np
import pandas as pd
import torch

from analyses import kit
from subspace_lab.runs.run import Run
from subspace_lab.theory import masked_moments
from subspace_lab.theory.regularizer import explicit_regularizer, nuclear_norm_bound


def compute(run: Run, *, steps: kit.Steps = None, modules: kit.Modules = None) -> pd.DataFrame:
    """Compute the regularizer of every core.

    Returns:
        A row is a run, step and module: `run, step, module, layer, projection, regularizer` (R),
        `minimum` (||dW||_*^2 / r), `balance_ratio` (R / ||dW||_F^2), `minimum_ratio`
        (minimum / ||dW||_F^2), `penalty` (Var dW_D, summed over entries, under the run's own mask
        law; nan without one), `masked` (||dW_D||_F^2 under the recorded mask of the next step; nan
        where there is none), `masked_mean` and `masked_std` (what its law predicts; the latter nan
        for exact-k masks). Ratios are nan where dW = 0.
    """
    law, masks = run.mask_law, kit.StepMasks(run)

    def of_batch(batch: kit.CoreBatch) -> pd.DataFrame:
        B, A = batch.core.column.R, batch.core.row.R.mT
        squared, norm = batch.core.scaling**2, batch.core.norm() ** 2
        norm = norm.masked_fill(norm == 0, torch.nan)
        R, minimum = squared * explicit_regularizer(B, A), squared * nuclear_norm_bound(B, A)
        columns = {
            "regularizer": R,
            "minimum": minimum,
            "balance_ratio": R / norm,
            "minimum_ratio": minimum / norm,
            **dict.fromkeys(("penalty", "masked", "masked_mean", "masked_std"), np.nan),
        }
        if law is not None and law.diagonal and law.constant:
            moments, H = law.gate_moments(B.shape[-1]), masked_moments.gram_product(B, A)
            gates = law.rescaled(masks.kept(batch.steps + 1, batch))
            columns |= {
                "penalty": squared * masked_moments.output_energy_variance(B, A, moments),
                "masked": squared * torch.einsum("tmi,tmij,tmj->tm", gates, H, gates),
                "masked_mean": squared * masked_moments.expected_output_energy(B, A, moments),
            }
            if law.binary and law.independent_gates:
                q = law.keep_prob
                variance = masked_moments.variance_of_output_energy(B, A, keep_prob=q)
                columns["masked_std"] = squared * law.factor**2 * variance.sqrt()
        return kit.grid_table(run, batch, columns)

    return kit.concatenate(kit.over_batches(run, of_batch, steps=steps, modules=modules))


def masked_ratio(table: pd.DataFrame) -> pd.DataFrame:
    """Give squared norms under recorded masks over their expectation, summed over modules.

    Returns:
        A row per run or configuration and step: ratio, expected (1), and the ends low and high of
        the interval where chance leaves 95 % of the steps.
    """
    known = table[table["masked_mean"] > 0].dropna(subset="masked")
    known = known.assign(variance=known["masked_std"] ** 2)
    group, columns = kit.group_column(table), ["masked", "masked_mean", "variance"]
    of_step = known.groupby([group, "step"], observed=True)[columns]
    sums = of_step.sum(min_count=1).reset_index()
    half = 1.96 * sums["variance"] ** 0.5 / sums["masked_mean"]
    ratio = sums["masked"] / sums["masked_mean"]
    return sums.assign(run=sums[group], ratio=ratio, expected=1.0, low=1 - half, high=1 + half)


SUMMARY = {
    "R": "regularizer",
    "minimum R": "minimum",
    "balance ratio": "balance_ratio",
    "minimum ratio": "minimum_ratio",
}
R, MINIMUM = "R", "minimum R for this ΔW"
plot = kit.curves_over_steps(
    kit.Panel(
        {"regularizer": R, "minimum": MINIMUM},
        title="regularizer R = γ² Σ ‖bᵢ‖² ‖aᵢ‖²", unit="Frobenius norm²", limits=(0, None)
    ),
    kit.Panel(
        {"balance_ratio": R, "minimum_ratio": MINIMUM},
        title="relative to the update: balance ratio", unit="R / ‖ΔW‖²", limits=(0, None)
    ),
    kit.Panel(
        "ratio", rows=masked_ratio,
        title="‖ΔW‖² under the recorded masks, over its mean", unit="ratio",
        expected="expected", expected_band=("low", "high"), expected_label="mean over masks (T5)"
    ),
    title="Regularizer",
)  # fmt: skip

modules = kit.module_map(
    "balance_ratio", title="Balance ratio R / ‖ΔW‖² at the last step", unit="R / ‖ΔW‖²"
)

ANALYSIS = kit.Analysis(
    name="regulariser",
    description=__doc__,
    question="what do masks penalize, and does training reduce it?",
    compute=compute,
    plot={"regulariser": plot, "regulariser_modules": modules},
    summarize=kit.medians_at_last_step(**SUMMARY),
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
