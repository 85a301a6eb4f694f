"""T9: by how much training with masks under- or overshoots the update that inference should use.

Training sees γ s B D A, inference uses c γ B A, and the best c is read off the trained factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from subspace_lab.theory._checks import check_keep_prob


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
    linear layer with a squared loss and Bernoulli masks of any granularity, without weight decay;
    indicative for cross-entropy.

    >>> optimal_inference_scale(0.2, keep_prob=0.5, rescale=2.0)
    1.2
    """
    check_keep_prob(keep_prob)
    return rescale * (keep_prob + (1 - keep_prob) * balance_ratio)


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
