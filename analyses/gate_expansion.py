"""What do random masks cost, and how much of it does the expansion in the gates explain?

    python -m analyses.gate_expansion --run RUN [--run RUN2 ...] --steps last

A mask multiplies each rank direction by a gate s d, with mean s keep_prob. The gap

    E L(s d) - L(s keep_prob)

is what random gates cost on held-out rows, in nats per response token. Its Taylor expansion (T11)
starts at second order, (mu2 / 2) tr H with mu2 the variance of a gate and H the Hessian of the
loss in the gates: the regulariser that masks amount to in a network of any depth. Orders two to
four are measured under the same masks as the gap. The second order stands for the gap where the
third, the fourth and what is left of the gap are all small beside it (`trustworthy`); elsewhere
the marker is hollow: the evidence for the regulariser is lacking, or against it. It fails where a
model fits its data: the second order vanishes with the residuals, while a mask still breaks the
fit.

Gates are those of the run's own masks: one per rank direction for step masks, one per row and
direction for sample masks, one per token and direction for token masks; for a run without masks,
step masks of keep_prob 0.5, rescaled. A fourth derivative is slow, so a few examples and masks are
taken. The intervals are over masks, on these examples; examples differ more than masks do, so with
fewer than eight of them nothing is said about the model: of the demo's first eight, one by itself
satisfies the second order, and all together do not. The model computes in fp32 on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from analyses import kit
from subspace_lab.errors import UserError
from subspace_lab.figures.style import PALETTE, legend_below, new_figure, step_axis
from subspace_lab.runs.run import Run
from subspace_lab.theory.gates import GateGap, average_gap, gate_gap
from subspace_lab.theory.mask_law import DEFAULT_LAW, MaskLaw
from subspace_lab.trained import evaluation_examples, load_trained

ORDERS = ("second", "third", "fourth")
MIN_EXAMPLES = 8  # fewer do not stand for the model


def compute(
    run: Run,
    *,
    steps: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
    masks: int = 8,
    examples: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the gap and its expansion.

    Args:
        run: the run.
        steps: which snapshots; None: the last.
        modules: must be None: the gap is one of the whole model.
        masks: random masks, at least 2.
        examples: rows of the run's eval_split (test rows where it is none).
        seed: seed of the masks.

    Returns:
        A row is a run and step: `run, step`, `measured` (the gap, without the first order, whose
        mean is zero), `second`, `third`, `fourth`, each with its standard error over masks,
        `..._error`, `excess_error` (that of measured - second), `trustworthy`, `tolerance`
        (relative, of that flag), `masks`, `examples`, `split` (which rows), `granularity`,
        `keep_prob`, `factor` (s), `assumed` (whether the law is not the run's own), `dtype`
        (what the model computed in). Losses are in nats per response token.

    Raises:
        UserError: if the run has no adapter to load, its masks are not independent, or an argument
            is out of range.
    """
    if masks < 2 or examples < 1:
        raise UserError("--masks must be at least 2, --examples at least 1")
    if modules is not None:
        raise UserError("gate_expansion is about whole models: leave --modules out")
    law = run.mask_law or DEFAULT_LAW
    if not (law.plain and law.independent_gates):
        raise UserError(
            f"{run.path} does not have independent masks of one keep_prob, which the expansion is "
            "of: choose a run with `sampling` bernoulli"
        )
    chosen = [None] if steps is None else list(steps)
    return pd.DataFrame([_at_step(run, step, law, masks, examples, seed) for step in chosen])


def _at_step(
    run: Run, step: int | None, law: MaskLaw, masks: int, examples: int, seed: int
) -> dict[str, Any]:
    from analyses._gates import GatedLoss  # imports peft

    rows = evaluation_examples(run, size=examples)
    trained = load_trained(run, step=step)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    gaps: list[GateGap] = []
    tokens: list[int] = []
    description = f"gates of {run.name}, step {trained.step}"
    losses = 1 + masks * (3 if law.keep_prob == 0.5 else 2)  # the mean gates; expansion, masks
    with tqdm(total=len(rows) * losses, desc=description, disable=None) as bar:
        for row in rows:  # one at a time: a fourth derivative takes much memory
            # Step masks are the same for all rows; others are not.
            place = 0 if law.granularity == "step" else len(gaps)
            with GatedLoss(
                trained, [row], ranks=ranks, granularity=law.granularity, bar=bar
            ) as loss:
                gaps.append(
                    gate_gap(
                        loss,
                        loss.gates,
                        keep_prob=law.keep_prob,
                        rescale=law.factor,
                        masks=masks,
                        generator=torch.Generator().manual_seed(seed + place),
                    )
                )
                tokens.append(loss.tokens)
    found = average_gap(gaps, tokens)
    orders = zip(ORDERS, found.orders.tolist(), found.orders_standard_error.tolist(), strict=True)
    record: dict[str, Any] = {"run": run.name, "step": trained.step}
    record |= {"measured": found.measured, "measured_error": found.measured_standard_error}
    for name, value, error in orders:
        record |= {name: value, f"{name}_error": error}
    return record | {
        "excess_error": found.excess_standard_error,
        "trustworthy": found.trustworthy,
        "tolerance": found.tolerance,
        "masks": masks,
        "examples": len(rows),
        "split": run.evaluated_split,
        "granularity": law.granularity,
        "keep_prob": law.keep_prob,
        "factor": law.factor,
        "assumed": run.mask_law is None,
        "dtype": trained.dtype,
    }


def draw(table: pd.DataFrame) -> Figure:
    """Draw the gap and its expansion over snapshots, one panel per run."""
    runs = list(dict.fromkeys(table["run"]))
    figure, axes = new_figure(len(runs), row_height=1.35)
    for axis, run in zip(axes[:, 0], runs, strict=True):
        rows = table[table["run"] == run].sort_values("step")
        _draw_run(axis, rows)
        law = rows.iloc[0]
        assumed = " (assumed)" if law["assumed"] else ""
        title = f"{run}: {law['granularity']} gates, keep_prob {law['keep_prob']:g}{assumed}"
        axis.set_title(title)
        axis.set_ylabel("nats/token")
    step_axis(axes[-1, 0])
    axes[-1, 0].margins(x=0.15)
    figure.suptitle(
        f"Cost of random gates; {kit.rows_note(table)}, {table['masks'].max()} masks, "
        f"{table['dtype'].iloc[0]}, 95 % over masks",
        fontsize=7,
    )
    legend_below(figure, axes[:, 0], columns=1)

    return figure


def _draw_run(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw one run: what was measured, hollow where it does not settle it, and the second order."""
    axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    axis.errorbar(
        rows["step"],
        rows["second"],
        1.96 * rows["second_error"],
        color=PALETTE[1],
        marker="s",
        linestyle="--",
        label="second order",
    )
    axis.errorbar(
        rows["step"],
        rows["measured"],
        1.96 * rows["measured_error"],
        color=PALETTE[0],
    )
    settled = rows["trustworthy"] & (rows["examples"] >= MIN_EXAMPLES)
    for trusted, fill in ((True, "full"), (False, "none")):
        found = rows[settled == trusted]
        look: dict[str, Any] = {"color": PALETTE[0], "marker": "o", "fillstyle": fill}
        axis.plot(found["step"], found["measured"], linestyle="", **look)
        meaning = "measured; second order holds" if trusted else "measured; not shown to hold"
        axis.plot([], [], linestyle="", label=meaning, **look)


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the gap, the second order, and whether it holds."""
    return {
        f"{row.run}, step {row.step}": f"gap {row.measured:.4g} ± {row.measured_error:.2g} "
        f"nats/token, second order {row.second:.4g} ± {row.second_error:.2g}: "
        + verdict(trustworthy=trustworthy, examples=examples)
        for row, trustworthy, examples in zip(
            table.itertuples(), table["trustworthy"], table["examples"], strict=True
        )
    }


def verdict(*, trustworthy: bool, examples: int) -> str:
    """Say whether the second order stands for the gap, and of what."""
    count = f"{examples} example{'s' * (examples != 1)}"
    if not trustworthy:
        return f"not shown to hold on {count}"
    few = f", too few to say more ({MIN_EXAMPLES} or more are needed)"
    return f"holds on {count}" + few * (examples < MIN_EXAMPLES)


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="gate_expansion",
    description=__doc__,
    question="what do random masks cost the model, and is it the regulariser?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="The gap between the mean loss under random gates and the loss under their mean, on a "
    "few held-out examples, beside the second order of its expansion: the regulariser that masks "
    "amount to in a deep network. Hollow markers: the second order is not shown to stand "
    "for the gap, because higher orders are not small or the masks are too few.",
    why_missing="it was left out to save time",
    options={
        "masks": {"type": int, "default": 8, "help": "masks drawn (default: 8)"},
        "examples": {"type": int, "default": 4, "help": "examples (default: 4)"},
        "seed": {"type": int, "default": 0, "help": "seed of the masks (default: 0)"},
    },
    position=80,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
