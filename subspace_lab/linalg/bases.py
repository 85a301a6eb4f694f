"""Orthonormal bases of column spaces, and the one rule by which columns count as dependent.

Columns are scaled to unit length, so that the rank of a frame does not depend on the lengths of
its columns. A direction is dependent when its singular value is at most 1e-13 times the largest
one of the whole frame. Masking a frame cannot lower its smallest singular value (interlacing): a
frame without dependent directions has none in any of its masked parts.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from .triangular import RANK_TOLERANCE, triangular_factor

# Bounds within which the rule needs no singular values. They leave room for rounding: a product of
# entries <= 1 above 1e-11 has no entry below, and R's are accurate to some 1e-15; the inverse of
# a matrix of condition number 1e6 has ten correct digits.
LEAST_VOLUME = 1e-11
LARGEST_CONDITION = 1e6


def unit_frame(
    X: Float[Tensor, "*batch d k"],
) -> tuple[Float64[Tensor, "*batch d k"], Bool[Tensor, "*batch"]]:
    """X with columns of unit length (zero columns stay), and whether they are independent."""
    X = X.to(torch.float64)
    norms = X.square().sum(-2, keepdim=True).sqrt()  # several times faster than vector_norm
    X = X / torch.where(norms > 0, norms, 1.0)
    if X.shape[-2] < X.shape[-1]:
        return X, torch.zeros(X.shape[:-2], dtype=torch.bool, device=X.device)
    square = X.shape[-2] == X.shape[-1]
    triangular = square and not X.tril(-1).any()
    return X, _independent(X if triangular else triangular_factor(X))


def _independent(R: Float64[Tensor, "*batch k k"]) -> Bool[Tensor, "*batch"]:
    """Whether sigma_k > 1e-13 sigma_1, of upper triangular R with columns of length 1 or 0.

    Each test is made where the cheaper ones before it leave doubt.

    1. The volume |det R| = prod |R_ii| = prod sigma_i. The squares of sigma_1, ..., sigma_{k-1}
       sum to at most k, so their product is at most (k / (k - 1))^{(k - 1) / 2} < sqrt(e) (means):
       sigma_k > |det R| / sqrt(e), and sigma_1 <= sqrt(k).
    2. The condition number, sigma_1 / sigma_k <= ||R||_F ||R^{-1}||_F.
    3. The singular values.
    """
    independent = R.diagonal(dim1=-2, dim2=-1).prod(-1).abs() > LEAST_VOLUME
    if (doubtful := ~independent).any():
        some = R[doubtful]
        identity = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(some)
        inverse = torch.linalg.solve_triangular(some, identity, upper=True)
        condition = torch.linalg.matrix_norm(some) * torch.linalg.matrix_norm(inverse)
        independent[doubtful] = condition < LARGEST_CONDITION  # false for a singular R's nan, too
    if (doubtful := ~independent).any():
        sigma = torch.linalg.svdvals(R[doubtful])
        independent[doubtful] = sigma[..., -1] > RANK_TOLERANCE * sigma[..., 0]
    return independent


def dependence_tolerance(frame: Float64[Tensor, "*batch d k"]) -> Float64[Tensor, "*batch"]:
    """Singular values of parts of a unit frame that are at most this large count as zero."""
    norm: Tensor = torch.linalg.matrix_norm(frame, ord=2)
    return RANK_TOLERANCE * norm


def orthonormal_basis(
    X: Float64[Tensor, "*batch d k"], tolerance: Float64[Tensor, "*batch"]
) -> tuple[Float64[Tensor, "*batch d q"], Int[Tensor, "*batch"]]:
    """Left singular vectors of X (..., d, min(d, k)), those of dependent directions set to zero.

    Returns:
        The basis and its dimension (...). The zero columns come last.
    """
    U, sigma, _ = torch.linalg.svd(X, full_matrices=False)
    independent = sigma > tolerance[..., None]
    return U * independent[..., None, :], independent.sum(-1)


def reject(
    X: Float64[Tensor, "*batch d k"], Q: Float64[Tensor, "*batch d l"]
) -> Float64[Tensor, "*batch d k"]:
    """(I - Q Q^T) X, applied twice to be orthogonal to Q to working precision."""
    X = X - Q @ (Q.mT @ X)
    return X - Q @ (Q.mT @ X)
