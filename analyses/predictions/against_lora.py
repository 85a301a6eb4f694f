"""T15 and T16: a masked run beside a LoRA run of the same configuration.

Under AdamW a masked coordinate's mean step is sqrt(q) times LoRA's, whatever its noise; so frames
should move and turn less by that much. Indicative: the two runs see different gradients soon.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from analyses.predictions.rows import Prediction, Row
from subspace_lab.stats.seeds import MASK_FIELDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from analyses.predictions.group import Group
    from subspace_lab.runs.run import Run

MASK_SETTINGS = ("method", "rank_mask", *MASK_FIELDS)
WHY = "masked and plain runs soon see different gradients"

LENGTH_B = Prediction(
    "B's displacement over LoRA's", "T16", "training", "masks slow B by another factor"
)
LENGTH_A = Prediction(
    "A's displacement over LoRA's", "T16", "training", "masks slow A by another factor"
)
DRIFT = Prediction(
    "A's turn per step over LoRA's", "T15", "training", "masks slow the frame by another factor"
)


def find_lora(run: Run, runs: Sequence[Run]) -> Run | None:
    """Find a LoRA run that differs from a masked `run` in its mask only."""
    if run.mask_law is None or run.config.get("method") != "droplora":
        return None
    for other in runs:
        if other.config.get("method") == "lora" and _rest(other.config) == _rest(run.config):
            return other
    return None


def against_lora(group: Group, lora: Group) -> Iterator[Row]:
    """Displacements and turns of a masked run over those of LoRA, at common steps."""
    import numpy as np

    from subspace_lab.theory.adam import effective_step_ratio

    if group.law is None or group.config.get("optimizer") != "adamw":
        return
    if group.names != lora.names:
        return
    # With many tokens or samples in a batch, their masks average out: T16's ratio is close to 1.
    ratio = 1.0
    if group.law.granularity == "step":
        ratio = effective_step_ratio(keep_prob=group.law.keep_prob)
    masked, plain = group.motions, lora.motions
    if masked is not None and plain is not None:
        last = min(len(masked.steps), len(plain.steps)) - 1
        for prediction, side in ((LENGTH_B, "column"), (LENGTH_A, "row")):
            a, b = (getattr(each, side).start[last] for each in (masked, plain))
            measured = float(np.linalg.norm(a) / np.linalg.norm(b))
            yield prediction.indicative(
                ratio, measured, scale=0.25 * ratio, why=WHY, samples=a.size
            )
    turns = [_turns(each) for each in (group, lora)]
    common = sorted(turns[0].keys() & turns[1].keys())
    if common:
        a, b = (np.stack([turn[step] for step in common]) for turn in turns)
        measured = float(np.median(a) / np.median(b))
        yield DRIFT.indicative(ratio, measured, scale=0.25 * ratio, why=WHY, samples=a.size)


def _rest(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in MASK_SETTINGS}


def _turns(group: Group) -> dict[int, NDArray[np.float64]]:
    """Root mean square angle (M,) between row(A) before and after each step."""
    from subspace_lab import linalg

    steps, cores = group.cores
    if cores.row.previous is None:
        return {}
    angles = linalg.principal_angles(cores.row.now(), cores.row.before("previous"))
    turned = angles.square().mean(-1).sqrt().numpy()
    return {step: turned[place] for place, step in enumerate(steps.tolist()) if step > 0}
