"""X6: the trained factors beside what T8, T13, T14 and T16 say of them.

T8 is about dW Σ^½, what the update does to the inputs that it gets, T13 and T14 about how alike the
directions b_i a_i^T are, T16 about how far AdamW moves each factor under masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from experiments.design import Design, Rates
from subspace_lab.adapters.modules import LoraModule, lora_modules
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples, load_trained
from subspace_lab.linalg import effective_rank
from subspace_lab.runs.run import Run

EXAMPLES = 100


def theory_table(design: Design, final: Path, own: Rates) -> pd.DataFrame:
    """Measure the first final run of each regime, arm and seed.

    Args:
        design: the experiment.
        final: the folder of its final runs.
        own: the chosen rate of each place.

    Returns:
        Columns regime, arm, seed and those of `measure`.
    """
    first = design.first_cells(own)
    rows = []
    for (regime, arm, seed), cell in tqdm(first.items(), desc="theory", disable=None):
        measured = measure(Run(final / cell.name))
        rows.append({"regime": regime, "arm": arm, "seed": seed, **measured})
    return pd.DataFrame(rows)


def measure(run: Run) -> dict[str, float]:
    """Measure a run's last adapter: medians over modules, and displacements over all of them.

    Returns:
        `entropy` and `weighted_entropy`, effective ranks of dW and of dW Σ^½ with Σ the second
        moment of the module's inputs over test examples; `product_cv`, the coefficient of variation
        of ||b_i|| ||a_i||; `balance`, sum_i ||b_i||² ||a_i||²_Σ / ||dW Σ^½||²; of each factor X the
        displacement `moved_X`, ||X_T - X_0||_F, and `walked_X`, that of a random walk of AdamW with
        as many steps, sqrt(n sum_t lr_t²) of n entries; under SGD it says nothing.
    """
    trained = load_trained(run)
    rows = [_module(module, moment) for module, moment in _input_moments(run, trained)]
    rates = run.metrics["learning_rate"].dropna()
    squares = {"A": 0.0, "B": 0.0}
    entries = dict.fromkeys(squares, 0)
    for name in run.modules["module"]:
        start, end = (run.factors(step, name) for step in (0, run.final_step))
        for factor in squares:
            change = getattr(end, factor).double() - getattr(start, factor)
            squares[factor] += float(change.square().sum())
            entries[factor] += change.numel()
    moved = {f"moved_{factor}": math.sqrt(square) for factor, square in squares.items()}
    walked = {
        f"walked_{factor}": math.sqrt(number * float((rates**2).sum()))
        for factor, number in entries.items()
    }
    medians = {str(name): float(value) for name, value in pd.DataFrame(rows).median().items()}
    return medians | moved | walked


def _module(module: LoraModule, second_moment: Float[Tensor, "n n"]) -> dict[str, float]:
    B, A = module.B.detach().double(), module.A.detach().double()
    values, vectors = torch.linalg.eigh(second_moment)
    weighted = A @ (vectors * values.clamp_min(0).sqrt())  # a root of Σ, up to a rotation
    products = B.norm(dim=0) * A.norm(dim=1)
    energies = B.norm(dim=0) * weighted.norm(dim=1)
    return {
        "entropy": float(effective_rank(torch.linalg.svdvals(B @ A))),
        "weighted_entropy": float(effective_rank(torch.linalg.svdvals(B @ weighted))),
        "product_cv": float(products.std() / products.mean()),
        "balance": float(energies.square().sum() / (B @ weighted).square().sum()),
    }


def _input_moments(run: Run, trained: TrainedModel) -> Iterator[tuple[LoraModule, Tensor]]:
    """Give each adapted module with the second moment of its inputs, up to a factor."""
    modules = lora_modules(trained.model)
    moments: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor) -> None:
        x = inputs.detach().double().flatten(0, -2)
        moments[name] = moments.get(name, 0) + x.mT @ x

    handles = [
        module.A_module.register_forward_hook(lambda _, x, __, name=module.name: add(name, x[0]))
        for module in modules
    ]
    examples = evaluation_examples(run, split="test", size=EXAMPLES)
    with torch.no_grad():
        for batch in trained.batches(examples, batch_size=50, description=""):
            batch.logits(trained.model)
    for handle in handles:
        handle.remove()
    return ((module, moments[module.name]) for module in modules)
