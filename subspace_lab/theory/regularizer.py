"""T7: what a rank mask adds to a squared loss, and the nuclear norm behind it.

For outputs y_t = γ s B diag(d) A x_t the expected squared loss is a fit term plus an explicit
penalty on the factors, the same for masks per step, sample and token: the loss is a sum over
tokens, so only the law of each token's own mask matters. Exact for one linear layer under a
squared loss; for deep networks or cross-entropy it is a local picture at best.

Sources: Cavazza et al. 2018 (Dropout as a low-rank regularizer for matrix factorization), Mianjy,
Arora and Vidal 2018 (On the implicit bias of dropout).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.linalg.effective_rank import nuclear_norm
from subspace_lab.linalg.spectra import singular_values
from subspace_lab.theory.mask_moments import MaskMoments, relative_variance
from subspace_lab.theory.masked_moments import gram_product


@dataclass(frozen=True)
class ExpectedLoss:
    """E L = fit + mask_penalty + input_penalty, per token."""

    fit: Float[Tensor, ""]  # ||Y - γ s B diag(E d) A X||_F^2 / N
    mask_penalty: Float[Tensor, ""]  # γ^2 s^2 sum_ij Cov(d)_ij H_ij
    input_penalty: Float[Tensor, ""]  # what input dropout adds to the mean update

    @property
    def total(self) -> Float[Tensor, ""]:
        """The expected loss itself."""
        return self.fit + self.mask_penalty + self.input_penalty


@dataclass(frozen=True)
class Factors:
    """An update as B (m, r) times A (r, n), in some gauge."""

    B: Float[Tensor, "m r"]
    A: Float[Tensor, "r n"]


def expected_squared_loss(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    X: Float[Tensor, "n N"],
    Y: Float[Tensor, "m N"],
    law: MaskMoments,
    *,
    scaling: float = 1.0,
    rescale: float = 1.0,
    input_keep_prob: float = 1.0,
) -> ExpectedLoss:
    """E (1/N) ||Y - γ s B D A (E ∘ X)||_F^2 over rank masks D and input dropout E.

    With C = Cov(d), Σ = X X^T / N, λ_x = (1 - q_x) / q_x, Σ' = Σ + λ_x diag(Σ) and the mean
    update W = γ s B diag(E d) A,

        fit           = ||Y - W X||_F^2 / N
        mask_penalty  = γ^2 s^2 sum_ij C_ij (B^T B)_ij (A Σ' A^T)_ij
        input_penalty = λ_x tr(W diag(Σ) W^T).

    For Bernoulli(q) masks the mask penalty is γ^2 s^2 q (1 - q) R, with R from
    `explicit_regularizer`: λ γ^2 R, λ = (1 - q) / q, with s = 1/q, and q (1 - q) γ^2 R without a
    rescale (s = 1). Input dropout is per element and rescaled by 1/q_x, as `nn.Dropout`.
    """
    B, A, X, Y = B.double(), A.double(), X.double(), Y.double()
    second_moment = X @ X.mT / X.shape[-1]
    update = scaling * rescale * (B * torch.from_numpy(law.mean)) @ A
    H = gram_product(B, A, second_moment=_with_input_dropout(second_moment, input_keep_prob))
    energies = second_moment.diagonal() * relative_variance(keep_prob=input_keep_prob)
    return ExpectedLoss(
        fit=(Y - update @ X).square().sum() / X.shape[-1],
        mask_penalty=(scaling * rescale) ** 2 * (torch.from_numpy(law.covariance) * H).sum(),
        input_penalty=(update.square() * energies).sum(),
    )


def explicit_regularizer(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
    input_keep_prob: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """The penalty R = sum_i ||b_i||^2 ||a_i||_Σ'^2 of Bernoulli masks, up to γ^2 s^2 q (1 - q).

    Σ' = Σ + λ_x diag(Σ) where the inputs have dropout, else Σ; Σ None is the identity. R depends
    on the gauge: take it from the trained B and A (or their cores), never from a decomposition of
    their product.
    """
    if second_moment is None:
        second_moment = torch.eye(A.shape[-1], dtype=torch.float64, device=A.device)
    H = gram_product(B, A, second_moment=_with_input_dropout(second_moment, input_keep_prob))
    return H.diagonal(dim1=-2, dim2=-1).sum(-1)


def nuclear_norm_bound(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Lower bound ||B A Σ^{1/2}||_*^2 / r on R over all gauges of the same update.

    Equality iff all ||b_i|| ||a_i||_Σ are equal and sum to the nuclear norm, which a gauge attains
    for every r >= rank (`equalised_factors`). Minimised over the gauge, the masked loss of
    Bernoulli masks with s = 1/q is thus the fit plus (λ / r) ||dW Σ^{1/2}||_*^2, dW = γ B A,
    whatever γ. Without a rescale (s = 1) the fit is that of the mean update W = q dW, whose penalty
    is again (λ / r) ||W Σ^{1/2}||_*^2.
    """
    weighted = A.double() if second_moment is None else A.double() @ _square_root(second_moment)
    return nuclear_norm(singular_values(B, weighted)) ** 2 / B.shape[-1]


def equalised_factors(
    update: Float[Tensor, "m n"],
    *,
    rank: int,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Factors:
    """Factor an update in the gauge that attains the nuclear-norm bound, for any r.

    With the singular value decomposition U S V^T of dW Σ^{1/2} and an orthogonal Q for which
    Q^T S Q has a constant diagonal (Schur-Horn; here by r - 1 plane rotations),

        B = U S^{1/2} Q,   A Σ^{1/2} = Q^T S^{1/2} V^T,

    so that ||b_i||^2 = ||a_i||_Σ^2 = ||dW Σ^{1/2}||_* / r. Σ must be invertible. An update of a
    rank above r is truncated to its r leading singular values.

    >>> factors = equalised_factors(torch.diag(torch.tensor([3.0, 1.0])), rank=2)
    >>> factors.B.square().sum(0).round(decimals=12)
    tensor([2., 2.], dtype=torch.float64)
    """
    root = None if second_moment is None else _square_root(second_moment)
    weighted = update.double() if root is None else update.double() @ root
    U, S, Vh = torch.linalg.svd(weighted, full_matrices=False)
    # Rounding of size ε would enter the factors as sqrt(ε).
    rounding = max(update.shape) * torch.finfo(S.dtype).eps * S[0]
    kept = min(rank, int((rounding < S).sum()))
    halves = torch.zeros(kept, rank, dtype=torch.float64)
    halves[:, :kept] = S[:kept].sqrt().diag()
    spectrum = torch.zeros(rank, dtype=torch.float64)
    spectrum[:kept] = S[:kept]
    rotated = halves @ _constant_diagonal_rotation(spectrum)
    A = rotated.mT @ Vh[:kept]
    return Factors(
        B=U[:, :kept] @ rotated,
        A=A if root is None else torch.linalg.solve(root, A, left=False),
    )


def _constant_diagonal_rotation(spectrum: Float[Tensor, " r"]) -> Float[Tensor, "r r"]:
    """Orthogonal Q such that every diagonal entry of Q^T diag(spectrum) Q is the mean."""
    rank, mean = len(spectrum), spectrum.mean()
    matrix, Q = spectrum.diag(), torch.eye(rank, dtype=spectrum.dtype)
    for _ in range(rank - 1):
        # Rotate the largest against the smallest entry until the first is the mean.
        i, j = int(matrix.diagonal().argmax()), int(matrix.diagonal().argmin())
        above, below, cross = matrix[i, i] - mean, matrix[j, j] - mean, matrix[i, j]
        if above <= 0 or below >= 0:
            break
        tangent = (cross + (cross**2 - above * below).sqrt()) / below
        cosine = 1 / (1 + tangent**2).sqrt()
        plane = torch.eye(rank, dtype=spectrum.dtype)
        plane[i, i] = plane[j, j] = cosine
        plane[i, j], plane[j, i] = tangent * cosine, -tangent * cosine
        matrix, Q = plane.mT @ matrix @ plane, Q @ plane
    return Q


def _with_input_dropout(
    second_moment: Float[Tensor, "n n"], input_keep_prob: float
) -> Float[Tensor, "n n"]:
    second_moment = second_moment.double()
    strength = relative_variance(keep_prob=input_keep_prob)
    return second_moment + strength * second_moment.diagonal().diag()


def _square_root(second_moment: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Symmetric square root; eigenvalues below zero by rounding count as zero."""
    values, vectors = torch.linalg.eigh(second_moment.double())
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root
