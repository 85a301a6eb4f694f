"""How keep_prob changes over training and between modules.

Early and late dropout are those of Liu et al. 2023 ("Dropout Reduces Underfitting"), where early
dropout, which falls linearly to none, lowers even the training loss of models that underfit.
"""

from __future__ import annotations

from typing import Literal

Schedule = Literal["constant", "linear", "early", "late"]


def scheduled_keep_prob(keep_prob: float, step: int, schedule: Schedule, steps: int) -> float:
    """Give keep_prob at optimizer step t = `step`, from 1, of a schedule that takes T = `steps`.

        constant    q
        linear      1 - (1 - q) (1 - (t - 1) / T), and 1 after step T: pruning fades out
        early       q until step T, then 1
        late        1 until step T, then q

    >>> [scheduled_keep_prob(0.5, step, "linear", 2) for step in (1, 2, 3, 4)]
    [0.5, 0.75, 1.0, 1.0]
    """
    if schedule == "linear":
        return 1 - (1 - keep_prob) * max(0.0, 1 - (step - 1) / steps)
    masked = {"constant": True, "early": step <= steps, "late": step > steps}[schedule]
    return keep_prob if masked else 1.0


def matching_pattern(module: str, patterns: list[str]) -> str | None:
    """Find the first pattern that a module's name ends with or matches, as PEFT does."""
    if not patterns:
        return None
    from peft.utils.other import get_pattern_key

    found = get_pattern_key(patterns, module)
    return found if found in patterns else None
