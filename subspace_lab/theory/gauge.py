"""What masks do to the gauge: which of LoRA's conserved quantities survive.

B A is unchanged by (B T^{-1}, T A), and gradient flow on any loss of B A conserves the whole r x r
matrix C = B^T B - A A^T (balancedness: Du, Hu, Lee 2018). A mask in rank space leaves only
rescalings and permutations of coordinates, and conserves only the diagonal of C, ||b_i||^2 -
||a_i||^2. So off-diagonals of C drift under plain SGD exactly where masks act; Adam conserves
neither. B^T B and A A^T are r x r, so rank cores may stand in for the factors.

Masked updates are s B P A with P = diag(d), or with a random projector P for Haar-rotated masks,
which keep no coordinate gauge.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob


@dataclass(frozen=True)
class GaugeStep:
    """C(after) - C(before) of one SGD step, exactly first + second order in the learning rate."""

    first_order: Float[Tensor, "r r"]  # what gradient flow would do; the masked diagonal is 0
    second_order: Float[Tensor, "r r"]

    @property
    def total(self) -> Float[Tensor, "r r"]:
        """The change of C."""
        return self.first_order + self.second_order


def gauge_matrix(
    B: Float[Tensor, "*batch m r"], A: Float[Tensor, "*batch r n"]
) -> Float[Tensor, "*batch r r"]:
    """C = B^T B - A A^T, conserved by gradient flow without masks.

    Holds for any loss of the product B A, with the same learning rate and no weight decay on both
    factors; Adam, and LoRA+'s two learning rates, break it.
    """
    B, A = B.double(), A.double()
    return B.mT @ B - A @ A.mT


def balance_slope(
    A_change: Float[Tensor, " pairs"], B_change: Float[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    """Slope of (B^T dB)_ij on (dA A^T)_ij over pairs of kept directions: 1 where C is conserved."""
    return (A_change * B_change).sum() / A_change.square().sum()


def sgd_gauge_step(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    grad_B: Float[Tensor, "m r"],
    grad_A: Float[Tensor, "r n"],
    *,
    learning_rate: float,
) -> GaugeStep:
    """Change of C under B - eta g_B, A - eta g_A, for any gradients.

        Delta C = -eta [B^T g_B + g_B^T B - A g_A^T - g_A A^T] + eta^2 [g_B^T g_B - g_A g_A^T].

    The first order is zero everywhere for LoRA, where B^T g_B = g_A A^T, and on the diagonal for
    every step mask and token mask, where only (B^T g_B)_ii = (g_A A^T)_ii; then

        Delta (||b_i||^2 - ||a_i||^2) = eta^2 (||g_{B,i}||^2 - ||g_{A,i}||^2).
    """
    B, A, grad_B, grad_A = B.double(), A.double(), grad_B.double(), grad_A.double()
    half = B.T @ grad_B - A @ grad_A.T
    return GaugeStep(
        first_order=-learning_rate * (half + half.T),
        second_order=learning_rate**2 * (grad_B.T @ grad_B - grad_A @ grad_A.T),
    )


def gauge_drift(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    weight_gradient: Float[Tensor, "m n"],
    mask: Bool[Tensor, " r"],
    *,
    rescale: float,
    scaling: float = 1.0,
) -> Float[Tensor, "r r"]:
    """Velocity of C under gradient flow with one step mask, any loss.

        dC_ij/dt = s (d_i - d_j) (M_ij - M_ji),   M = B^T G A^T,

    s = scaling * rescale and G the loss's gradient with respect to the masked update. The drift is
    between kept and dropped directions only; G itself depends on the mask.
    """
    M = B.T.double() @ weight_gradient.double() @ A.T.double()
    d = mask.double()
    return scaling * rescale * (d[:, None] - d) * (M - M.T)


def expected_gauge_drift(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    second_moment: Float[Tensor, "n n"] | None = None,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> Float[Tensor, "r r"]:
    """E dC/dt over Bernoulli masks, per step or per token, for the loss (1/2N)||Y - s B D A X||^2.

    With H_B = B^T B, H_A = A Sigma A^T and i != j,

        E dC_ij/dt = s^2 q (1-q) [(H_B,ii + H_B,jj) H_A,ij - (H_A,ii + H_A,jj) H_B,ij],

    0 on the diagonal: independent of the target Y. Twice that for the loss without the 1/2.
    `second_moment` is Sigma = X X^T / N, None the identity.

    Raises:
        ValueError: keep_prob outside (0, 1].
    """
    check_keep_prob(keep_prob)
    H_B, H_A = _grams(B, A, second_moment)
    b, a = H_B.diagonal(), H_A.diagonal()
    drift = (b[:, None] + b) * H_A - (a[:, None] + a) * H_B
    drift = drift.fill_diagonal_(0)
    return (scaling * rescale) ** 2 * keep_prob * (1 - keep_prob) * drift


def haar_moments(rank: int, *, kept: int) -> tuple[float, float]:
    """(a, b) of the second moment of a Haar-random projector P of rank k in R^r.

        E[P_ij P_kl] = a delta_ij delta_kl + b (delta_ik delta_jl + delta_il delta_jk),
        b = k (r - k) / (r (r - 1) (r + 2)),   a = (k^2 - 2 b r) / r^2.

    From the two contractions E (tr P)^2 = k^2 and E tr P^2 = k.

    Raises:
        ValueError: unless rank >= 2 and 0 <= kept <= rank.
    """
    if rank < 2 or not 0 <= kept <= rank:
        raise ValueError(f"needs rank >= 2 and 0 <= kept <= rank, not rank {rank}, kept {kept}")
    b = kept * (rank - kept) / (rank * (rank - 1) * (rank + 2))
    return (kept**2 - 2 * b * rank) / rank**2, b


def haar_energy(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    kept: int,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, ""]:
    """E ||B P A Sigma^{1/2}||_F^2 = E tr(P H_B P H_A) = (a + b) tr(H_B H_A) + b tr H_B tr H_A.

    Its last term penalises ||B||_F^2 ||A Sigma^{1/2}||_F^2, whose minimum over the gauge is
    ||B A Sigma^{1/2}||_*^2: the nuclear-norm pressure of coordinate masks, without a preferred
    basis. No rescale is included (it would be r / k, squared).
    """
    H_B, H_A = _grams(B, A, second_moment)
    a, b = haar_moments(len(H_B), kept=kept)
    return (a + b) * (H_B * H_A).sum() + b * H_B.trace() * H_A.trace()


def expected_haar_gauge_drift(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    kept: int,
    rescale: float,
    scaling: float = 1.0,
    second_moment: Float[Tensor, "n n"] | None = None,
) -> Float[Tensor, "r r"]:
    """E dC/dt = 2 b s^2 (tr H_B H_A - tr H_A H_B) for Haar-rotated masks of rank k.

    s = scaling * rescale, r/k for an unbiased update, b from `haar_moments`. Same loss
    as `expected_gauge_drift`. It vanishes iff H_B and H_A are proportional: balancing, with no
    pull towards a basis.
    """
    H_B, H_A = _grams(B, A, second_moment)
    _, b = haar_moments(len(H_B), kept=kept)
    return 2 * b * (scaling * rescale) ** 2 * (H_B.trace() * H_A - H_A.trace() * H_B)


def _grams(
    B: Float[Tensor, "m r"], A: Float[Tensor, "r n"], second_moment: Float[Tensor, "n n"] | None
) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r r"]]:
    """H_B = B^T B and H_A = A Sigma A^T."""
    B, A = B.double(), A.double()
    weighted = A if second_moment is None else A @ second_moment.double()
    return B.T @ B, weighted @ A.T
