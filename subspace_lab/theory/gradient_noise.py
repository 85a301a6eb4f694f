"""The gradient noise that a random rank mask adds, exactly, for a squared loss.

With the loss (1/2N) ||Y - s B D A X||^2, D = diag(d), d_i ~ Bernoulli(q), the gradient of the
direction b_i (column i of B) or a_i (row i of A) is a quadratic polynomial of the mask,

    g_i = -s d_i (c_i - s sum_k d_k T_ik),                                            (1)
    B:  c_i = (Y X^T A^T / N)_i,  T_ik = S_ki b_k,            S = A Sigma A^T, Sigma = X X^T / N,
    A:  c_i = (B^T Y X^T / N)_i,  T_ik = (b_i . b_k) (A Sigma)_k.

In the centred gates e = d - q it reads, with v_i = c_i - s T_ii - s q sum_{k != i} T_ik,

    g_i = -s q v_i - s e_i v_i + s^2 q sum_{k != i} e_k T_ik + s^2 e_i sum_{k != i} e_k T_ik.  (2)

The terms of (2) are uncorrelated (an ANOVA, or Hoeffding, decomposition: Hoeffding 1948), which
gives every covariance below. `Sigma` may be anything and the mask law is Bernoulli; for exact-k or
prefix masks the gates are correlated and (2) has no orthogonal terms.

Where K independent masks serve N/K tokens each, the gradient is the mean over masks of independent
gradients like (1), each of its own tokens. Its mean does not depend on K, as the expected squared
loss does not; its variance is 1/K of the average one. One mask per step, K = 1, is noise that does
not fall with the batch size; one per token, K = N, is ordinary 1/N noise; a mask per sample or
micro-batch lies in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob


@dataclass(frozen=True)
class DirectionNoise:
    """Mean and total variance (trace of the covariance) of each direction's gradient."""

    mean: Float[Tensor, "r k"]  # E g_i = -s q v_i; row i belongs to direction i
    first_order: Float[Tensor, " r"]  # variance of the terms linear in the centred gates
    second_order: Float[Tensor, " r"]  # variance of the products of two centred gates
    keep_prob: float

    @property
    def variance(self) -> Float[Tensor, " r"]:
        """E ||g_i - E g_i||^2, one mask."""
        return self.first_order + self.second_order

    def averaged(self, masks: int) -> Float[Tensor, " r"]:
        """Variance of the mean over K independent masks (workers, micro-batches): 1/K."""
        return self.variance / masks

    def antithetic(self, pairs: int = 1) -> Float[Tensor, " r"]:
        """Variance of the mean over `pairs` of a mask and its complement, at keep_prob 1/2.

        The complement turns e into -e: the linear terms cancel, the products are the same in
        both, so a pair keeps all of the second-order variance and none of the first.

        Raises:
            ValueError: keep_prob is not 1/2 (the complement then has another law).
        """
        if self.keep_prob != 0.5:
            raise ValueError(f"antithetic masks need keep_prob 0.5, not {self.keep_prob}")
        return self.second_order / pairs


@dataclass(frozen=True)
class GradientNoise:
    """The noise of both factors' gradients."""

    B: DirectionNoise  # k = m: the columns of B
    A: DirectionNoise  # k = n: the rows of A


@dataclass(frozen=True)
class DirectionCovariance:
    """Cov(g_i, g_j) of all pairs of directions, split as in (2)."""

    first_order: Float[Tensor, "r k r k"]
    second_order: Float[Tensor, "r k r k"]

    @property
    def total(self) -> Float[Tensor, "r k r k"]:
        """The covariance under one mask."""
        return self.first_order + self.second_order


@dataclass(frozen=True)
class GradientCovariance:
    """The covariances of both factors' gradients (not the one between B and A)."""

    B: DirectionCovariance
    A: DirectionCovariance


def gradient_noise(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    X: Float[Tensor, "n N"],
    Y: Float[Tensor, "m N"],
    *,
    masks: int,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> GradientNoise:
    """Noise of K independent masks, each shared by N/K neighboring tokens.

    With s = scaling * rescale, one mask for all tokens gives

        Var g_{B,i} = s^2 q (1-q) [||v_i||^2 + s^2 q sum_{k != i} ||b_k||^2 S_ki^2],
        Var g_{A,i} = s^2 q (1-q) [||u_i||^2 + s^2 q sum_{k != i} (b_i . b_k)^2 ||(A Sigma)_k||^2],

    and K masks K^{-2} sum_j Var g_i^{(j)}, S and Sigma being those of the tokens of mask j.

    The noise-to-signal ratio Var g_i / ||E g_i||^2 of one mask is at least (1-q)/q, and exactly
    that for B's gradient at B = 0. Where v = 0 (a stationary point of the expected loss) the noise
    of B's gradient vanishes iff S is diagonal, and A's iff B^T B is, no b_k nor (A Sigma)_k being
    zero.

    Args:
        B: output factor.
        A: input factor.
        X: inputs, one token a column.
        Y: targets of the update, one token a column.
        masks: K; 1 is a mask per step, N one per token.
        keep_prob: q.
        rescale: factor on the kept directions, 1 or 1/q.
        scaling: LoRA's alpha / r. The gradients are those of the loss with respect to B and A.

    Raises:
        ValueError: keep_prob outside (0, 1], or masks that do not divide N.
    """
    check_keep_prob(keep_prob)
    s = scaling * rescale
    for_B, for_A = _systems(B, A, X, Y, masks)
    return GradientNoise(for_B.noise(s, keep_prob), for_A.noise(s, keep_prob))


def gradient_covariance(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    X: Float[Tensor, "n N"],
    Y: Float[Tensor, "m N"],
    *,
    masks: int,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> GradientCovariance:
    """The full covariances whose block traces `gradient_noise` gives: (m r)^2 and (n r)^2 numbers.

    Under one mask the second-order block of (i, j) off the diagonal is rank one,
    s^4 q^2 (1-q)^2 T_ij T_ji^T: only the product e_i e_j is common to g_i and g_j. Arguments and
    errors as `gradient_noise`.
    """
    check_keep_prob(keep_prob)
    s = scaling * rescale
    for_B, for_A = _systems(B, A, X, Y, masks)
    return GradientCovariance(for_B.covariance(s, keep_prob), for_A.covariance(s, keep_prob))


def noise_only_gradient(
    full: Float[Tensor, "*shape"], first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """g_full + (g_1 - g_2) / sqrt(2): the mask noise without its regularizer, in any network.

    `full` is the unmasked gradient, `first` and `second` those under two independent masks of the
    same batch. The mean is `full` and the covariance that of one masked gradient, exactly.
    """
    return full + (first - second) / 2**0.5


@dataclass(frozen=True)
class _System:
    """Equation (1) for one factor and each of K masks: c_i and T_ik = coupling_ik vectors_k."""

    target: Float[Tensor, "K r k"]
    coupling: Float[Tensor, "K r r"]  # symmetric
    vectors: Float[Tensor, "K r k"]

    def at_mean(self, s: float, q: float) -> Float[Tensor, "K r k"]:
        own = self.coupling.diagonal(dim1=-2, dim2=-1)[..., None] * self.vectors
        return self.target - s * own - s * q * (self.coupling @ self.vectors - own)

    def off_diagonal(self) -> Float[Tensor, "K r r"]:
        return self.coupling * (1 - torch.eye(self.coupling.shape[-1]).to(self.coupling))

    def noise(self, s: float, q: float) -> DirectionNoise:
        v = self.at_mean(s, q)
        squares = self.vectors.square().sum(-1, keepdim=True)
        others = (self.off_diagonal().square() @ squares).squeeze(-1)
        linear = s**2 * q * (1 - q) * (v.square().sum(-1) + (s * q) ** 2 * others)
        return DirectionNoise(
            mean=-s * q * v.mean(0),
            first_order=_variance_of_mean(linear),
            second_order=_variance_of_mean(s**4 * (q * (1 - q)) ** 2 * others),
            keep_prob=q,
        )

    def covariance(self, s: float, q: float) -> DirectionCovariance:
        T = self.off_diagonal()[..., None] * self.vectors[:, None]  # (K, i, k, :), zero where i = k
        own = torch.diag_embed(self.at_mean(s, q).mT).permute(0, 2, 3, 1)
        linear = s**2 * q * T - s * own
        second = torch.einsum("Kija,Kjib->Kiajb", T, T)
        second += torch.einsum("ij,Kika,Kikb->Kiajb", torch.eye(T.shape[1]).to(T), T, T)
        return DirectionCovariance(
            first_order=_variance_of_mean(
                q * (1 - q) * torch.einsum("Kila,Kjlb->Kiajb", linear, linear)
            ),
            second_order=_variance_of_mean(s**4 * (q * (1 - q)) ** 2 * second),
        )


def _systems(
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    X: Float[Tensor, "n N"],
    Y: Float[Tensor, "m N"],
    masks: int,
) -> tuple[_System, _System]:
    """The systems (1) of B's and of A's gradient; nothing n x n is formed."""
    if masks < 1 or X.shape[1] % masks:
        raise ValueError(f"masks must divide the {X.shape[1]} tokens, {masks} does not")
    B, A = B.double(), A.double()
    X, Y = (each.double().unflatten(1, (masks, -1)).movedim(1, 0) for each in (X, Y))
    N, Z = X.shape[-1], A @ X
    for_B = _System(Z @ Y.mT / N, coupling=Z @ Z.mT / N, vectors=B.T.expand(masks, -1, -1))
    coupling = (B.T @ B).expand(masks, -1, -1)
    for_A = _System(B.T @ Y @ X.mT / N, coupling=coupling, vectors=Z @ X.mT / N)
    return for_B, for_A


def _variance_of_mean(variances: Tensor) -> Tensor:
    """Variance of the mean of K independent terms, whose variances (K, ...) are given."""
    return variances.sum(0) / len(variances) ** 2
