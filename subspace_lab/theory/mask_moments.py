"""The first two moments of rank masks d in {0, 1}^r under several laws.

Every second-order prediction about a masked update depends on the law of the mask only through its
mean E[d] and its covariance Cov(d). The granularity (step, sample, token) does not enter: it says
which outputs share one draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from subspace_lab.theory._checks import check_keep_prob, check_kept


@dataclass(frozen=True)
class MaskMoments:
    """Mean and covariance of a mask; `mean[i]` is the probability that coordinate i is kept."""

    mean: Float[np.ndarray, " r"]
    covariance: Float[np.ndarray, "r r"]

    @property
    def second_moment(self) -> Float[np.ndarray, "r r"]:
        """The matrix E[d d^T], whose entries are the probabilities that i and j are both kept."""
        return self.covariance + np.outer(self.mean, self.mean)


def relative_variance(*, keep_prob: float) -> float:
    """Relative variance λ = Var d / (E d)^2 = (1 - q) / q of one gate d ~ Bernoulli(q).

    It is the variance of a rescaled gate d/q, and so the strength of the masks' regularizer.

    >>> relative_variance(keep_prob=0.5)
    1.0
    """
    check_keep_prob(keep_prob)
    return (1 - keep_prob) / keep_prob


def bernoulli(rank: int, *, keep_prob: float) -> MaskMoments:
    """Independent coordinates: E[d] = q, Cov(d) = q (1 - q) I.

    >>> bernoulli(2, keep_prob=0.5).covariance.tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """
    return blocks(rank, block_size=1, keep_prob=keep_prob)


def exact_k(rank: int, *, kept: int) -> MaskMoments:
    """Exactly k = `kept` of r coordinates, all subsets alike (uniform without replacement).

    With q = k / r: E[d] = q,  Cov(d)_ii = q (1 - q),  Cov(d)_ij = -q (1 - q) / (r - 1).

    Raises:
        ValueError: unless 0 <= kept <= rank.
    """
    check_kept(kept, rank)
    keep_prob = kept / rank
    variance = keep_prob * (1 - keep_prob)
    covariance = np.full((rank, rank), -variance / max(rank - 1, 1))
    np.fill_diagonal(covariance, variance)
    return MaskMoments(np.full(rank, keep_prob), covariance)


def prefix(rank: int) -> MaskMoments:
    """Nested masks 1..b with b uniform on {1, ..., r}, as in DyLoRA (Valipour et al. 2023).

    p_i = P(b >= i) = (r - i + 1) / r,  Cov(d)_ij = min(p_i, p_j) - p_i p_j.

    >>> prefix(4).mean.tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    mean = np.arange(rank, 0, -1) / rank
    return MaskMoments(mean, np.minimum(mean[:, None], mean) - np.outer(mean, mean))


def two_masks(rank: int, *, keep_prob: float) -> MaskMoments:
    """Two independent Bernoulli masks, one on B and one on A: their product, Bernoulli(q^2).

    >>> two_masks(1, keep_prob=0.5).mean.tolist()
    [0.25]
    """
    return bernoulli(rank, keep_prob=keep_prob**2)


def blocks(rank: int, *, block_size: int, keep_prob: float) -> MaskMoments:
    """Blocks of neighboring coordinates, each kept or dropped as one, independently.

    Cov(d)_ij = q (1 - q) if i and j lie in the same block, else 0. One block of size r drops the
    whole update; stacking the factors of several layers that share a mask is this law up to order.

    Raises:
        ValueError: if keep_prob lies outside (0, 1], or block_size does not divide rank.
    """
    check_keep_prob(keep_prob)
    if block_size < 1 or rank % block_size:
        raise ValueError(f"block_size {block_size} must divide rank {rank}")
    block = np.arange(rank) // block_size
    covariance = keep_prob * (1 - keep_prob) * (block[:, None] == block)
    return MaskMoments(np.full(rank, keep_prob), covariance)


def haar_diagonal(rank: int, *, kept: int) -> MaskMoments:
    """The diagonal of a Haar-random projector P of rank k = `kept` in R^r.

    P_ii ~ Beta(k / 2, (r - k) / 2), and the diagonal sums to k:

        E P_ii = k / r,  Var P_ii = 2 k (r - k) / (r^2 (r + 2)),  Cov(P_ii, P_jj) = -Var / (r - 1).

    Raises:
        ValueError: unless 0 <= kept <= rank.
    """
    check_kept(kept, rank)
    variance = 2 * kept * (rank - kept) / (rank**2 * (rank + 2))
    covariance = np.full((rank, rank), -variance / max(rank - 1, 1))
    np.fill_diagonal(covariance, variance)
    return MaskMoments(np.full(rank, kept / rank), covariance)
