"""T5: mean, variance and norms of the masked update dW_D = γ s B diag(d) A under any mask law.

Everything depends on the factors through r x r Gram matrices, above all

    H = (B^T B) ∘ (A Σ A^T),
    sum_ij H_ij = ||B A Σ^{1/2}||_F^2,   tr H = sum_i ||b_i||^2 ||a_i||_Σ^2,

so rank cores (r x r triangular factors with the same Grams) may stand in for B and A wherever
the result is a number. Σ = X X^T / N is the second moment of the inputs; None means the identity,
which turns output energies into squared Frobenius norms. Sources: elementary; the matrix
Bernstein inequality is Theorem 6.1.1 of Tropp, "An Introduction to Matrix Concentration
Inequalities" (2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.linalg.spectra import frobenius_norm, singular_values
from subspace_lab.linalg.triangular import compressed
from subspace_lab.theory._checks import check_keep_prob
from subspace_lab.theory.mask_moments import MaskMoments


@dataclass(frozen=True)
class UpdateCovariance:
    """E[Z Z^T] (m x m) and E[Z^T Z] (n x n) of the centred update Z = dW_D - E dW_D."""

    left: Float[Tensor, "*batch m m"]
    right: Float[Tensor, "*batch n n"]


def gram_product(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "*batch r r"]:
    """The matrix H = (B^T B) ∘ (A Σ A^T) of inner products of the r rank-one terms b_i a_i^T."""
    A = A.double()
    weighted = A if second_moment is None else A @ second_moment.double()
    return (B.mT.double() @ B.double()) * (weighted @ A.mT)


def masked_energy(
    H: Float[Tensor, "*batch r r"], gates: Float[Tensor, "*masks r"]
) -> Float[Tensor, "*masks"]:
    """||B diag(d) A Σ^{1/2}||_F^2 = d^T H d for gates d, with H from `gram_product`."""
    energy: Tensor = torch.einsum("...i,...ij,...j->...", gates, H, gates)
    return energy


def update_mean(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    law: MaskMoments,
    *,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> Float[Tensor, "*batch m n"]:
    """E[dW_D] = γ s B diag(E d) A; for a law of one keep_prob q this is s q dW."""
    return scaling * rescale * (B.double() * torch.from_numpy(law.mean)) @ A.double()


def update_variance(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    law: MaskMoments,
    *,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> Float[Tensor, "*batch m n"]:
    """Variance of each entry of dW_D, with C = Cov(d).

    Var (dW_D)_uv = γ^2 s^2 sum_ij C_ij B_ui B_uj A_iv A_jv, which for Bernoulli masks is
    γ^2 s^2 q (1 - q) [(B ∘ B)(A ∘ A)]_uv.
    """
    # C = V diag(w) V^T turns the double sum into squares of r ordinary products.
    weights, vectors = torch.linalg.eigh(torch.from_numpy(law.covariance))
    terms = torch.einsum("...ui,ik,...iv->...kuv", B.double(), vectors, A.double())
    return (scaling * rescale) ** 2 * torch.einsum("k,...kuv->...uv", weights, terms**2)


def update_covariance(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    law: MaskMoments,
    *,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> UpdateCovariance:
    """Left and right covariance of dW_D.

    γ^2 s^2 B (C ∘ A A^T) B^T and γ^2 s^2 A^T (C ∘ B^T B) A, with C = Cov(d); for Bernoulli masks
    the middle is q (1 - q) diag(||a_i||^2), and q (1 - q) diag(||b_i||^2).
    """
    B, A, covariance = B.double(), A.double(), torch.from_numpy(law.covariance)
    factor = (scaling * rescale) ** 2
    return UpdateCovariance(
        left=factor * B @ (covariance * (A @ A.mT)) @ B.mT,
        right=factor * A.mT @ (covariance * (B.mT @ B)) @ A,
    )


def output_energy_variance(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    law: MaskMoments,
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Total variance of the output over masks, E||(dW_D - E dW_D) x||^2 averaged over inputs.

    γ^2 s^2 sum_ij Cov(d)_ij H_ij. Bernoulli: γ^2 s^2 q (1 - q) tr H. Exact-k, q = k / r:
    γ^2 s^2 q (1 - q) [r tr H - ||B A Σ^{1/2}||_F^2] / (r - 1).
    """
    H = gram_product(B, A, second_moment=second_moment)
    return (scaling * rescale) ** 2 * (torch.from_numpy(law.covariance) * H).sum((-2, -1))


def expected_output_energy(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    law: MaskMoments,
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """E||dW_D Σ^{1/2}||_F^2 = γ^2 s^2 sum_ij E[d_i d_j] H_ij; without Σ, E||dW_D||_F^2.

    Bernoulli: γ^2 s^2 [q^2 ||B A Σ^{1/2}||_F^2 + q (1 - q) sum_i ||b_i||^2 ||a_i||_Σ^2].
    """
    H = gram_product(B, A, second_moment=second_moment)
    return (scaling * rescale) ** 2 * (torch.from_numpy(law.second_moment) * H).sum((-2, -1))


def variance_of_output_energy(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    *,
    keep_prob: float,
    second_moment: Float[Tensor, "n n"] | None = None,
    scaling: float = 1.0,
    rescale: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Variance over Bernoulli masks of ||dW_D Σ^{1/2}||_F^2, whose mean is the expected energy.

    With z = d - q, whose products of different coordinates are uncorrelated, d^T H d is a constant
    plus sum_i L_i z_i + 2 sum_{i<j} H_ij z_i z_j, L_i = H_ii + 2 q sum_{j != i} H_ij. Hence

        γ^4 s^4 [v sum_i L_i^2 + 4 v^2 sum_{i<j} H_ij^2],   v = q (1 - q).
    """
    check_keep_prob(keep_prob)
    H = gram_product(B, A, second_moment=second_moment)
    v = keep_prob * (1 - keep_prob)
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    linear = diagonal + 2 * keep_prob * (H.sum(-1) - diagonal)
    pairs = H.square().sum((-2, -1)) - diagonal.square().sum(-1)
    return (scaling * rescale) ** 4 * (v * linear.square().sum(-1) + 2 * v**2 * pairs)


def balance_ratio(
    B: Float[Tensor, "*batch m r"],
    A: Float[Tensor, "*batch r n"],
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "*batch"]:
    """The ratio ρ = sum_i ||b_i||^2 ||a_i||_Σ^2 / ||B A Σ^{1/2}||_F^2 = tr H / sum_ij H_ij.

    ||.||_*^2 / (r ||.||_F^2) <= ρ with the norms of B A Σ^{1/2}: equality when all products
    ||b_i|| ||a_i||_Σ are equal and sum to the nuclear norm. In the gauge of the singular value
    decomposition ρ = 1; it exceeds 1 when the terms cancel. nan for B A = 0, also where that is
    zero by cancellation only. The denominator is taken from the product, not from Gram matrices,
    which lose half the digits to cancellation.
    """
    H = gram_product(B, A, second_moment=second_moment)
    product = compressed(B) @ A.double()
    weighted = product if second_moment is None else product @ second_moment.double()
    energy = (product * weighted).sum((-2, -1))
    zero = frobenius_norm(B, A) == 0
    return H.diagonal(dim1=-2, dim2=-1).sum(-1) / energy.masked_fill(zero, torch.nan)


def bernstein_bound(
    B: Float[Tensor, "*batch m r"], A: Float[Tensor, "*batch r n"], *, keep_prob: float
) -> Float[Tensor, "*batch"]:
    """Upper bound on E||B D A - q B A||_2 for Bernoulli masks, by the matrix Bernstein inequality.

    sqrt(2 v log(m + n)) + L log(m + n) / 3, with v = q (1 - q) max(||B diag(||a_i||^2) B^T||_2,
    ||A^T diag(||b_i||^2) A||_2) and L = max(q, 1 - q) max_i ||b_i|| ||a_i||. True but loose, by a
    factor of about four on Gaussian factors; m and n enter, so cores do not give the same bound.
    """
    check_keep_prob(keep_prob)
    B, A = B.double(), A.double()
    columns, rows = B.norm(dim=-2), A.norm(dim=-1)
    left = singular_values(B * rows[..., None, :], B.mT * rows[..., :, None])[..., 0]
    right = singular_values(A.mT * columns[..., None, :], A * columns[..., :, None])[..., 0]
    variance = keep_prob * (1 - keep_prob) * torch.maximum(left, right)
    largest = max(keep_prob, 1 - keep_prob) * (columns * rows).amax(-1)
    log_dimension = math.log(B.shape[-2] + A.shape[-1])
    bound: Tensor = (2 * log_dimension * variance).sqrt() + largest * log_dimension / 3
    return bound
