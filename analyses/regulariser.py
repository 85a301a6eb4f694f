"""What rank masks penalise, over training: the regulariser, and how far it is from its least.

    python -m analyses.regulariser --run RUN [--run RUN2 ...]

For inputs of unit second moment the expected squared loss under rank masks is the loss of the mean
update plus (1 - q) / q times (T7, rescaled Bernoulli masks of keep_prob q)

    R = gamma^2 sum_i ||b_i||^2 ||a_i||^2,        dW = gamma B A,

which depends on the gauge: the same dW has R >= ||dW||_*^2 / r, attained where all rank directions
are equally long and balanced. R / ||dW||_F^2 is the balance ratio: 1 if the terms b_i a_i^T are
orthogonal, more if they cancel. If masks regularise as theory says, masked runs come closer to the
least R than plain LoRA does. Exact for one linear layer under a squared loss; elsewhere R is a
local picture (`analyses.gate_expansion` measures how good).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyses._batches import map_cores
from analyses._command import Summary, analysis_parser, run_analysis
from analyses._mask_laws import law_of, moments_of
from analyses._tables import concatenate, grid_columns
from subspace_lab.errors import exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from subspace_lab.recording.run import CoreBatch, Run

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
        law; nan without one). Ratios are nan where dW = 0.
    """
    import numpy as np
    import pandas as pd

    from subspace_lab.theory.masked_moments import output_energy_variance
    from subspace_lab.theory.regulariser import explicit_regulariser, nuclear_norm_bound

    law = law_of(run)

    def of_batch(batch: CoreBatch) -> pd.DataFrame:
        B, A = batch.core.column.R, batch.core.row.R.mT
        squared = batch.core.scaling**2
        norm = (batch.core.norm() ** 2).masked_fill(batch.core.norm() == 0, float("nan"))
        R, least = squared * explicit_regulariser(B, A), squared * nuclear_norm_bound(B, A)
        columns = grid_columns(run, batch)
        columns["regulariser"], columns["least"] = R.flatten().numpy(), least.flatten().numpy()
        columns["balance_ratio"] = (R / norm).flatten().numpy()
        columns["least_ratio"] = (least / norm).flatten().numpy()
        columns["penalty"] = np.nan
        if law is not None:
            moments = moments_of(law, B.shape[-1])
            penalty = squared * output_energy_variance(B, A, moments, rescale=law.factor)
            columns["penalty"] = penalty.flatten().numpy()
        return pd.DataFrame(columns)

    return concatenate(map_cores(run, of_batch, steps=steps, modules=modules))


def plot(table: pd.DataFrame) -> Figure:
    """Draw R and its least over steps, and both relative to the update."""
    from subspace_lab.figures.curves import draw_curves, draw_names, looks, sample_note, thin
    from subspace_lab.figures.style import legend_below, new_figure, paper_style, step_axis

    with paper_style():
        table = thin(table)
        look = looks(table, LABELS)
        figure, axes = new_figure(2, row_height=1.3)
        value, ratio = axes[:, 0]
        shown = (("regulariser", "balance_ratio"), ("least", "least_ratio"))
        for name, relative in shown:
            draw_curves(value, table, name, name=name, looks=look)
            draw_curves(ratio, table, relative, name=name, looks=look)
        draw_names(value, table, LABELS)
        value.set(title="regulariser R = γ² Σ ‖bᵢ‖² ‖aᵢ‖²", ylabel="Frobenius norm²")
        value.set_ylim(bottom=0)
        ratio.set(title="relative to the update: balance ratio", ylabel="R / ‖ΔW‖²")
        ratio.set_ylim(bottom=0)
        step_axis(ratio)
        figure.suptitle(f"Regulariser\n{sample_note(table)}", fontsize="medium")
        legend_below(figure, axes[:, 0])
    return figure


def summarise(table: pd.DataFrame) -> Summary:
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


@exit_code_2_on_user_error
def main() -> None:
    """Run the analysis from the command line."""
    run_analysis(analysis_parser("regulariser", __doc__), compute, plot, summarise)


if __name__ == "__main__":
    main()
