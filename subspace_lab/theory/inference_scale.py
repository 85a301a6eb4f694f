"""T9: by how much training with masks under- or overshoots the update that inference should use.

Training sees γ s B D A, inference uses c γ B A. For a squared loss and one linear layer the best c
is read off the trained factors. For another loss it is not: with L(c) the loss of the update times
c and H its Hessian in the gates, rescaled gates of variance λ = (1 - q) / q have to second order,
at a stationary point of the masked loss,

    c* = 1 + λ [tr H + (1/2) d tr H / dc] / (1^T H 1),   at c = 1.

The squared loss has d tr H / dc = 0, and c* > 1. Under cross-entropy tr H falls as predictions
grow confident, and c* may lie on either side of 1: `binary_inference_scale` has it in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.mask_moments import relative_variance


@dataclass(frozen=True)
class ScaleFit:
    """The parabola through measured losses: loss(c) = minimum + curvature (c - scale)^2."""

    scale: float
    minimum: float
    curvature: float
    residual: float  # root mean square of loss - parabola


def optimal_inference_scale(balance_ratio: float, *, keep_prob: float, rescale: float) -> float:
    """Optimal scale c* = s [q + (1 - q) ρ] of the update at a stationary point of the masked loss.

    ρ is `masked_moments.balance_ratio` of the trained factors. With s = 1/q this is 1 + λ ρ > 1,
    the shrinkage of the regularizer read off one number; with s = 1 (the paper's Eq. 2, which
    infers at c = 1) it is q + (1 - q) ρ, near q where the update is spread over the ranks.

    At stationarity along the direction of scaling, s q <M, W>_Σ = s^2 [q^2 + q (1 - q) ρ] ||W||_Σ^2
    for W = γ B A and the least-squares solution M, and c* = <M, W>_Σ / ||W||_Σ^2. Exact for one
    linear layer with a squared loss and Bernoulli masks of any granularity, without weight decay.
    Under cross-entropy not even the side of 1 is known (`binary_inference_scale`).

    >>> optimal_inference_scale(0.2, keep_prob=0.5, rescale=2.0)
    1.2
    """
    check_keep_prob(keep_prob)
    return rescale * (keep_prob + (1 - keep_prob) * balance_ratio)


def binary_inference_scale(logit: float, *, rank: int, keep_prob: float) -> float:
    """Optimal scale under cross-entropy of a logit u to which r directions contribute u / r each.

        c* = 1 + (λ / r) [1 - (u / 2) tanh(u / 2)],

    to second order in the gates, for two classes and rescaled masks. It is T9's 1 + λ ρ (ρ = 1 / r)
    at u = 0, where cross-entropy is a squared loss, and below 1 from |u| = 2.40 on, a confidence
    of .917: a masked margin is often too small where the full one is not, which training answers
    by a larger update. The error grows with λ u^2 / r.

    >>> round(binary_inference_scale(0.0, rank=16, keep_prob=0.5), 4)
    1.0625
    >>> round(binary_inference_scale(4.0, rank=16, keep_prob=0.5), 4)
    0.942
    """
    strength = relative_variance(keep_prob=keep_prob) / rank
    return 1 + strength * (1 - logit / 2 * math.tanh(logit / 2))


def fit_inference_scale(
    scales: Float[np.ndarray, " k"], losses: Float[np.ndarray, " k"]
) -> ScaleFit:
    """Least-squares parabola through losses measured at inference scales c.

    Exact for a squared loss; for another loss keep the grid close around the minimum, and look at
    the residual.

    Raises:
        ValueError: fewer than three scales, or losses without a minimum (curvature <= 0).

    >>> scales = np.array([0.5, 1.0, 1.5])
    >>> round(fit_inference_scale(scales, (scales - 1.2) ** 2).scale, 6)
    1.2
    """
    if len(np.unique(scales)) < 3:
        raise ValueError("a parabola needs losses at three or more different scales")
    centre = scales.mean()
    curvature, slope, constant = np.polyfit(scales - centre, losses, deg=2)
    if curvature <= 0:
        raise ValueError("the losses have no minimum: their parabola opens downwards")
    fitted = np.polyval([curvature, slope, constant], scales - centre)
    return ScaleFit(
        scale=float(centre - slope / (2 * curvature)),
        minimum=float(constant - slope**2 / (4 * curvature)),
        curvature=float(curvature),
        residual=float(np.sqrt(np.mean((losses - fitted) ** 2))),
    )
