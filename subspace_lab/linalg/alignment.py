"""How an update lies in its base weight's bases, and how strongly it amplifies directions there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .spectra import LowRankSVD, frobenius_norm, singular_vectors


@dataclass(frozen=True)
class Amplification:
    """Attributes are Frobenius norms and their ratios.

    Attributes:
        update_norm: ||dW||_F.
        base_norm: ||W0||_F.
        projected_norm: ||U^T W0 V||_F with the singular vectors U, V of dW.
        factor: ||dW||_F / ||U^T W0 V||_F.
        update_to_base: ||dW||_F / ||W0||_F.
        directions: how many singular vectors of dW were used.
    """

    update_norm: float
    base_norm: float
    projected_norm: float
    factor: float
    update_to_base: float
    directions: int


@dataclass(frozen=True)
class BaseProjection:
    """An update in the leading singular bases U0, V0 of its base weight.

    Attributes:
        coefficients: U0^T dW V0 (k, k).
        left_share: ||U0^T dW||_F^2 / ||dW||_F^2, in [0, 1]; nan for dW = 0.
        right_share: ||dW V0||_F^2 / ||dW||_F^2.
        share: ||U0^T dW V0||_F^2 / ||dW||_F^2.
    """

    coefficients: Float[Tensor, "k k"]
    left_share: float
    right_share: float
    share: float


def amplification(
    W0: Float[Tensor, "m n"],
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    directions: int | None = None,
    mask: Bool[Tensor, " r"] | None = None,
    scaling: float = 1.0,
) -> Amplification:
    """Amplification factor of dW = scaling B diag(mask) A (Hu et al. 2022, LoRA, Section 7.3).

    ||dW||_F / ||U^T W0 V||_F: how much larger the update is than what the base weight already had
    in the same directions.

    Args:
        W0: base weight (m, n).
        B: left factor (m, r).
        A: right factor (r, n).
        directions: how many leading singular vectors of dW to project on; None takes its
            numerical rank.
        mask: kept rank directions (r,), True = kept; None keeps all.
        scaling: the factor in front.

    Returns:
        An `Amplification`; the factor is nan for dW = 0.
    """
    update = singular_vectors(B, A, mask=mask, scaling=scaling)
    k = int(update.numerical_rank) if directions is None else directions
    W0 = W0.to(torch.float64)
    projected = torch.linalg.matrix_norm(update.U[:, :k].T @ W0 @ update.Vh[:k].T)
    update_norm = torch.linalg.vector_norm(update.S)
    base_norm = torch.linalg.matrix_norm(W0)
    return Amplification(
        update_norm=float(update_norm),
        base_norm=float(base_norm),
        projected_norm=float(projected),
        factor=float(update_norm / projected),
        update_to_base=float(update_norm / base_norm),
        directions=k,
    )


def base_projection(
    base: LowRankSVD,
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    mask: Bool[Tensor, " r"] | None = None,
    scaling: float = 1.0,
) -> BaseProjection:
    """The update dW = scaling B diag(mask) A in the singular bases of its base weight.

    Args:
        base: the k leading triplets of W0, from `base_svd`.
        B: left factor (m, r).
        A: right factor (r, n).
        mask: kept rank directions (r,), True = kept; None keeps all.
        scaling: the factor in front.

    Returns:
        A `BaseProjection`. For a random update the shares are k / m, k / n and k^2 / (m n).
    """
    B, A = B.to(torch.float64), A.to(torch.float64)
    left, right = base.U.T @ B, A @ base.Vh.T
    norm = frobenius_norm(B, A, mask=mask)

    def share(B: Tensor, A: Tensor) -> float:
        return float((frobenius_norm(B, A, mask=mask) / norm).square())

    coefficients = left @ right if mask is None else (left * mask) @ right
    return BaseProjection(
        coefficients=scaling * coefficients,
        left_share=share(left, A),
        right_share=share(B, right),
        share=share(left, right),
    )
