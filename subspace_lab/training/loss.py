"""What is descended instead of the cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from subspace_lab.teacher_forcing import log_probabilities
from subspace_lab.training.data import response_tokens


def brier_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Compute the Brier score of response tokens, a squared loss of the predicted distribution p.

    The mean over tokens of sum_v (p_v - [v = y])² = sum_v p_v² - 2 p_y + 1, between 0 and 2 (Brier
    1950). Unlike cross-entropy it is bounded, and its gradient in the logits vanishes at a token
    that is certainly wrong as at one that is certainly right.

    Args:
        outputs: of a causal language model, with `logits` (batch, length, vocabulary).
        labels: (batch, length) of the same positions; prompt and padding are `data.IGNORED`.
        num_items_in_batch: response tokens of the whole step; None: those of `labels`.
    """
    logits, targets, _ = response_tokens(outputs.logits, labels)
    p = log_probabilities(logits).exp()
    right = p.gather(-1, targets[:, None]).squeeze(-1)
    scores = p.square().sum(-1) - 2 * right + 1
    return scores.sum() / (len(scores) if num_items_in_batch is None else num_items_in_batch)
