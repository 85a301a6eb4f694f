"""What do random masks cost, and how much of it does the expansion in the gates explain?

    python -m analyses.gate_expansion --run RUN [--run RUN2 ...] --steps last

A mask multiplies each rank direction by a gate s d, with mean s keep_prob. The gap

    E L(s d) - L(s keep_prob)

is what random gates cost on held-out examples, in nats per response token. Its Taylor expansion
(T11) starts at second order, (mu2 / 2) tr H with mu2 the variance of a gate and H the Hessian of
the loss in the gates: the regularizer that masks amount to in a network of any depth. Orders two to
four are measured under the same masks as the gap. The second order explains the gap where the
third, the fourth and the remainder of the gap are all small beside it (`trustworthy`); elsewhere
the marker is hollow: evidence for the regularizer is missing, or speaks against it. It fails where
a model fits its data: the second order vanishes with the residuals, while a mask still breaks the
fit.

Gates are those of the run's own masks: one per rank direction for step masks, one per example and
direction for sample masks, one per token and direction for token masks; for a run without masks,
step masks of keep_prob 0.5, rescaled. A fourth derivative is slow, so few examples and masks are
used. The intervals are over masks, on these examples; examples differ more than masks do, so with
fewer than eight of them nothing is said about the model: of the demo's first eight, the first
alone satisfies the second order, all eight together do not. The model computes in fp32 on every
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from analyses import kit
from analyses.gate_expansion.figure import MIN_EXAMPLES, ORDERS, draw, figure_table
from analyses.gate_expansion.gated_loss import GatedLoss
from subspace_lab.errors import UserError, check_counts
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples
from subspace_lab.runs.run import Run
from subspace_lab.tasks.encoding import encode_prompt, encode_response
from subspace_lab.tasks.examples import Example
from subspace_lab.theory.gates import GateGap, average_gap, gate_gap
from subspace_lab.theory.mask_law import DEFAULT_LAW, MaskLaw

BATCH_TOKENS = 128
"""Padded tokens of a batch, of which each takes some 20 MB in a model of 135 M parameters."""


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    masks: int = 8,
    examples: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the gap and its expansion at `steps` (None: the last); `modules` must be None.

    Returns:
        A row is a run and step: `run, step`, `measured` (the gap, without the first order, whose
        mean is zero), `second`, `third`, `fourth`, each with its standard error over masks,
        `..._error`, `excess_error` (that of measured - second), `trustworthy`, `tolerance`
        (relative, of that flag), `masks`, `examples` (of the run's eval_split; test examples where
        it is none), `split` (which examples), `granularity`, `keep_prob`, `factor` (s), `assumed`
        (whether the law is not the run's own), `dtype`. Losses are in nats per response token.

    Raises:
        UserError: if the run has no adapter to load, its masks are not independent, or an argument
            is out of range.
    """
    check_counts(2, masks=masks)
    check_counts(examples=examples)
    if modules is not None:
        raise UserError("gate_expansion evaluates whole models: omit `modules`")
    law = run.mask_law or DEFAULT_LAW
    if not (law.plain and law.independent_gates):
        raise UserError(
            f"{run.path} does not have independent masks of one keep_prob, which the expansion is "
            "of: choose a run with `sampling` bernoulli"
        )
    evaluated = evaluation_examples(run, size=examples)

    def of_snapshot(trained: TrainedModel) -> list[dict[str, Any]]:
        gap = measure(run, trained, evaluated, law, masks=masks, seed=seed)
        orders = zip(gap.orders.tolist(), gap.orders_standard_error.tolist(), strict=True)
        values = [(gap.measured, gap.measured_standard_error), *orders]
        row: dict[str, Any] = {}
        for name, (value, error) in zip(("measured", *ORDERS), values, strict=True):
            row |= {name: value, f"{name}_error": error}
        row |= {
            "excess_error": gap.excess_standard_error,
            "trustworthy": gap.trustworthy,
            "tolerance": gap.tolerance,
            "masks": masks,
            "examples": len(evaluated),
            "split": run.evaluated_split,
            "granularity": law.granularity,
            "keep_prob": law.keep_prob,
            "factor": law.factor,
            "assumed": run.mask_law is None,
        }
        return [row]

    return kit.over_snapshots(run, of_snapshot, steps=steps)


def measure(
    run: Run,
    trained: TrainedModel,
    examples: Sequence[Example],
    law: MaskLaw,
    *,
    masks: int,
    seed: int,
) -> GateGap:
    """Measure gap and expansion batch by batch: a fourth derivative takes much memory."""
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    batches, gaps, tokens = batches_of(trained, examples), [], []
    losses = 1 + masks * (3 if law.keep_prob == 0.5 else 2)  # the mean gates; expansion, masks
    description = f"gates of {run.name}, step {trained.step}"
    with tqdm(total=len(batches) * losses, desc=description, disable=None) as bar:
        for i, batch in enumerate(batches):
            # Step masks are the same for all examples; others are not.
            generator = torch.Generator().manual_seed(seed + i * (law.granularity != "step"))
            of_batch = GatedLoss(trained, batch, ranks=ranks, granularity=law.granularity, bar=bar)
            with of_batch as loss:
                gap = gate_gap(
                    loss,
                    loss.gates,
                    keep_prob=law.keep_prob,
                    rescale=law.factor,
                    masks=masks,
                    generator=generator,
                )
            gaps.append(gap)
            tokens.append(loss.tokens)
    return average_gap(gaps, tokens)


def batches_of(trained: TrainedModel, examples: Sequence[Example]) -> list[list[Example]]:
    """Put successive examples together while they have at most BATCH_TOKENS tokens, padded."""
    batches: list[list[Example]] = []
    longest = 0
    for example in examples:
        prompt = encode_prompt(trained.tokenizer, example.prompt)
        length = len(prompt + encode_response(trained.tokenizer, example.response, with_eos=True))
        longest = max(longest, length)
        if batches and (len(batches[-1]) + 1) * longest <= BATCH_TOKENS:
            batches[-1].append(example)
        else:
            batches.append([example])
            longest = length
    return batches


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the gap, the second order, and whether it holds."""
    return {
        f"{row['run']}, step {row['step']}": f"gap {row['measured']:.4g} ± "
        f"{row['measured_error']:.2g} nats/token, second order {row['second']:.4g} ± "
        f"{row['second_error']:.2g}: "
        + verdict(trustworthy=row["trustworthy"], examples=row["examples"])
        for row in table.to_dict("records")
    }


def verdict(*, trustworthy: bool, examples: int) -> str:
    """Say whether the second order stands for the gap, and of what."""
    count = f"{examples} example{'s' * (examples != 1)}"
    if not trustworthy:
        return f"not shown to hold on {count}"
    few = f", too few to say more ({MIN_EXAMPLES} or more are needed)"
    return f"holds on {count}" + few * (examples < MIN_EXAMPLES)


plot = kit.Plot(draw, figure_table)

ANALYSIS = kit.Analysis(
    name="gate_expansion",
    description=__doc__,
    question="what do random masks cost the model, and is it the regularizer?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="The gap between the mean loss under random gates and the loss under their mean, on a "
    "few held-out examples, beside the second order of its expansion: the regularizer that masks "
    "amount to in a deep network. Hollow markers: the second order is not shown to stand "
    "for the gap, because higher orders are not small or the masks are too few.",
    why_missing="it was omitted to save time",
    options={
        "masks": kit.option(8, "masks drawn"),
        "examples": kit.option(4, "examples"),
        "seed": kit.option(0, "seed of the masks"),
    },
    position=80,
)
