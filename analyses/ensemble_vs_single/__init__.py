"""Is the full-rank model an ensemble of its masked subnetworks?

    python -m analyses.ensemble_vs_single --run RUN [--run RUN2 ...] [--masks 8] [--examples 64]

Evaluates one trained adapter in six ways on test examples, by teacher forcing:

- base: the base model without the adapter;
- full: the full-rank model, as it is used at inference;
- scaled: the full-rank update times an inference scale;
- single: one rank mask on, rescaled as in training (several draws);
- arithmetic: the mean of the single masks' probabilities;
- geometric: their normalized geometric mean.

The paper likens full-rank inference to an ensemble. For an adapter on the logits with rescaled
masks, full and geometric agree exactly; in a deep network they need not, and what single masks
lose against the geometric ensemble is the Jensen gap, which theory gives without labels. The masks
are drawn anew, one for all tokens, with the run's keep_prob and rescale (0.5, rescaled, where the
run was not masked, such as LoRA's). Loss is in nats per response token; accuracy is the share of
examples whose response greedy decoding would reproduce exactly. The model computes in fp32 on every
machine: the cost of masks and ensembles is often less than the rounding of bf16.

An ensemble's predictions are less sure, which alone lowers the loss of an overconfident model. So
each predictor is also scored at a temperature of its own: the validated one, of the lowest loss on
validation examples (`--validation`, of the task, none of them trained on), and the oracle, of the
lowest loss on the test examples themselves, a bound. What an ensemble is still ahead of the full
update at their validated temperatures, `difference`, is not calibration; its 95 % interval is over
examples. The expected calibration error (ECE) has 15 bins of equal width, and is of the token
predictions under teacher forcing, as the Brier score is.

Masks and scales act on the B A that was trained. PiSSA and MiLoRA train it on the residual base,
without the initial B A: there scale 0 is that residual base, and `base`, the original one, is not
a point of the scale curve.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pandas as pd

from analyses import kit
from analyses.ensemble_vs_single import calibration
from analyses.ensemble_vs_single.figure import draw, figure_table, scale_curve
from analyses.ensemble_vs_single.predictors import predictions, predictors
from analyses.ensemble_vs_single.scoring import score_predictors
from subspace_lab.errors import UserError, check_counts
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples
from subspace_lab.models import Precision
from subspace_lab.runs.run import Run
from subspace_lab.tasks.examples import Example
from subspace_lab.theory.inference_scale import optimal_inference_scale
from subspace_lab.theory.mask_law import DEFAULT_LAW


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    masks: int = 8,
    examples: int = 64,
    validation: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    dtype: Precision = "fp32",
) -> pd.DataFrame:
    """Evaluate the predictors of `steps` (None: the last); `modules` must be None.

    A row is a run, step and predictor: `run, step`, the columns of `scoring.score_predictors`,
    `split` (which examples), `predicted_scale` (T9's optimal inference scale for white inputs, one
    number per run and step; nan without masks in training), `keep_prob`, `dtype`.

    Raises:
        UserError: if the run has no adapter to load, or an argument is out of range.
    """
    check_counts(masks=masks, examples=examples, batch_size=batch_size)
    check_counts(0, seed=seed, validation=validation)
    if modules is not None:
        raise UserError("ensemble_vs_single evaluates whole models: omit `modules`")
    law = replace((run.mask_law or DEFAULT_LAW).one_draw(), granularity="step", seed=seed)
    tested = evaluation_examples(run, split="test", size=examples)
    validated = _validation_examples(run, validation)

    def of_snapshot(trained: TrainedModel) -> pd.DataFrame:
        predict = functools.partial(
            predictions,
            trained,
            contexts=predictors(run, trained, law=law, masks=masks),
            batch_size=batch_size,
            description=f"ensembles of {run.name}",
        )
        return score_predictors(predict, tested, validated).assign(
            split="test",
            predicted_scale=predicted_scale(run, trained.step),
            keep_prob=run.mask_law.keep_prob if run.mask_law else float("nan"),
        )

    return kit.over_snapshots(run, of_snapshot, steps=steps, dtype=dtype)


def _validation_examples(run: Run, size: int) -> list[Example]:
    """Load the validation examples that choose temperatures; none where the run trained on them."""
    if not size or "validation" in run.config.get("train_split", "train"):
        return []
    return evaluation_examples(run, split="validation", size=size)


def predicted_scale(run: Run, step: int) -> float:
    """Give the inference scale that theory (T9) predicts for the mask law and white inputs.

    c* = s [q + (1 - q) rho], rho = sum ||b_i||^2 ||a_i||^2 / ||B A||^2, summed over modules;
    nan for a run without masks, or of a law that the formula does not cover. Exact for one linear
    layer with a squared loss at a stationary point; under cross-entropy even the side of 1 is open
    (`theory.inference_scale`), and on the standard bench the best scale is below 1.
    """
    if (law := run.mask_law) is None or not law.plain:
        return float("nan")
    products = updates = 0.0
    for batch in run.cores(steps=[step], displacements=False):
        norms = batch.core.column.norms * batch.core.row.norms * batch.core.scaling[..., None]
        products += float(norms.square().sum())
        updates += float(batch.core.norm().square().sum())
    if updates == 0:
        return float("nan")
    return optimal_inference_scale(products / updates, keep_prob=law.keep_prob, rescale=law.factor)


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's losses, also calibrated, and the best of the scales beside the predicted."""
    summary: dict[str, str] = {}
    for (run, step), rows in table.groupby(["run", "step"], sort=False):
        shown = rows[~rows["predictor"].isin(["scaled", "single"])].set_index("predictor")
        for column, title in TITLES.items():
            if shown[column].notna().any():
                values = ", ".join(f"{name} {x:.4g}" for name, x in shown[column].items())
                summary[f"{run}, step {step}, {title}"] = values
        curve = scale_curve(rows)
        best = f"{curve['scale'].iloc[curve['loss'].argmin()]:.3g}"
        if pd.notna(predicted := rows["predicted_scale"].iloc[0]):
            best += f" (predicted {predicted:.3g})"
        summary[f"{run}, step {step}, best scale of the grid"] = best
    return summary


TITLES = {
    "loss": "loss (nats/token)",
    "calibrated_loss": "loss at the validated temperature",
    "ece": "expected calibration error",
}
plot = kit.Plot(draw, figure_table)

ANALYSIS = kit.Analysis(
    name="ensemble_vs_single",
    description=__doc__,
    question="is the full-rank model an ensemble of its masked parts?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot={
        "ensemble_vs_single": plot,
        "calibration": kit.Plot(calibration.draw, calibration.figure_table),
    },
    summarize=summarize,
    reading="Top: loss on held-out examples when the update is scaled by c at inference (c = 1 is "
    "the usual choice, c = 0 is the base). A minimum beyond 1 says that masks shrank the "
    "update; dotted marks: the scale that theory predicts for a linear layer. Middle: how much "
    "single masks and two kinds of mask ensemble lose against the full model; the dark bar is "
    "an identity of theory (geometric ensemble plus Jensen gap) and must pass through the "
    "single masks' mean. Bottom: exact match of each. The second figure is the expected "
    "calibration error of each as it is (hollow) and at the temperature that validation examples "
    "choose, below 1 where a model is not sure enough.",
    options={
        "masks": kit.option(8, "masks drawn"),
        "examples": kit.option(64, "maximum number of test examples"),
        "validation": kit.option(
            64,
            "maximum number of validation examples, which choose temperatures; 0: no temperatures",
        ),
        "batch_size": kit.option(16, "examples in one forward pass"),
        "seed": kit.option(0, "seed of the masks"),
        "dtype": kit.option("fp32", "what the model computes in", choices=("fp32", "bf16")),
    },
    position=70,
)
