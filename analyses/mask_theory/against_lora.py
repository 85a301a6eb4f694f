"""T16: how far the factors of a masked run moved beside those of a LoRA run.

Under AdamW and step masks the mean step shrinks by sqrt(q), the random part of the steps does not,
and how much of its way LoRA wandered follows from its displacement and its learning rates. Token
and sample masks average out over a batch. Indicative: the two runs see different gradients soon,
as masks keep alive the gradients of examples that LoRA has fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analyses.mask_theory import needs
from analyses.mask_theory.comparison import Comparison, indicative
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group
from subspace_lab.configurations import differ_in_mask_only
from subspace_lab.runs.run import Run
from subspace_lab.theory.adam import displacement_ratio, effective_step_ratio

WHY = "masked and plain runs soon see different gradients"

LORA = Need(
    lambda group: group.lora is not None and group.lora.names == group.names,
    "no LoRA run that differs in the mask only is among the runs",
    needs.MASKED,
)
EVERY_STEP_OF_BOTH = Need(
    lambda group: group.displacements is not None and group.lora.displacements is not None,
    "it takes recorded cores of every step from 1 on, of both runs",
    LORA,
)


def find_lora(run: Run, runs: Sequence[Run]) -> Run | None:
    """Find a LoRA run that differs from a masked `run` in its mask only."""
    if run.mask_law is None or run.gates_chosen or run.config.get("method") != "droplora":
        return None
    loras = (other for other in runs if other.config.get("method") == "lora")
    return next((lora for lora in loras if differ_in_mask_only(lora.config, run.config)), None)


def _length(factor: str, side: str, width: str) -> Prediction:
    """Predict the norm of a factor's displacement over LoRA's."""

    @prediction(
        "T16",
        f"{factor}'s displacement over LoRA's",
        f"masks slow {factor} by a different factor",
        EVERY_STEP_OF_BOTH,
        needs.ADAMW,
        needs.LEARNING_RATES,
        needs.COVERED_LAW,
        tests="training",
    )
    def length(group: Group) -> Comparison:
        """Its squared length is kappa² of LoRA's plus 1 - kappa² of that of a random walk."""
        masked, plain = known(group.displacements), known(known(group.lora).displacements)
        last = min(len(masked.steps), len(plain.steps)) - 1
        a, b = (getattr(of_run, side).start[last] for of_run in (masked, plain))
        law = known(group.law)
        by_steps = law.granularity == "step"
        kappa = effective_step_ratio(keep_prob=law.keep_prob) if by_steps else 1.0
        rates = known(group.learning_rates(masked.steps[: last + 1]))
        entries = group.rank * int(group.modules[width].sum())
        walk = entries * float(np.square(rates).sum() / np.square(b).sum())
        ratio = displacement_ratio(walk, step_ratio=kappa)
        measured = float(np.linalg.norm(a) / np.linalg.norm(b))
        return indicative(ratio, measured, tolerance=0.25 * ratio, basis=WHY, samples=a.size)

    return length


length_b, length_a = _length("B", "column", "m"), _length("A", "row", "n")
