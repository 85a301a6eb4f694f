"""T2: the principal angles between two masked row spaces, from the r x r Gram matrix alone.

Let I = M ∩ M' be the directions that both masks keep, D = M minus M' and D' = M' minus M. For
rows of A that are independent there are exactly |I| zero angles, and the others are the partial
canonical correlations of D and D' given I: the coordinate picture (angles 0 and 90 degrees) plus a
correction that depends on G = A A^T only. Expectations of the random-A null model are in
`linalg.nulls`. Source: derived; it is partial canonical correlation analysis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob


@dataclass(frozen=True)
class GramAngles:
    """Principal angles in ascending radians: `shared` exact zeros, then the residual angles."""

    angles: Float[Tensor, " k"]  # k = min(|M|, |M'|)
    shared: int
    residual: Float[Tensor, " j"]  # the k - shared angles between the residual subspaces


def angles_from_gram(
    gram: Float[Tensor, "r r"], mask: Bool[Tensor, " r"], next_mask: Bool[Tensor, " r"]
) -> GramAngles:
    """Principal angles between the spans of the masked rows, given their Gram matrix G = A A^T.

    cos θ are the singular values of S_DD^{-1/2} S_DD' S_D'D'^{-1/2}, where S is the Gram matrix
    of the residuals given I, S = G - G_.I G_II^{-1} G_I. The angles are 90 degrees iff the
    residuals are orthogonal. For column spaces of B give G = B^T B.

    A Gram matrix squares the condition number and arccos is flat at 0: angles below about
    1e-8 cond(A) are lost. Use `linalg.masked_angles` on factors where small angles matter.

    Raises:
        torch.linalg.LinAlgError: the kept rows are dependent.

    >>> mask, next_mask = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    >>> angles_from_gram(torch.eye(3), mask, next_mask).angles.rad2deg()
    tensor([ 0., 90.], dtype=torch.float64)
    """
    gram = gram.double()
    shared, first, second = mask & next_mask, mask & ~next_mask, next_mask & ~mask
    cross = gram[:, shared]
    given = torch.linalg.cholesky(gram[shared][:, shared])
    projected = torch.linalg.solve_triangular(given, cross.mT, upper=False)
    residual = gram - projected.mT @ projected

    def whiten(side: Tensor, block: Tensor) -> Tensor:
        root = torch.linalg.cholesky(residual[side][:, side])
        solution: Tensor = torch.linalg.solve_triangular(root, block, upper=False)
        return solution

    correlations = whiten(second, whiten(first, residual[first][:, second]).mT)
    cosines = torch.linalg.svdvals(correlations).clamp(max=1)
    zeros = torch.zeros(int(shared.sum()), dtype=torch.float64, device=gram.device)
    return GramAngles(
        angles=torch.cat([zeros, cosines.acos()]), shared=len(zeros), residual=cosines.acos()
    )


def expected_right_angles(rank: int, *, keep_prob: float) -> float:
    """Expected number of 90-degree angles between two masks' coordinate subspaces of R^r.

    E min(K, K') - E|I| = sum_{j >= 1} P(K >= j)^2 - r q^2, K ~ Bin(r, q): in coordinate space
    |I| angles are 0 and min(|M|, |M'|) - |I| are 90 degrees. The row spaces of orthogonal rows
    have the same angles.

    >>> expected_right_angles(1, keep_prob=0.5)
    0.0
    """
    check_keep_prob(keep_prob)
    tail = scipy.stats.binom.sf(np.arange(rank), rank, keep_prob)
    return math.fsum(tail**2) - rank * keep_prob**2


def random_squared_cosines(
    n: Int[Tensor, "*modules"],
    a: Int[Tensor, "*batch"],
    b: Int[Tensor, "*batch"],
    *,
    shared: Int[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """E sum cos² θ = |I| + a b / (n - |I|) of random subspaces of R^n with |I| common directions.

    The mean of `linalg.random_angle_moments`, for many pairs of a and b further directions.

    >>> two = torch.tensor(2)
    >>> random_squared_cosines(torch.tensor(5), two, two, shared=torch.tensor(1)).item()
    2.0
    """
    return shared + a * b / (n - shared).clamp(min=1)


def right_angles_pmf(rank: int, *, keep_prob: float) -> Float[np.ndarray, " most_plus_1"]:
    """Law P(0), ..., P(r // 2) of the number of 90-degree angles of two masks in coordinates.

    It is min(|D|, |D'|), where the directions that one mask only keeps are Bin(r, 2 q (1 - q)) in
    number and fall on either side alike.

    >>> right_angles_pmf(2, keep_prob=0.5).round(12).tolist()
    [0.875, 0.125]
    """
    check_keep_prob(keep_prob)
    pmf = np.zeros(rank // 2 + 1)
    binom, apart = scipy.stats.binom, np.arange(rank + 1)
    for number, weight in enumerate(binom.pmf(apart, rank, 2 * keep_prob * (1 - keep_prob))):
        first = np.arange(number + 1)
        right = np.minimum(first, number - first)
        np.add.at(pmf, right, weight * binom.pmf(first, number, 0.5))
    return pmf
