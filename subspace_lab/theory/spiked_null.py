"""T18: which singular values of W0 + dW stand out of the bulk, for a random W0.

The null model: W0 (m, n) has independent entries of mean 0 and variance `noise_std`^2 / n, and
dW = θ u v^T has rank one (for several well-separated spikes the results hold for each alone). As
m, n grow with c = m / n fixed, an outlier ("intruder dimension") leaves the bulk iff
θ > noise_std c^{1/4}. A trained W0 is not Gaussian: put a bulk edge measured on it in place of
`bulk_edge`. Source: Benaych-Georges and Nadakuditi 2012 (The singular values and vectors of low
rank perturbations of large rectangular random matrices), after Baik, Ben Arous and Péché 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Outlier:
    """Where a spike's singular value lands, and how much of the spike its vectors hold.

    Below the threshold the value is the bulk edge and the squared cosines are 0.
    """

    singular_value: float
    left_cosine_squared: float  # <u, u_1>^2
    right_cosine_squared: float  # <v, v_1>^2
    above_threshold: bool


def bulk_edge(m: int, n: int, *, noise_std: float = 1.0) -> float:
    """Largest singular value of the bulk, noise_std (1 + sqrt(c)) with c = m / n.

    >>> bulk_edge(25, 100)
    1.5
    """
    return noise_std * (1 + math.sqrt(m / n))


def spike_threshold(m: int, n: int, *, noise_std: float = 1.0) -> float:
    """Smallest strength noise_std c^{1/4} above which a rank-one spike shows, c = m / n.

    >>> spike_threshold(100, 1600)
    0.5
    """
    return noise_std * math.sqrt(math.sqrt(m / n))


def spiked_singular_value(strength: float, *, m: int, n: int, noise_std: float = 1.0) -> Outlier:
    """Limit of the top singular value and of its vectors' overlap with a spike of strength θ.

    For noise_std = 1 and θ > c^{1/4},

        σ       = sqrt((1 + θ^2) (c + θ^2)) / θ
        left^2  = 1 - c (1 + θ^2) / (θ^2 (θ^2 + c))
        right^2 = 1 - (c + θ^2) / (θ^2 (θ^2 + 1)),

    and otherwise by scaling. At finite size σ fluctuates by about noise_std / sqrt(n).
    """
    if strength <= spike_threshold(m, n, noise_std=noise_std):
        return Outlier(bulk_edge(m, n, noise_std=noise_std), 0.0, 0.0, above_threshold=False)
    aspect, square = m / n, (strength / noise_std) ** 2
    return Outlier(
        singular_value=noise_std * math.sqrt((1 + square) * (aspect + square) / square),
        left_cosine_squared=1 - aspect * (1 + square) / (square * (square + aspect)),
        right_cosine_squared=1 - (aspect + square) / (square * (square + 1)),
        above_threshold=True,
    )
