"""Whether a run has diverged: losses and weights that are not finite."""

from __future__ import annotations

import math

from torch import nn


def finite(*values: float) -> bool:
    """Whether no value is nan or infinite."""
    return all(map(math.isfinite, values))


def weights_are_finite(model: nn.Module) -> bool:
    """Whether no trained weight is nan or infinite."""
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    return all(bool(weight.isfinite().all()) for weight in trained)


def true_loss(loss: float, gradient_norm: float | None, model: nn.Module, *, batches: int) -> float:
    """Undo the Trainer's `logging_nan_inf_filter`: nan where it may have replaced a loss.

    The filter counts a loss that is not finite as 0, or as the mean of the batches before it. Then
    the gradient is not finite, and neither are the weights that were stepped by it.

    Args:
        loss: what was logged.
        gradient_norm: of the step; None where it was not logged.
        model: the model after the step.
        batches: how many batches the loss is a mean over; a mean over one is replaced by 0 only.
    """
    if loss != 0.0 and batches == 1:
        return loss
    broken = not finite(gradient_norm) if gradient_norm is not None else False
    return math.nan if broken or (loss == 0.0 and not weights_are_finite(model)) else loss
