"""T1: how often each direction is kept in T independent masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from subspace_lab.theory.mask_law import MaskLaw


@dataclass(frozen=True)
class FrequencyStatistic:
    """A chi-square statistic of keep frequencies, its degrees of freedom and its variance."""

    value: float
    freedom: int
    variance: float


def frequency_statistic(masks: Bool[np.ndarray, "T M r"], law: MaskLaw) -> FrequencyStatistic:
    """Compare how often the directions of M modules were kept in T steps with their mean q T.

    With counts c, C = Cov(d) and its pseudo-inverse C^+, the sum over modules of

        (c - q T)^T C^+ (c - q T) / T

    has mean M rank(C) and variance M [2 rank(C) (1 - 1 / T) + Var(z^T C^+ z) / T], z = d - q. The
    last variance follows from the law of |d|, since all subsets of one size are equally likely:
    Bernoulli masks have rank r and r (1 - 4 q (1 - q)) / (q (1 - q)), exact-k masks r - 1 and 0.
    """
    steps, modules, rank = masks.shape
    moments = law.moments(rank)
    inverse = np.linalg.pinv(moments.covariance, hermitian=True)
    freedom = int(np.linalg.matrix_rank(moments.covariance, hermitian=True))
    deviations = masks.sum(0) - steps * moments.mean
    of_size = np.tri(rank + 1, rank, -1) - moments.mean  # one mask of each size
    whitened = ((of_size @ inverse) * of_size).sum(-1)
    pmf = law.kept_pmf(rank)
    spread = float(pmf @ (whitened - pmf @ whitened) ** 2)
    return FrequencyStatistic(
        value=float(((deviations @ inverse) * deviations).sum() / steps),
        freedom=modules * freedom,
        variance=modules * (2 * freedom * (1 - 1 / steps) + spread / steps),
    )
