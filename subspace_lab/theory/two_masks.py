"""Two masks on one adapter, and the two readings of a drop rate.

(B diag(m1)) (diag(m2) A) = B diag(m1 m2) A: on every draw two masks are one, their intersection,
gradients included. As a law they are not the single mask of the same keep probability but that of
the product, so "equivalent" holds draw by draw and fails in the parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.mask_moments import relative_variance


@dataclass(frozen=True)
class TwoMaskLaw:
    """What independent masks with keep probabilities q1 and q2 on r directions amount to."""

    keep_prob: float  # q = q1 q2
    expected_rank: float  # r q
    expected_overlap: float  # |M_t and M_{t+1}| of successive steps, r q^2
    penalty: float  # lam = (1-q)/q, at rescale 1/q


def two_mask_law(rank: int, *, keep_prob: tuple[float, float]) -> TwoMaskLaw:
    """Law of the product of two independent Bernoulli masks, rescaled by 1/(q1 q2).

    It is the law of one mask with keep probability q1 q2. For q1 = q2 = q the rank is r q^2, the
    overlap of successive masks r q^4, and the penalty (1+q)/q times that of one mask of q.

    >>> two_mask_law(32, keep_prob=(0.5, 0.5))
    TwoMaskLaw(keep_prob=0.25, expected_rank=8.0, expected_overlap=2.0, penalty=3.0)
    """
    for each in keep_prob:
        check_keep_prob(each)
    q = math.prod(keep_prob)
    return TwoMaskLaw(q, rank * q, rank * q**2, relative_variance(keep_prob=q))


def matching_keep_prob(*, keep_prob: float) -> float:
    """Keep probability of each of two masks that together act as one mask of q: sqrt(q).

    >>> matching_keep_prob(keep_prob=0.25)
    0.5
    """
    check_keep_prob(keep_prob)
    return math.sqrt(keep_prob)


def rate_readings(rate: float) -> tuple[float, float]:
    """Penalties (lam_prune, lam_keep) of a stated rate read as prune_prob and as keep_prob.

    lam_prune = rate / (1 - rate), what `nn.Dropout(rate)` gives, and lam_keep = (1 - rate) / rate,
    "d_i ~ Bernoulli(rate), 1 = kept" taken literally. Their product is 1: they agree at 1/2 only,
    and lam_keep is 81 times lam_prune at rate 0.1.

    >>> [round(lam, 2) for lam in rate_readings(0.3)]
    [0.43, 2.33]
    """
    return relative_variance(keep_prob=1 - rate), relative_variance(keep_prob=rate)
