"""T15 and T16: a masked run beside a LoRA run of the same configuration.

Under AdamW a masked coordinate's mean step is sqrt(q) times LoRA's, whatever its noise; so frames
should move and turn less by that much. Indicative: the two runs see different gradients soon.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.mask_theory.comparison import Comparison, NotTestableError, indicative
from analyses.mask_theory.needs import COVERED_LAW, MASKED
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group
from subspace_lab import linalg
from subspace_lab.configurations import differ_in_mask_only
from subspace_lab.runs.run import Run
from subspace_lab.theory.adam import effective_step_ratio

WHY = "masked and plain runs soon see different gradients"

LORA = Need(
    lambda group: group.lora is not None and group.lora.names == group.names,
    "no LoRA run that differs in the mask only is among the runs",
    MASKED,
)
ADAMW = Need(
    lambda group: group.config.get("optimizer") == "adamw",
    "the run is not configured to use AdamW",
)
EVERY_STEP = Need(
    lambda group: group.displacements is not None and group.lora.displacements is not None,
    "it takes recorded cores of every step from 1 on, of both runs",
)

beside_lora = functools.partial(prediction, always=(LORA, ADAMW, COVERED_LAW), tests="training")


def find_lora(run: Run, runs: Sequence[Run]) -> Run | None:
    """Find a LoRA run that differs from a masked `run` in its mask only."""
    if run.mask_law is None or run.gates_chosen or run.config.get("method") != "droplora":
        return None
    loras = (other for other in runs if other.config.get("method") == "lora")
    return next((lora for lora in loras if differ_in_mask_only(lora.config, run.config)), None)


def _length(factor: str, side: str) -> Prediction:
    """Predict the norm of a factor's displacement over LoRA's."""

    @beside_lora(
        "T16",
        f"{factor}'s displacement over LoRA's",
        f"masks slow {factor} by a different factor",
        EVERY_STEP,
    )
    def length(group: Group) -> Comparison:
        masked, plain = known(group.displacements), known(known(group.lora).displacements)
        last = min(len(masked.steps), len(plain.steps)) - 1
        a, b = (getattr(of_run, side).start[last] for of_run in (masked, plain))
        return _indicative(group, float(np.linalg.norm(a) / np.linalg.norm(b)), samples=a.size)

    return length


length_b, length_a = _length("B", "column"), _length("A", "row")


@beside_lora("T15", "A's turn per step over LoRA's", "masks slow the frame by a different factor")
def turn(group: Group) -> Comparison:
    """The frame of A turns less, too."""
    turns = [_turns(group), _turns(known(group.lora))]
    common = sorted(turns[0].keys() & turns[1].keys())
    if not common:
        raise NotTestableError("the runs have no displacements of common steps")
    a, b = (np.stack([of_run[step] for step in common]) for of_run in turns)
    return _indicative(group, float(np.median(a) / np.median(b)), samples=a.size)


def _indicative(group: Group, measured: float, *, samples: int) -> Comparison:
    law = known(group.law)
    # With many tokens or samples in a batch, their masks average out: T16's ratio is close to 1.
    ratio = 1.0
    if law.granularity == "step":
        ratio = effective_step_ratio(keep_prob=law.keep_prob)
    return indicative(ratio, measured, scale=0.25 * ratio, why=WHY, samples=samples)


def _turns(group: Group) -> dict[int, NDArray[np.float64]]:
    """Root mean square angle (M,) between row(A) before and after each step."""
    if not group.core_steps:
        return {}
    steps, cores = group.cores
    if cores.row.previous is None:
        return {}
    angles = linalg.principal_angles(cores.row.now(), cores.row.before("previous"))
    turned = angles.square().mean(-1).sqrt().numpy()
    return {step: turned[place] for place, step in enumerate(steps.tolist()) if step > 0}
