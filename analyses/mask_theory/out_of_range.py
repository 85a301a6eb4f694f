"""T8, T9, T13 and T14: theorems about a linear layer under a squared loss, listed with the reason.

Models here are trained on cross-entropy, where measurement went the other way: the effective rank
of dW rose, directions became less alike, and the best inference scale was below 1 (docs/theory.md).
"""

from __future__ import annotations

from analyses.mask_theory.comparison import Comparison, NotTestableError
from analyses.mask_theory.prediction import Prediction, prediction
from analyses.mask_theory.record import Group

WHY = "holds for one linear layer under a squared loss, and training minimizes cross-entropy"


def _beyond(theorem: str, name: str, also: str) -> Prediction:
    """List a prediction that no run of a language model can test."""

    @prediction(theorem, name, "", tests="trained model")
    def beyond(group: Group) -> Comparison:
        raise NotTestableError(WHY + also)

    return beyond


spectrum = _beyond("T8", "soft-thresholded spectrum", "; it is about dW Σ^½, at the minimum")
scale = _beyond("T9", "best inference scale", "; it is about a stationary point")
equal_directions = _beyond("T13", "masks equalize directions", "; it is about gradient flow")
growth = _beyond("T14", "growth of singular values", "; it is about gradient flow")
