"""How sharp is the loss in A and B? The largest Hessian eigenvalue, which bounds learning rates.

    python -m analyses.sharpness --run RUN [--run RUN2 ...] [--steps last] [--modules q_proj]

lambda_max of the Hessian of the loss in the trained factors (A, B), of each module for itself (the
others fixed) and of all modules together, at the start and over the snapshots. Gradient descent on
a quadratic diverges at learning rates above 2 / lambda_max, so ratios of lambda_max between methods
predict ratios of their best learning rates (arXiv 2602.04998: PiSSA's is about ten times LoRA's,
and its best rate a tenth); AdamW rescales each weight, so that only ratios are of use.

Without masks (`none`) the model is the one that is used at inference. Under one mask (`drawn`, a
row for each draw) it is the one of a training step: masks are drawn anew, one for all tokens
whatever the granularity of the run, with the run's keep_prob and rescale (0.5, rescaled, where the
run was not masked), so each kept A is multiplied by the rescale factor.

The loss is that of the examples of the run's eval_split (test examples where it is none) in nats
per response token, the mean over all of their tokens. Eigenvalues depend on the factorization: the
same B A as (c B) (A / c) has others. The model computes in fp32, and `residual` is
||H v - lambda v|| / |lambda|. PiSSA and MiLoRA: the trained A and B, not the start that is
subtracted. DoRA: A and B, the magnitudes fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analyses import kit
from analyses.gate_expansion.gated_loss import GatedLoss
from analyses.sharpness.eigenvalues import HessianBlock
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import check_counts
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import DEFAULT_LAW, MaskLaw

ALL = "all"
"""The module of rows of all modules together."""
MASKS = {"none": "no mask", "drawn": "under one mask"}


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    masks: int = 1,
    examples: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the sharpness at `steps` (None: all), with the examples in one batch.

    Returns:
        A row is a run, step, module (`all`: all chosen ones together) and mask (`none`, `drawn`):
        `run, step, module, layer, projection` (-1 and empty of `all`), `mask`, `draw` (-1 without),
        `sharpness` (lambda_max), `residual`, `products`, `weights`
        (how many), `examples`, `split`, `keep_prob`, `factor` (rescale), `assumed` (whether the law
        is not the run's own), `dtype`.

    Raises:
        UserError: if the run has no adapter to load, or an argument is out of range.
    """
    check_counts(examples=examples)
    check_counts(0, masks=masks, seed=seed)
    law = mask_law_of(run, seed=seed)
    evaluated = evaluation_examples(run, size=examples)
    table = run.modules if modules is None else run.modules[run.modules["module"].isin(modules)]
    places = table[["module", "layer", "projection"]].to_dict("records")
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))

    def of_snapshot(trained: TrainedModel) -> pd.DataFrame:
        description = f"sharpness of {run.name}, step {trained.step}"
        total = (len(places) + 1) * (1 + masks)
        with GatedLoss(trained, evaluated, ranks=ranks, granularity="step") as loss:
            rows = measure(trained, loss, law, places, ranks=ranks, masks=masks, seed=seed)
            bar = tqdm(rows, total=total, desc=description, unit="Hessian", disable=None)
            return pd.DataFrame(bar).assign(
                examples=len(evaluated),
                split=run.evaluated_split,
                keep_prob=law.keep_prob,
                factor=law.factor,
                assumed=run.mask_law is None,
            )

    chosen = sorted(run.snapshots) if steps is None else steps
    return kit.over_snapshots(run, of_snapshot, steps=chosen)


def mask_law_of(run: Run, *, seed: int) -> MaskLaw:
    """Give the run's law with another seed, as one of step masks."""
    law = (run.mask_law or DEFAULT_LAW).one_draw()
    return replace(law, granularity="step", seed=seed)


def measure(
    trained: TrainedModel,
    loss: GatedLoss,
    law: MaskLaw,
    places: list[dict[Any, Any]],
    *,
    ranks: Mapping[str, int],
    masks: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Measure a snapshot without and under masks: each module of `places`, and all together."""
    adapted = {module.name: module for module in lora_modules(trained.model)}
    ranks = {name: ranks[name] for name in adapted}  # in the order of the loss's gates
    weights: list[Tensor] = []  # A and B of each module, and the shapes of what was trained of them
    shapes: list[tuple[int, int]] = []
    for place in places:
        module, rank = adapted[place["module"]], ranks[place["module"]]
        weights += [module.A.requires_grad_(), module.B.requires_grad_()]
        shapes += [(rank, module.A.shape[1]), (module.B.shape[0], rank)]
    blocks = [slice(2 * i, 2 * i + 2) for i in range(len(places))]
    together = {"module": ALL, "layer": -1, "projection": ""}
    for draw in range(-1, masks):
        gates = drawn_gates(law, ranks, draw) if draw >= 0 else map(torch.ones_like, loss.gates)
        labels = {"mask": "drawn" if draw >= 0 else "none", "draw": draw}
        gradients = torch.autograd.grad(loss(*gates), weights, create_graph=True)
        for place, part in zip([*places, together], [*blocks, slice(None)], strict=True):
            block = HessianBlock(gradients[part], weights[part], shapes[part])
            yield {**place, **labels, **asdict(block.largest_eigenvalue(seed=seed))}


def drawn_gates(law: MaskLaw, ranks: Mapping[str, int], draw: int) -> list[Tensor]:
    """Give the gates (r,) of each module under a draw: the law's step mask times its rescale."""
    masks = (law.step_mask(draw + 1, name, rank) for name, rank in ranks.items())
    return [law.factor * torch.from_numpy(mask) for mask in masks]


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's sharpness at its first and last step: the median module, and all."""
    summary: dict[str, str] = {}
    for (run, mask), rows in table.groupby(["run", "mask"], sort=False):
        for step in dict.fromkeys((rows["step"].min(), rows["step"].max())):
            at_step = rows[rows["step"] == step]
            single = at_step.loc[at_step["module"] != ALL, "sharpness"]
            together = at_step.loc[at_step["module"] == ALL, "sharpness"].mean()
            summary[f"{run}, step {step}, {MASKS[str(mask)]}"] = (
                f"{single.median():.4g} (median module), {together:.4g} (all modules together)"
            )
    return summary


def _modules(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["module"] != ALL]


ANALYSIS = kit.Analysis(
    name="sharpness",
    description=__doc__,
    question="how sharp is the loss in A and B, which bounds the learning rate?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=kit.curves_over_steps(
        kit.Panel(
            "sharpness", title="Of each module", by="mask", labels=MASKS, rows=_modules,
            unit="largest eigenvalue", scale="log",
        ),
        kit.Panel(
            "sharpness", title="Of all modules together", by="mask", labels=MASKS,
            where={"module": ALL}, unit="largest eigenvalue", scale="log",
        ),
        title="Sharpness in (A, B)",
    ),
    summarize=summarize,
    reading="The largest eigenvalue of the Hessian of the held-out loss in the factors A and B, "
    "without a mask and under one mask as in training. The largest stable learning rate of "
    "gradient descent is two over it, so a method that starts ten times as sharp needs a "
    "learning rate about ten times smaller.",
    why_missing="it was omitted to save time",
    options={
        "masks": kit.option(1, "masks drawn; 0: without masks only"),
        "examples": kit.option(8, "examples of the loss"),
        "seed": kit.option(0, "seed of the masks and of Lanczos's start"),
    },
    position=85,
)  # fmt: skip
