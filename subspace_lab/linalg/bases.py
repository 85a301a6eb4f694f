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

from .factors import RANK_TOLERANCE, triangular_factor

CLEARLY_INDEPENDENT = 1e6
"""Condition number, bounded by an inverse, below which no singular values are needed."""


def unit_frame(
    X: Float[Tensor, "*batch d k"],
) -> tuple[Float64[Tensor, "*batch d k"], Bool[Tensor, "*batch"]]:
    """X with columns of unit length (zero columns stay), and whether they are independent.

    sigma_max / sigma_min <= ||R||_F ||R^{-1}||_F costs a fraction of the singular values. It
    settles all but ill-conditioned frames: an inverse with a condition number of 1e6 has ten
    correct digits, and 1e6 is far from the 1e13 of the rule.
    """
    X = X.to(torch.float64)
    norms = torch.linalg.vector_norm(X, dim=-2, keepdim=True)
    X = X / torch.where(norms > 0, norms, 1.0)
    if X.shape[-2] < X.shape[-1]:
        return X, torch.zeros(X.shape[:-2], dtype=torch.bool, device=X.device)
    R = triangular_factor(X)
    identity = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R)
    inverse = torch.linalg.solve_triangular(R, identity, upper=True)
    condition = torch.linalg.matrix_norm(R) * torch.linalg.matrix_norm(inverse)
    independent = condition < CLEARLY_INDEPENDENT  # false for the nan of a singular R, too
    if (doubtful := ~independent).any():
        sigma = torch.linalg.svdvals(R[doubtful])
        independent[doubtful] = sigma[..., -1] > RANK_TOLERANCE * sigma[..., 0]
    return X, independent


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
