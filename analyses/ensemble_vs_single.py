"""Is the full-rank model an ensemble of its masked subnetworks?

    python -m analyses.ensemble_vs_single --run RUN [--run RUN2 ...] [--masks 8] [--examples 64]

Evaluates one trained adapter in six ways on the rows of the run's eval_split (test rows where it is
none), by teacher forcing:

- base: the base model without the adapter;
- full: the full-rank model, as it is used at inference;
- scaled: the full-rank update times an inference scale;
- single: one rank mask on, rescaled as in training (several draws);
- arithmetic: the mean of the single masks' probabilities;
- geometric: the normalised geometric mean of the single masks' probabilities.

The paper likens full-rank inference to an ensemble. For an adapter on the logits with rescaled
masks, full and geometric agree exactly; in a deep network they need not, and what single masks
lose against the geometric ensemble is the Jensen gap, which theory gives without labels. The masks
are drawn anew, one for all tokens, with the run's keep_prob and rescale (0.5, rescaled, where the
run was not masked). Loss is in nats per response token; accuracy is the share of rows that greedy
decoding would reproduce exactly. The model computes in fp32 on every machine: what masks and
ensembles cost is often less than the rounding of bf16.

Masks and scales act on the B A that was trained. PiSSA and MiLoRA train it on what is left of the
base without the initial B A: there scale 0 is that residual base, and `base`, the original one,
is no point of the scale curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.errors import UserError
from subspace_lab.figures.style import MARKERS, PALETTE, PREDICTION, legend_below, new_figure
from subspace_lab.models import Precision
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_interval
from subspace_lab.theory.inference_scale import optimal_inference_scale
from subspace_lab.trained import evaluation_examples, load_trained

COSTS = ("single", "geometric", "arithmetic")
SHOWN = ("base", "full", "single", "geometric", "arithmetic")


def compute(
    run: Run,
    *,
    steps: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    masks: int = 8,
    examples: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    dtype: Precision = "fp32",
) -> pd.DataFrame:
    """Evaluate the predictors.

    A row is a run, step and predictor: `run, step, predictor, masks` (how many are in it), `scale`
    (of B A; nan for the base of PiSSA and MiLoRA), `draw` (which mask, else -1), `loss` (nats per
    response token), `accuracy`, `examples`, `split` (which rows), `jensen_gap`
    (nats per token, of the ensemble rows: E loss of single masks minus geometric, from the
    predictions alone), `predicted_scale` (T9's optimal inference scale for white inputs, one number
    per run and step; nan without masks in training), `keep_prob`, `dtype` (what the model computed
    in).

    Args:
        run: the run.
        steps: which snapshots; None: the last.
        modules: must be None: predictions come from the whole model.
        masks: masks drawn.
        examples: rows used at most.
        batch_size: rows in one forward pass.
        seed: seed of the drawn masks.
        dtype: what the model computes in.

    Raises:
        UserError: if the run has no adapter to load, or an argument is out of range.
    """
    if min(masks, examples, batch_size) < 1 or seed < 0:
        raise UserError("--masks, --examples and --batch_size must be at least 1, --seed 0")
    if modules is not None:
        raise UserError("ensemble_vs_single evaluates whole models: leave --modules out")
    chosen = [None] if steps is None else list(steps)
    return pd.concat(
        [_at_step(run, step, masks, examples, batch_size, seed, dtype) for step in chosen],
        ignore_index=True,
    )


def _at_step(
    run: Run,
    step: int | None,
    masks: int,
    examples: int,
    batch_size: int,
    seed: int,
    dtype: Precision,
) -> pd.DataFrame:
    from analyses._mask_ensembles import evaluate  # imports peft

    rows = evaluation_examples(run, size=examples)
    trained = load_trained(run, step=step, dtype=dtype)
    tallies = evaluate(run, trained, rows, masks=masks, batch_size=batch_size, seed=seed)
    predicted = predicted_scale(run, trained.step)
    return pd.DataFrame(
        {
            "run": run.name,
            "step": trained.step,
            "predictor": predictor.name,
            "masks": predictor.masks,
            "scale": predictor.scale,
            "draw": predictor.draw,
            "loss": tally.nats / tally.tokens,
            "accuracy": sum(tally.rows) / len(tally.rows),
            "examples": len(tally.rows),
            "split": run.evaluated_split,
            "jensen_gap": tally.jensen_gap / tally.tokens if predictor.masks > 1 else float("nan"),
            "predicted_scale": predicted,
            "keep_prob": run.mask_law.keep_prob if run.mask_law else float("nan"),
            "dtype": trained.dtype,
        }
        for predictor, tally in tallies.items()
    )


def predicted_scale(run: Run, step: int) -> float:
    """Give the inference scale that theory (T9) predicts for the mask law and white inputs.

    c* = s [q + (1 - q) rho], rho = sum ||b_i||^2 ||a_i||^2 / ||B A||^2, summed over modules;
    nan for a run without masks, or of a law that the formula does not cover. Exact for one linear
    layer with squared loss, indicative here.
    """
    law = run.mask_law
    if law is None or not law.plain:
        return float("nan")
    products = updates = 0.0
    for batch in run.cores(steps=[step], displacements=False):
        norms = batch.core.column.norms * batch.core.row.norms * batch.core.scaling[..., None]
        products += float(norms.square().sum())
        updates += float(batch.core.norm().square().sum())
    if updates == 0:
        return float("nan")
    return optimal_inference_scale(products / updates, keep_prob=law.keep_prob, rescale=law.factor)


def draw(table: pd.DataFrame) -> Figure:
    """Draw loss over inference scale, and what masks and ensembles cost against the full model."""
    table = table[table["step"] == table.groupby("run")["step"].transform("max")]
    runs = list(dict.fromkeys(table["run"]))
    figure, axes = new_figure(3, row_height=1.35, share_x=False)
    if table["predicted_scale"].notna().any():
        axes[0, 0].plot([], [], label="predicted c* (T9)", **PREDICTION)
    for i, run in enumerate(runs):
        rows = table[table["run"] == run]
        _draw_scales(axes[0, 0], rows, i)
        _draw_costs(axes[1, 0], rows, i, len(runs))
        _draw_accuracies(axes[2, 0], rows, i, len(runs))
    axes[0, 0].set_xlabel("inference scale c of the update")
    axes[0, 0].set_ylabel("loss (nats/token)")
    axes[0, 0].axvline(1.0, color="0.8", linewidth=0.6, zorder=0)
    axes[1, 0].axhline(0.0, color="0.8", linewidth=0.6, zorder=0)
    axes[1, 0].set_ylabel("loss − full\n(nats/token)")
    axes[1, 0].set_xticks(range(len(COSTS)), COSTS)
    axes[1, 0].set_xlim(-0.5, len(COSTS) - 0.5)
    axes[2, 0].set_ylabel("exact match")
    axes[2, 0].set_xticks(range(len(SHOWN)), SHOWN)
    axes[2, 0].set_xlim(-0.5, len(SHOWN) - 0.5)
    axes[2, 0].set_ylim(0, 1)
    count, dtype = int(table["masks"].max()), table["dtype"].iloc[0]
    masks = f"{count} mask{'s' * (count != 1)}"
    figure.suptitle(
        f"Mask ensembles\n{kit.rows_note(table)}, {masks}, {dtype}; bars: 95 % (Wilson)",
        fontsize="medium",
    )
    legend_below(figure, axes[:2, 0], columns=2)
    return figure


def _style(i: int) -> dict[str, Any]:
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}


def _scale_curve(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the predictors that differ in the inference scale only, in its order."""
    curve = rows[rows["predictor"].isin(["base", "scaled", "full"])]
    return curve.dropna(subset="scale").sort_values("scale")


def _draw_scales(axis: Axes, rows: pd.DataFrame, i: int) -> None:
    """Draw loss over inference scale, and a tick at the scale that theory predicts."""
    curve = _scale_curve(rows)
    label = str(rows["run"].iloc[0])
    axis.plot(curve["scale"], curve["loss"], **_style(i), label=label)
    predicted = rows["predicted_scale"].iloc[0]
    if predicted == predicted:
        axis.axvline(
            predicted,
            ymax=0.12,
            color=_style(i)["color"],
            linestyle=(0, (1, 1)),
        )


def _draw_costs(axis: Axes, rows: pd.DataFrame, i: int, count: int) -> None:
    """Draw the loss of masks and ensembles above the full model's, and the Jensen identity."""
    full = rows.loc[rows["predictor"] == "full", "loss"].iloc[0]
    shift = 0.7 * ((i + 0.5) / count - 0.5)
    for x, predictor in enumerate(COSTS):
        found = rows[rows["predictor"] == predictor]
        cost = found["loss"] - full
        style = _style(i)
        axis.plot([x + shift] * len(cost), cost, linestyle="", alpha=0.35, **style)
        axis.plot([x + shift], [cost.mean()], linestyle="", **style)
    geometric = rows[rows["predictor"] == "geometric"].iloc[0]
    expected = geometric["loss"] + geometric["jensen_gap"] - full
    axis.plot(
        [shift - 0.08, shift + 0.08],
        [expected, expected],
        color="0.2",
        linewidth=1.5,
        label="geometric + Jensen gap (T12)" if i == 0 else None,
    )


def _draw_accuracies(axis: Axes, rows: pd.DataFrame, i: int, count: int) -> None:
    shift = 0.7 * ((i + 0.5) / count - 0.5)
    for x, predictor in enumerate(SHOWN):
        found = rows[rows["predictor"] == predictor]
        accuracy, examples = found["accuracy"].mean(), int(found["examples"].iloc[0])
        interval = accuracy_interval(round(accuracy * examples), examples)
        ends = np.array([[accuracy - interval.low], [interval.high - accuracy]])
        axis.errorbar([x + shift], [accuracy], yerr=ends, linewidth=0.7, linestyle="", **_style(i))


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's losses."""
    summary: dict[str, float | int | str] = {}
    for (run, step), rows in table.groupby(["run", "step"], sort=False):
        losses = rows[rows["predictor"] != "scaled"].groupby("predictor", sort=False)["loss"].mean()
        text = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        curve = _scale_curve(rows)
        best = curve["scale"].iloc[curve["loss"].argmin()]
        predicted = rows["predicted_scale"].iloc[0]
        summary[f"{run}, step {step}, loss (nats/token)"] = text
        summary[f"{run}, step {step}, best scale of the grid"] = (
            f"{best:.3g} (predicted {predicted:.3g})" if predicted == predicted else f"{best:.3g}"
        )
    return summary


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="ensemble_vs_single",
    description=__doc__,
    question="is the full-rank model an ensemble of its masked parts?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="Top: loss on held-out examples when the update is scaled by c at inference (c = 1 is "
    "the usual choice, c = 0 is the base). A minimum beyond 1 says that masks shrank the "
    "update; dotted marks: the scale that theory predicts for a linear layer. Middle: how much "
    "single masks and two kinds of mask ensemble lose against the full model; the dark bar is "
    "an identity of theory (geometric ensemble plus Jensen gap) and must pass through the "
    "single masks' mean. Bottom: exact match of each.",
    options={
        "masks": {"type": int, "default": 8, "help": "masks drawn (default: 8)"},
        "examples": {"type": int, "default": 64, "help": "examples used at most (default: 64)"},
        "batch_size": {
            "type": int,
            "default": 16,
            "help": "examples in one forward pass (default: 16)",
        },
        "seed": {"type": int, "default": 0, "help": "seed of the masks (default: 0)"},
        "dtype": {
            "choices": ("fp32", "bf16"),
            "default": "fp32",
            "help": "what the model computes in (default: fp32)",
        },
    },
    position=70,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
