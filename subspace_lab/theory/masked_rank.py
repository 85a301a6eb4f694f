"""T6: the rank of a masked update, and how its singular values interlace with the full ones.

"Half of the ranks" is a statement about the mean of a binomial. Nor does the effective rank fall
in proportion: entropy rank and stable rank of B D A equal |M| exactly only where the columns of B
and the rows of A are orthogonal with equal products ||b_i|| ||a_i||.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob


@dataclass(frozen=True)
class RankLaw:
    """Law of the rank of a masked update; `interval` is central and holds `coverage` or more."""

    pmf: Float[np.ndarray, " rank_plus_1"]  # P(rank = 0), ..., P(rank = r)
    mean: float
    variance: float
    interval: tuple[int, int]
    coverage: float


@dataclass(frozen=True)
class InterlacingBounds:
    """lower[j] <= σ_j <= upper[j] for the kept singular values, in descending order."""

    lower: Float[Tensor, "*batch kept"]
    upper: Float[Tensor, "*batch kept"]


def masked_rank_law(rank: int, *, keep_prob: float, coverage: float = 0.95) -> RankLaw:
    """Law of rank(B D A) = |M| ~ Bin(r, q) for independent coordinates, mean r q.

    Holds when every |M| columns of B and rows of A are independent (generic factors); it is an
    upper bound otherwise, and 0 at the usual start B = 0.

    >>> law = masked_rank_law(32, keep_prob=0.5)
    >>> law.mean, law.interval, round(float(law.pmf[16]), 2)
    (16.0, (10, 22), 0.14)
    """
    check_keep_prob(keep_prob)
    law = scipy.stats.binom(rank, keep_prob)
    low, high = law.ppf([(1 - coverage) / 2, (1 + coverage) / 2])
    return RankLaw(
        pmf=np.asarray(law.pmf(np.arange(rank + 1))),
        mean=rank * keep_prob,
        variance=rank * keep_prob * (1 - keep_prob),
        interval=(int(low), int(high)),
        coverage=float(law.cdf(high) - law.cdf(low - 1)),
    )


def update_interlacing(
    singular_values: Float[Tensor, "*batch r"], *, kept: int
) -> InterlacingBounds:
    """Weyl's bounds on the singular values of B D A from those of B A, with c = r - |M| dropped.

    σ_{j+c}(B A) <= σ_j(B D A) <= σ_{j-c}(B A) for j = 1..|M|; there is no upper bound for j <= c
    (inf): masking can increase even the spectral norm. Follows from rank(B A - B D A) <= c
    (Horn and Johnson, Topics in Matrix Analysis, Theorem 3.3.16).

    >>> update_interlacing(torch.tensor([3.0, 2.0, 1.0]), kept=2)
    InterlacingBounds(lower=tensor([2., 1.]), upper=tensor([inf, 3.]))
    """
    dropped = _dropped(singular_values, kept)
    unbounded = singular_values.new_full((*singular_values.shape[:-1], dropped), torch.inf)
    upper = torch.cat([unbounded, singular_values], dim=-1)[..., :kept]
    return InterlacingBounds(lower=singular_values[..., dropped:], upper=upper)


def factor_interlacing(
    singular_values: Float[Tensor, "*batch r"], *, kept: int
) -> InterlacingBounds:
    """Cauchy's bounds on the singular values of A_M (or B_M) from those of A, c = r - |M|.

    σ_{j+c}(A) <= σ_j(A_M) <= σ_j(A) for j = 1..|M| (Horn and Johnson, Topics in Matrix Analysis,
    Corollary 3.1.3).

    >>> factor_interlacing(torch.tensor([3.0, 2.0, 1.0]), kept=2)
    InterlacingBounds(lower=tensor([2., 1.]), upper=tensor([3., 2.]))
    """
    dropped = _dropped(singular_values, kept)
    return InterlacingBounds(
        lower=singular_values[..., dropped:], upper=singular_values[..., :kept]
    )


def _dropped(singular_values: Tensor, kept: int) -> int:
    rank = singular_values.shape[-1]
    if not 0 <= kept <= rank:
        raise ValueError(f"kept must lie between 0 and the {rank} singular values, not be {kept}")
    return rank - kept
