"""Singular values, singular vectors, norms and inner products of scaling B diag(mask) A.

All of them cost O((m + n) r^2) for the triangular factors and O(r^3) for each mask. Masks
batch by broadcasting: factors B (m, r), A (r, n) with masks (T, r) give T spectra.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from .triangular import RANK_TOLERANCE, masked_columns, product_rounding, update_core


@dataclass(frozen=True)
class LowRankSVD:
    """A truncated singular value decomposition U diag(S) Vh with the evidence for it.

    Attributes:
        U: left singular vectors, orthonormal columns (..., m, k).
        S: singular values, descending (..., k).
        Vh: right singular vectors, orthonormal rows (..., k, n).
        numerical_rank: how many values exceed 1e-13 times the largest, and the rounding of the
            product that M is (...).
        residual: max(||M V - U S||_F, ||M^T U - V S||_F) / ||S||_F against the matrix M that was
            decomposed; 0 for M = 0 (...).
    """

    U: Float[Tensor, "*batch m k"]
    S: Float[Tensor, "*batch k"]
    Vh: Float[Tensor, "*batch k n"]
    numerical_rank: Int[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]


def singular_values(
    B: Float[Tensor, "*#batch m r"],
    A: Float[Tensor, "*#batch r n"],
    *,
    mask: Bool[Tensor, "*#batch r"] | None = None,
    scaling: float = 1.0,
) -> Float64[Tensor, "*out r"]:
    """Singular values of scaling B diag(mask) A, descending, without the m x n product.

    sigma(B D A) = sigma(R_B D R_A^T) with the triangular factors of B and A^T. The rank is at most
    the number of kept directions (and at most m and n), so the values past it are exact zeros,
    and so are values that cannot be told from the rounding of the product (`product_rounding`).
    The absolute error is a small multiple of 1e-16 |scaling| sum_i ||b_i|| ||a_i||.

    Args:
        B: left factors (..., m, r); no QR is taken where m <= r.
        A: right factors (..., r, n); no QR is taken where n <= r.
        mask: kept rank directions (..., r), True = kept; None keeps all.
        scaling: the factor in front.

    Returns:
        (..., r) in float64.

    >>> B = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> singular_values(B, B.T, mask=torch.tensor([[True, True], [False, True]]))
    tensor([[9., 4.],
            [4., 0.]], dtype=torch.float64)
    """
    sigma = torch.linalg.svdvals(update_core(B, A, mask=mask, scaling=scaling))
    sigma = pad(sigma, (0, B.shape[-1] - sigma.shape[-1]))
    rounding = product_rounding(B, A, mask=mask, scaling=scaling)
    sigma = torch.where(sigma <= rounding[..., None], 0.0, sigma)
    if mask is None:
        return sigma
    position = torch.arange(sigma.shape[-1], device=sigma.device)
    return torch.where(position < mask.sum(-1, keepdim=True), sigma, 0.0)


def singular_vectors(
    B: Float[Tensor, "*#batch m r"],
    A: Float[Tensor, "*#batch r n"],
    *,
    mask: Bool[Tensor, "*#batch r"] | None = None,
    scaling: float = 1.0,
    rank: int | None = None,
) -> LowRankSVD:
    """Singular value decomposition of scaling B diag(mask) A, without the m x n product.

    With B = Q_B R_B, A^T = Q_A R_A and the SVD of the core, R_B D R_A^T = U_c S V_c^T, the
    singular vectors are Q_B U_c and Q_A V_c.

    Args:
        B: left factors (..., m, r).
        A: right factors (..., r, n).
        mask: kept rank directions (..., r), True = kept; None keeps all.
        scaling: the factor in front.
        rank: how many triplets to return; None returns min(m, r, n).

    Returns:
        A `LowRankSVD` in float64. Vectors past the numerical rank are orthonormal, but arbitrary.
    """
    B, A = B.to(torch.float64), A.to(torch.float64)
    Q_B, R_B = _thin_qr(B)
    Q_A, R_A = _thin_qr(A.mT)
    U, S, Vh = torch.linalg.svd(scaling * (masked_columns(R_B, mask) @ R_A.mT), full_matrices=False)
    U, S, Vh = (Q_B @ U)[..., :rank], S[..., :rank], (Vh @ Q_A.mT)[..., :rank, :]
    BD = scaling * masked_columns(B, mask)
    rounding = product_rounding(B, A, mask=mask, scaling=scaling)
    S = torch.where(rounding[..., None] >= S, 0.0, S)
    MV, MtU = BD @ (A @ Vh.mT), A.mT @ (BD.mT @ U)
    return with_evidence(U, S, Vh, MV=MV, MtU=MtU, rounding=rounding)


def with_evidence(
    U: Float64[Tensor, "*batch m k"],
    S: Float64[Tensor, "*batch k"],
    Vh: Float64[Tensor, "*batch k n"],
    *,
    MV: Float64[Tensor, "*batch m k"],
    MtU: Float64[Tensor, "*batch n k"],
    rounding: Float64[Tensor, "*batch"],
) -> LowRankSVD:
    """The triplets of a matrix M with their numerical rank and residual.

    Args:
        U: left singular vectors.
        S: singular values, descending.
        Vh: right singular vectors.
        MV: M V, computed from M.
        MtU: M^T U.
        rounding: size up to which a singular value of M cannot be told from zero.
    """
    right = torch.linalg.matrix_norm(MV - U * S[..., None, :])
    left = torch.linalg.matrix_norm(MtU - Vh.mT * S[..., None, :])
    norm = torch.linalg.vector_norm(S, dim=-1)
    return LowRankSVD(
        U=U,
        S=S,
        Vh=Vh,
        numerical_rank=S.gt(torch.maximum(RANK_TOLERANCE * S[..., :1], rounding[..., None])).sum(
            -1
        ),
        residual=torch.maximum(left, right) / torch.where(norm > 0, norm, 1.0),
    )


def _thin_qr(X: Float64[Tensor, "*batch n k"]) -> tuple[Tensor, Tensor]:
    if X.shape[-2] <= X.shape[-1]:
        return torch.eye(X.shape[-2], dtype=X.dtype, device=X.device), X
    Q, R = torch.linalg.qr(X)
    return Q, R


def frobenius_norm(
    B: Float[Tensor, "*#batch m r"],
    A: Float[Tensor, "*#batch r n"],
    *,
    mask: Bool[Tensor, "*#batch r"] | None = None,
    scaling: float = 1.0,
) -> Float64[Tensor, "*out"]:
    """||scaling B diag(mask) A||_F as the Frobenius norm of the r x r core.

    The trace of Gram matrices, sqrt(tr(B^T B D A A^T D)), is the same number but loses half the
    digits where B A is much smaller than B and A are. A product that cannot be told from zero (see
    `product_rounding`) has norm 0.
    """
    norm = torch.linalg.matrix_norm(update_core(B, A, mask=mask, scaling=scaling))
    return torch.where(norm <= product_rounding(B, A, mask=mask, scaling=scaling), 0.0, norm)


def inner_product(
    B1: Float[Tensor, "*#batch m r"],
    A1: Float[Tensor, "*#batch r n"],
    B2: Float[Tensor, "*#batch m s"],
    A2: Float[Tensor, "*#batch s n"],
) -> Float64[Tensor, "*out"]:
    """<B1 A1, B2 A2>_F = tr((B1^T B2) (A2 A1^T)), from r x s products only.

    Masks and scalings go in with the factors. The absolute error is a small multiple of
    1e-16 ||B1||_F ||A1||_F ||B2||_F ||A2||_F.
    """
    B1, A1, B2, A2 = (X.to(torch.float64) for X in (B1, A1, B2, A2))
    return ((B1.mT @ B2) * (A1 @ A2.mT)).sum((-2, -1))
