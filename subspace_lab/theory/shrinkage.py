"""T8: what the masked squared loss shrinks the update to, and the prune rate that suits it.

Minimised over the gauge, the loss of a linear layer under Bernoulli(q) masks with rescale 1/q is

    min over rank(W) <= r of  ||(W - M) Σ^{1/2}||_F^2 + (λ / r) ||W Σ^{1/2}||_*^2,  λ = (1 - q) / q,

with the least-squares solution M = (Y X^T / N) Σ^{-1} and W = γ B A. Its minimizer soft-thresholds
the singular values of M Σ^{1/2}. Without the rescale (Eq. 2) the factors give W / q instead. The
shrinkage form is that of Mianjy, Arora and Vidal 2018 and of Cavazza et al. 2018; the prune rate
follows from it.

Soft thresholding takes the larger share from the smaller value, so no effective rank of W Σ^{1/2}
exceeds that of the unmasked solution. This is about W Σ^{1/2}, what the update does to the inputs
it gets: W itself may gain effective rank where Σ is not the identity (`dropout_minimizer`). And it
is about one linear layer under a squared loss, at the minimum: it says nothing about training under
cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subspace_lab.theory.mask_moments import relative_variance


@dataclass(frozen=True)
class Shrinkage:
    """Soft-thresholded singular values, with the threshold and the number left above zero."""

    spectrum: Float[Tensor, "*batch k"]
    threshold: Float[Tensor, "*batch"]
    kept: Int[Tensor, "*batch"]


@dataclass(frozen=True)
class OptimalPruning:
    """The prune probability of least error, with the evidence for it."""

    prune_prob: float  # the formula's value cut to [0, 1]
    noise_fraction: float  # the formula's value itself
    clipped: bool  # soft thresholding at prune_prob clips one of the r values: not exact


def dropout_spectrum(
    singular_values: Float[Tensor, "*batch k"], *, rank: int, keep_prob: float
) -> Shrinkage:
    """Soft-threshold σ_i -> (σ_i - τ)_+ for i <= r (zero beyond), at the masked loss's own τ.

    τ = λ sum_{i <= ρ} σ_i / (r + λ ρ), with ρ <= r the largest number for which σ_ρ > τ. If none
    of the first r is clipped (ρ = r), τ = (1 - q) mean(σ_1..σ_r) and the nuclear norm shrinks by
    exactly q. `singular_values` are those of M Σ^{1/2}, in descending order.

    >>> dropout_spectrum(torch.tensor([3.0, 1.0]), rank=2, keep_prob=0.75).spectrum
    tensor([2.5000, 0.5000])
    """
    ratio = relative_variance(keep_prob=keep_prob)
    head = singular_values[..., :rank]
    count = torch.arange(1, head.shape[-1] + 1, dtype=head.dtype, device=head.device)
    thresholds = ratio * head.cumsum(-1) / (rank + ratio * count)
    kept = (head > thresholds).sum(-1)
    threshold = thresholds.gather(-1, (kept - 1).clamp_min(0)[..., None])
    spectrum = (singular_values - threshold).clamp_min(0)
    spectrum[..., rank:] = 0
    return Shrinkage(spectrum=spectrum, threshold=threshold.squeeze(-1), kept=kept)


def dropout_minimizer(
    least_squares: Float[Tensor, "m n"],
    *,
    rank: int,
    keep_prob: float,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "m n"]:
    """The update W that minimizes the masked loss, for s = 1/q and any scaling γ.

    W Σ^{1/2} is M Σ^{1/2} with its spectrum replaced by `dropout_spectrum`; at s = 1 the trained
    product γ B A is W / q. Σ (None: identity, a whitened design) must be positive definite. The
    threshold is in units of W Σ^{1/2}, and so W loses most where inputs are weak. A spectrum
    (3, 1) becomes a flatter one if the first input is weak:

    >>> M, Sigma = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([0.04, 1.0]))
    >>> W = dropout_minimizer(M, rank=2, keep_prob=0.5, second_moment=Sigma)
    >>> torch.linalg.svdvals(W)
    tensor([1.0000, 0.6000], dtype=torch.float64)
    """
    # Any root with L L^T = Σ serves: it differs from Σ^{1/2} by a rotation on the right.
    root = None if second_moment is None else torch.linalg.cholesky(second_moment.double())
    target = least_squares.double() if root is None else least_squares.double() @ root
    U, S, Vh = torch.linalg.svd(target, full_matrices=False)
    shrunk: Tensor = (U * dropout_spectrum(S, rank=rank, keep_prob=keep_prob).spectrum) @ Vh
    if root is not None:
        shrunk = torch.linalg.solve_triangular(root, shrunk, upper=False, left=False)
    return shrunk


def optimal_prune_prob(
    least_squares: Float[Tensor, "m n"],
    reference: Float[Tensor, "m n"],
    *,
    rank: int,
) -> OptimalPruning:
    """Prune probability whose minimizer lies nearest to a reference, in a whitened design.

    p* = sum_{i <= r} (σ_i - u_i^T W* v_i) / sum_{i <= r} σ_i = 1 - <U_r V_r^T, W*> / ||M_r||_*,

    the share of noise in the nuclear norm of the unregularized rank-r solution M_r = U_r S_r V_r^T.
    The reference is the true W* or, for an estimate, the least-squares solution of held-out data,
    which is unbiased for it. Exact while no singular value is clipped (see `clipped`); beyond that
    an approximation that is usually close.

    Raises:
        ValueError: rank above min(m, n), where the threshold is not (1 - q) times a mean.

    >>> M = torch.diag(torch.tensor([3.0, 1.0]))
    >>> round(optimal_prune_prob(M, 0.8 * M, rank=2).prune_prob, 6)
    0.2
    """
    if rank > min(least_squares.shape):
        raise ValueError(
            f"rank {rank} is above min(m, n) of an update {tuple(least_squares.shape)}"
        )
    U, S, Vh = torch.linalg.svd(least_squares.double(), full_matrices=False)
    U, S, Vh = U[:, :rank], S[:rank], Vh[:rank]
    signal = ((U.mT @ reference.double()) * Vh).sum()
    noise_fraction = float(1 - signal / S.sum())
    prune_prob = min(max(noise_fraction, 0.0), 1.0)
    return OptimalPruning(
        prune_prob=prune_prob,
        noise_fraction=noise_fraction,
        clipped=bool(S[-1] <= prune_prob * S.mean()),
    )
