"""T1: how successive Bernoulli(q) rank masks M_t = {i : d_i = 1} overlap, repeat and cover.

All results are exact and elementary. They hold for masks drawn independently at each step (or
call), of independent coordinates, so for any lag >= 1 alike; a mask that dwells for several steps,
or that is drawn per token, needs `untouched_probability` or a count of draws in place of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from subspace_lab.theory._checks import check_keep_prob, check_kept

MAX_PRODUCT = 100
"""Number of gates up to which a binomial probability is a product without over- or underflow."""


@dataclass(frozen=True)
class JaccardMoments:
    """Moments of J = |M ∩ M'| / |M ∪ M'|, without and with the pair of empty masks (J = 1)."""

    mean_nonempty: float
    variance_nonempty: float
    mean: float
    variance: float


@dataclass(frozen=True)
class Bounds:
    """A number is known to lie in [lower, upper]."""

    lower: float
    upper: float


def kept_pmf(rank: int, *, keep_prob: float) -> Float[np.ndarray, " rank_plus_1"]:
    """Law Bin(r, q) of |M|, as P(0), ..., P(r)."""
    check_keep_prob(keep_prob)
    return _binomial_pmf(np.arange(rank + 1), rank, keep_prob)


def mask_overlap_pmf(
    rank: int, *, keep_prob: float, kept: int | None = None
) -> Float[np.ndarray, " rank_plus_1"]:
    """Law of |M_t ∩ M_{t+1}|, as P(overlap = 0), ..., P(overlap = r).

    Bin(r, q^2), or Bin(k, q) given |M_t| = k = `kept`.

    >>> mask_overlap_pmf(2, keep_prob=0.5).tolist()
    [0.5625, 0.375, 0.0625]
    """
    check_keep_prob(keep_prob)
    overlap = np.arange(rank + 1)
    if kept is None:
        return _binomial_pmf(overlap, rank, keep_prob**2)
    check_kept(kept, rank)
    return _binomial_pmf(overlap, kept, keep_prob)


def exact_k_overlap_pmf(
    rank: int, *, kept: int, next_kept: int | None = None
) -> Float[np.ndarray, " rank_plus_1"]:
    """Law of |M ∩ M'| for independent uniform subsets of sizes k = `kept` and k' = `next_kept`.

    Hypergeometric: mean k k' / r, variance k (k'/r) (1 - k'/r) (r - k) / (r - 1). Bernoulli masks
    follow it too once their sizes are known. `next_kept` None means k' = k.

    >>> exact_k_overlap_pmf(4, kept=2)[:3].round(4).tolist()
    [0.1667, 0.6667, 0.1667]
    """
    next_kept = kept if next_kept is None else next_kept
    check_kept(kept, rank)
    check_kept(next_kept, rank)
    overlap = np.arange(rank + 1)
    chosen = scipy.special.binom(kept, overlap) * scipy.special.binom(
        rank - kept, next_kept - overlap
    )
    return np.asarray(chosen / scipy.special.binom(rank, next_kept))


def jaccard_moments(rank: int, *, keep_prob: float) -> JaccardMoments:
    """Mean and variance of the Jaccard index of two independent masks.

    Given a union of size u > 0 the overlap is Bin(u, θ) with θ = q / (2 - q), so E[J | u > 0] = θ
    for every r, and Var[J | u > 0] = θ (1 - θ) E[1/u | u > 0] with u ~ Bin(r, 1 - (1 - q)^2).

    >>> jaccard_moments(8, keep_prob=0.5).mean_nonempty
    0.3333333333333333
    """
    check_keep_prob(keep_prob)
    theta = keep_prob / (2 - keep_prob)
    union = np.arange(1, rank + 1)
    nonempty = _binomial_pmf(union, rank, keep_prob * (2 - keep_prob))
    empty = (1 - keep_prob) ** (2 * rank)
    variance = theta * (1 - theta) * float(nonempty @ (1 / union)) / (1 - empty)
    return JaccardMoments(
        mean_nonempty=theta,
        variance_nonempty=variance,
        mean=theta * (1 - empty) + empty,
        variance=variance * (1 - empty) + (1 - theta) ** 2 * empty * (1 - empty),
    )


def p_empty(rank: int, *, keep_prob: float, layers: int = 1) -> float:
    """Probability 1 - (1 - (1 - q)^r)^L that the mask of at least one of L layers is empty.

    >>> round(p_empty(8, keep_prob=0.5), 8)
    0.00390625
    """
    check_keep_prob(keep_prob)
    if keep_prob == 1:
        return 0.0
    return -math.expm1(layers * math.log1p(-((1 - keep_prob) ** rank)))


def mask_collision_rate(rank: int, *, keep_prob: float) -> float:
    """Probability (q^2 + (1 - q)^2)^r that two independent masks are equal.

    >>> mask_collision_rate(8, keep_prob=0.5)
    0.00390625
    """
    check_keep_prob(keep_prob)
    return (keep_prob**2 + (1 - keep_prob) ** 2) ** rank


def expected_equal_pairs(rank: int, *, keep_prob: float, steps: int) -> float:
    """Expected number C(T, 2) (q^2 + (1 - q)^2)^r of pairs of equal masks among T steps."""
    return math.comb(steps, 2) * mask_collision_rate(rank, keep_prob=keep_prob)


def equal_pairs_variance(rank: int, *, keep_prob: float, steps: int) -> float:
    """Variance of the number of pairs of equal masks among T steps.

    C(T, 2) p (1 - p) + T (T - 1) (T - 2) (p_3 - p^2), with p = (q^2 + (1 - q)^2)^r and
    p_3 = (q^3 + (1 - q)^3)^r: pairs that share a mask are correlated unless q = 1/2.
    """
    pair = mask_collision_rate(rank, keep_prob=keep_prob)
    triple = (keep_prob**3 + (1 - keep_prob) ** 3) ** rank
    variance = math.comb(steps, 2) * pair * (1 - pair)
    return variance + steps * (steps - 1) * (steps - 2) * (triple - pair**2)


def coverage_pmf(directions: int, *, keep_prob: float) -> Float[np.ndarray, " steps"]:
    """Law of the step T by which each of R directions has been kept, P(T = 0), P(T = 1), ...

    P(T <= t) = (1 - (1 - q)^t)^R, up to where the rest is below 1e-18.

    >>> coverage_pmf(2, keep_prob=0.5)[:3].tolist()
    [0.0, 0.25, 0.3125]
    """
    check_keep_prob(keep_prob)
    if keep_prob == 1:
        return np.array([0.0, 1.0])
    last = math.ceil(math.log(1e-18 / directions) / math.log1p(-keep_prob))
    cdf = (-np.expm1(np.arange(last + 1) * math.log1p(-keep_prob))) ** directions
    return np.diff(cdf, prepend=0)


def coverage_time(directions: int, *, keep_prob: float) -> float:
    """Expected number of steps until each of R directions has been kept at least once.

    E T = sum_{t >= 0} [1 - (1 - (1 - q)^t)^R], the mean maximum of R geometric variables; R is
    r L for L layers with masks of their own. All terms are positive, and the sum ends where the
    rest, at most R (1 - q)^t / q, cannot change it. The finite inclusion-exclusion sum for the
    same number alternates in sign and is useless in floating point from R of about 50.

    >>> round(coverage_time(64, keep_prob=0.5), 3)
    7.344
    """
    check_keep_prob(keep_prob)
    if directions < 1:
        raise ValueError(f"directions must be at least 1, not {directions}")
    if keep_prob == 1:
        return 1.0
    enough = math.log(keep_prob * np.finfo(float).eps / directions) / math.log1p(-keep_prob)
    never_kept = (1 - keep_prob) ** np.arange(1, math.ceil(enough) + 1)
    return 1.0 + math.fsum(-np.expm1(directions * np.log1p(-never_kept)))


def pair_coverage_bounds(rank: int, *, keep_prob: float, steps: int) -> Bounds:
    """Bounds on P(some pair of coordinates has never been kept together after t steps).

    Bonferroni: S1 - S2 <= P <= S1 with

        S1 = C(r, 2) (1 - q^2)^t
        S2 = r (r-1) (r-2) / 2 (1 - 2 q^2 + q^3)^t + C(r, 2) C(r-2, 2) / 2 (1 - q^2)^{2 t},

    cut to [0, 1]. Sharp once S1 is well below 1; void (lower bound 0, upper bound 1) before.
    """
    check_keep_prob(keep_prob)
    together = keep_prob**2
    pairs = math.comb(rank, 2)
    touching = rank * math.comb(rank - 1, 2) if rank > 1 else 0
    disjoint = pairs * math.comb(rank - 2, 2) / 2 if rank > 1 else 0
    first = pairs * (1 - together) ** steps
    second = touching * (1 - 2 * together + keep_prob**3) ** steps
    second += disjoint * (1 - together) ** (2 * steps)
    return Bounds(lower=max(0.0, first - second), upper=min(1.0, first))


def untouched_probability(*, keep_prob: float, tokens: int) -> float:
    """Probability (1 - q)^N that a given rank coordinate is masked at all N tokens of a batch.

    With masks per token this is the chance that the coordinate gets no gradient in a step; with
    masks per sample N counts samples, and with a mask per step N = 1.

    >>> untouched_probability(keep_prob=0.5, tokens=4)
    0.0625
    """
    check_keep_prob(keep_prob)
    return (1 - keep_prob) ** tokens


def _binomial_pmf(
    outcomes: Int[np.ndarray, " outcomes"], n: int, p: float
) -> Float[np.ndarray, " outcomes"]:
    """P(X = k) for X ~ Bin(n, p); `scipy.stats`, which has it, takes long to import."""
    rest = np.maximum(n - outcomes, 0)
    if n <= MAX_PRODUCT:
        return np.asarray(scipy.special.binom(n, outcomes) * p**outcomes * (1 - p) ** rest)
    log_binom = (
        scipy.special.gammaln(n + 1)
        - scipy.special.gammaln(outcomes + 1)
        - scipy.special.gammaln(rest + 1)
    )
    pmf = np.exp(log_binom + scipy.special.xlogy(outcomes, p) + scipy.special.xlog1py(rest, -p))
    return np.where(outcomes <= n, pmf, 0.0)
