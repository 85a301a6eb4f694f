"""Triangular factors and the r x r core of a low-rank update, in float64.

A low-rank update dW = scaling B A, B (m, r), A (r, n), is an r x r matrix seen through two
isometries: with thin QR factorizations B = Q_B R_B and A^T = Q_A R_A,

    dW = Q_B (scaling R_B R_A^T) Q_A^T,

and a rank mask D acts inside, scaling R_B D R_A^T. Whatever depends on singular values or on
angles only can be read off the triangular factors; the m x n product is never formed.

Householder QR is column-wise backward stable, whatever the condition number (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, Section 19.3). On CUDA a batched Householder QR loops over
its batch, so the factor is computed by matrix products and Cholesky factorizations instead.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import pad

EPS = torch.finfo(torch.float64).eps

# Singular values up to this multiple of the largest count as zero in every numerical rank. It is
# a constant, well above the rounding of a QR of any adapter and below any ratio in double
# precision that can still be trusted, so that the same rule holds for all masks of one frame.
RANK_TOLERANCE = 1e-13

# What rounding makes of a product that is zero, relative to sum_i ||b_i|| ||a_i||: the triangular
# factors and the product are off by about half a unit roundoff of that sum, whatever the size.
PRODUCT_TOLERANCE = 1e-14

Algorithm = Literal["householder", "cholesky"]


def triangular_factor(
    X: Float[Tensor, "*batch n k"], *, algorithm: Algorithm | None = None
) -> Float64[Tensor, "*batch k k"]:
    """Upper triangular R with R^T R = X^T X and a non-negative diagonal.

    The triangular QR factor of X for any shape and any rank; where n < k, zero rows are appended.
    Full column rank makes R unique, so that both algorithms agree to rounding.

    Args:
        X: matrices (..., n, k) of any floating type; raised to float64 first.
        algorithm: ``"householder"`` (LAPACK) or ``"cholesky"`` (shifted CholeskyQR, made of matrix
            products, for GPUs); None takes the first on the CPU and the second on CUDA.

    Returns:
        R (..., k, k) in float64.

    Raises:
        ValueError: if the algorithm is unknown.

    >>> triangular_factor(torch.tensor([[3.0], [4.0]]))
    tensor([[5.]], dtype=torch.float64)
    """
    X = X.to(torch.float64)
    if algorithm is None:
        algorithm = "cholesky" if X.is_cuda else "householder"
    if algorithm == "householder":
        return _householder(X)
    if algorithm == "cholesky":
        return _shifted_cholesky(X)
    raise ValueError(f"algorithm must be 'householder' or 'cholesky', not {algorithm!r}")


def _householder(X: Float64[Tensor, "*batch n k"]) -> Float64[Tensor, "*batch k k"]:
    R = torch.linalg.qr(X, mode="r").R
    R = pad(R, (0, 0, 0, R.shape[-1] - R.shape[-2]))
    return torch.where(R.diagonal(dim1=-2, dim2=-1)[..., None] < 0, -R, R)


def _shifted_cholesky(X: Float64[Tensor, "*batch n k"]) -> Float64[Tensor, "*batch k k"]:
    """Repeated shifted CholeskyQR: X = Q R with Q preconditioned until its Gram matrix is safe.

    One pass factors Q^T Q + shift I = T^T T and replaces Q by Q T^{-1}, with the shift of Fukaya,
    Kannan, Nakatsukasa, Yamamoto and Yanagisawa (2020, SIAM J. Sci. Comput. 42(1)) under which the
    Cholesky factorization cannot break down. Only the last pass needs its shift removed from
    R^T R = X^T X; division by sqrt(1 + shift) does that for every direction that the earlier
    passes have made orthonormal. What is left of it after four passes, the product of the square
    roots of the four shifts, lies below the unit roundoff, so that exactly dependent and zero
    columns need no case of their own.
    """
    n, k = X.shape[-2:]
    norms = torch.linalg.vector_norm(X, dim=-2)
    Q = X / torch.where(norms > 0, norms, 1)[..., None, :]
    R = torch.diag_embed(norms)
    identity = torch.eye(k, dtype=X.dtype, device=X.device)
    shift = 11 * (n * k + k * (k + 1)) * EPS / 2
    for spectral_bound in (k, 1, 1, 1):  # ||Q||_2^2: k for unit columns, then at most 1
        T = torch.linalg.cholesky(Q.mT @ Q + spectral_bound * shift * identity, upper=True)
        Q = torch.linalg.solve_triangular(T, Q, upper=True, left=False)
        R = T @ R
    return R / math.sqrt(1 + shift)


def update_core(
    B: Float[Tensor, "*#batch m r"],
    A: Float[Tensor, "*#batch r n"],
    *,
    mask: Bool[Tensor, "*#batch r"] | None = None,
    scaling: float = 1.0,
) -> Float64[Tensor, "*out"]:
    """The core scaling R_B diag(mask) R_A^T of scaling B diag(mask) A.

    Singular values, and so every unitarily invariant norm, are those of the m x n matrix.

    Args:
        B: left factors (..., m, r). With m <= r it is taken as it is (a core's R_B, say).
        A: right factors (..., r, n). With n <= r it is taken as it is (a core's R_A^T).
        mask: kept rank directions (..., r), True = kept; None keeps all.
        scaling: alpha / r, alpha / sqrt(r), times the mask's rescale factor if there is one.

    Returns:
        The core (..., min(m, r), min(n, r)) in float64.
    """
    return scaling * (masked_columns(compressed(B), mask) @ compressed(A.mT).mT)


def product_rounding(
    B: Float[Tensor, "*#batch m r"],
    A: Float[Tensor, "*#batch r n"],
    *,
    mask: Bool[Tensor, "*#batch r"] | None = None,
    scaling: float = 1.0,
) -> Float64[Tensor, "*out"]:
    """Size up to which a computed singular value of scaling B diag(mask) A is rounding alone.

    1e-14 |scaling| sum_i ||b_i|| ||a_i|| over the kept directions. Where the terms b_i a_i^T
    cancel, singular values up to here cannot be told from zero, however they compare with the
    largest one: `[B, -B] [A; A]` is zero, and its computed singular values are not.
    """
    B, A = B.to(torch.float64), A.to(torch.float64)
    lengths = torch.linalg.vector_norm(B, dim=-2) * torch.linalg.vector_norm(A, dim=-1)
    if mask is not None:
        lengths = lengths * mask
    total: Tensor = lengths.sum(-1)
    return PRODUCT_TOLERANCE * abs(scaling) * total


def compressed(X: Float[Tensor, "*batch n k"]) -> Float64[Tensor, "*batch d k"]:
    """X in min(n, k) coordinates of its column space: the triangular factor where n > k."""
    return triangular_factor(X) if X.shape[-2] > X.shape[-1] else X.to(torch.float64)


def masked_columns(
    X: Float[Tensor, "*#batch n r"], mask: Bool[Tensor, "*#batch r"] | None
) -> Float[Tensor, "*out"]:
    """X diag(mask), or X itself without a mask."""
    return X if mask is None else X * mask[..., None, :]
