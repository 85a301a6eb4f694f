"""Intruder dimensions: leading singular vectors of the merged weight without a counterpart in W0.

Shuttleworth, Andreas, Torralba and Sharma (2024, arXiv:2410.21228) call a left singular vector
among the top k of W0 + dW an intruder if its largest |cosine| with any left singular vector of W0
is below epsilon. PEFT's `reduce_intruder_dimension` uses the same definition.

It has no meaning where singular vectors are not determined, so two cases are defined here:

- Singular values of W0 that follow each other within a factor of 1 - 1e-5 form a cluster, whose
  singular vectors are arbitrary in the subspace that they span (all of them, for an isometry).
  The cosine is with that subspace, ||U_c^T u||. A cluster of one gives the published definition.
- Vectors of singular values that are zero to rounding are arbitrary: those of W0 count as no
  counterpart, and those of W0 + dW as no intruders.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .merged import base_svd, merged_svd
from .spectra import LowRankSVD

CLUSTER_GAP = 1e-5  # relative gap below which singular values share a cluster


@dataclass(frozen=True)
class IntruderDimensions:
    """The top k left singular vectors of W0 + dW against those of W0.

    Attributes:
        singular_values: of the merged weight, descending (k,).
        max_cosine: largest |cosine| with a given base vector, or cluster of them; nan past the
            numerical rank of the merged weight (k,).
        unseen_cosine: upper bound on the |cosine| with base vectors that were not given, and with
            the last given cluster, which they may extend: sqrt(1 - sum of the squared cosines with
            the clusters before); 0 if all were given (k,).
        intruder: max_cosine and unseen_cosine are below epsilon (k,).
        undecided: only max_cosine is: more base vectors are needed to tell (k,).
        residual: of the merged triplets, as in `LowRankSVD`.
    """

    singular_values: Float[Tensor, " k"]
    max_cosine: Float[Tensor, " k"]
    unseen_cosine: Float[Tensor, " k"]
    intruder: Bool[Tensor, " k"]
    undecided: Bool[Tensor, " k"]
    residual: Float[Tensor, ""]


def intruder_dimensions(
    W0: Float[Tensor, "m n"],
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    base: LowRankSVD | None = None,
    top_k: int = 10,
    epsilon: float = 0.5,
    mask: Bool[Tensor, " r"] | None = None,
    scaling: float = 1.0,
    row_scaling: Float[Tensor, " m"] | None = None,
) -> IntruderDimensions:
    """Intruder dimensions of W0 + scaling B diag(mask) A; only k x n similarities are formed.

    With `row_scaling` c, as in DoRA, the merged weight is diag(c) (W0 + scaling B diag(mask) A).

    Args:
        W0: base weight (m, n).
        B: left factor (m, r).
        A: right factor (r, n).
        base: `base_svd(W0)`; None computes all its triplets. With fewer
            triplets some vectors may stay undecided.
        top_k: how many singular vectors of the merged weight to test.
        epsilon: cosine below which a vector is an intruder.
        mask: kept rank directions (r,), True = kept; None keeps all.
        scaling: the factor in front of B A.
        row_scaling: c (m,); None: all 1.

    Returns:
        An `IntruderDimensions` in float64.
    """
    base = base_svd(W0) if base is None else base
    if row_scaling is not None:
        W0, B = row_scaling[:, None] * W0, row_scaling[:, None] * B
    merged = merged_svd(W0, B, A, rank=top_k, mask=mask, scaling=scaling)
    squares = _cluster_energies(merged.U, base)
    max_cosine = squares.amax(dim=-1).sqrt().clamp(max=1)
    complete = base.S.shape[-1] == min(W0.shape) or base.numerical_rank < base.S.shape[-1]
    unseen = torch.zeros_like(max_cosine)
    if not complete:
        unseen = (1 - squares[:, :-1].sum(-1)).clamp(min=0).sqrt()
    arbitrary = torch.arange(len(merged.S), device=W0.device) >= merged.numerical_rank
    max_cosine = max_cosine.masked_fill(arbitrary, torch.nan)
    return IntruderDimensions(
        singular_values=merged.S,
        max_cosine=max_cosine,
        unseen_cosine=unseen,
        intruder=(max_cosine < epsilon) & (unseen < epsilon),
        undecided=(max_cosine < epsilon) & (unseen >= epsilon),
        residual=merged.residual,
    )


def _cluster_energies(U: Float[Tensor, "m k"], base: LowRankSVD) -> Float[Tensor, "k c"]:
    """||U_c^T u||^2 of each column u of U with each cluster c of base vectors.

    One cluster of no vectors (0) if the base is zero.
    """
    rank = int(base.numerical_rank)
    S = base.S[:rank]
    ends = S[1:] < (1 - CLUSTER_GAP) * S[:-1]
    cluster = torch.cat([ends.new_zeros(1, dtype=torch.long), ends.cumsum(-1)])[:rank]
    count = int(cluster[-1]) + 1 if rank else 1
    squares = (U.T @ base.U[:, :rank]).square()
    return squares.new_zeros(len(squares), count).index_add_(1, cluster, squares)
