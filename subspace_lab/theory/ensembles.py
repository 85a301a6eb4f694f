"""Mask ensembles of predictions, and what separates them from the full-rank prediction.

The first dimension of `logits` and `outputs` runs over the masks, all equally likely unless
`weights` says otherwise (`enumeration.mask_probabilities` for all masks). Every identity holds for
any set of masks with the mean of that set. For an adapter on the logits (or a linear output) with
rescale 1/q the mean over all masks is the full-rank output, so "the ensemble's mean" may then be
read as "the full-rank model"; with rescale 1 (the paper's Eq. 2) it is W0 + q B A instead, and in a
network with layers after the adapter it is neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subspace_lab.theory.gates import gate_moments


@dataclass(frozen=True)
class EnsembleCrossEntropy:
    """Cross-entropies per example (nats), single masks against their two ensembles."""

    single: Float[Tensor, "*batch"]  # E CE_D
    geometric: Float[Tensor, "*batch"]  # of the mean logits
    arithmetic: Float[Tensor, "*batch"]  # of the mean probabilities
    jensen_gap: Float[Tensor, "*batch"]  # single - geometric, without the labels


@dataclass(frozen=True)
class AmbiguityDecomposition:
    """Squared errors per example: single = ensemble + ambiguity."""

    single: Float[Tensor, "*batch"]  # E ||y - f_D||^2
    ensemble: Float[Tensor, "*batch"]  # ||y - E f_D||^2
    ambiguity: Float[Tensor, "*batch"]  # tr Var f_D


def geometric_ensemble(
    logits: Float[Tensor, "masks *batch classes"], *, weights: Float[Tensor, " masks"] | None = None
) -> Float[Tensor, "*batch classes"]:
    """Log-probabilities of the normalized geometric mean of the masked predictions.

    softmax(E z_D) = prod_D p_D^{w_D} / sum_c prod_D p_{D,c}^{w_D}: the mean logits are that
    ensemble, so for an adapter on the logits with rescale 1/q the full-rank model is the geometric
    ensemble of all 2^r masks (Baldi and Sadowski 2013).
    """
    return _mean(logits.log_softmax(-1), weights).log_softmax(-1)


def arithmetic_ensemble(
    logits: Float[Tensor, "masks *batch classes"], *, weights: Float[Tensor, " masks"] | None = None
) -> Float[Tensor, "*batch classes"]:
    """Log-probabilities log E softmax(z_D) of the mean prediction."""
    if weights is None:
        weights = logits.new_full((len(logits),), 1 / len(logits))
    log_weights = weights.log().reshape(-1, *[1] * (logits.ndim - 1))
    return (logits.log_softmax(-1) + log_weights).logsumexp(0)


def jensen_gap(
    logits: Float[Tensor, "masks *batch classes"], *, weights: Float[Tensor, " masks"] | None = None
) -> Float[Tensor, "*batch"]:
    """J = E lse(z_D) - lse(E z_D) >= 0, in nats.

    E CE_D = CE_geometric + J for every label, and J = E KL(p_geometric || p_D): what masking costs
    on average is known without labels.
    """
    return _mean(logits.logsumexp(-1), weights) - _mean(logits, weights).logsumexp(-1)


def jensen_gap_bound(
    logits: Float[Tensor, "masks *batch classes"], *, weights: Float[Tensor, " masks"] | None = None
) -> Float[Tensor, "*batch"]:
    """E [range_c (z_D - E z_D)]^2 / 8 >= J.

    By Hoeffding's lemma (1963) on the centred logit change, a variable of that range under
    p_geometric.
    """
    change = logits - _mean(logits, weights)
    return _mean((change.amax(-1) - change.amin(-1)).square(), weights) / 8


def jensen_gap_second_order(
    logits: Float[Tensor, "*batch classes"],
    B: Float[Tensor, "classes r"],
    Z: Float[Tensor, "*batch r"],
    *,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """(s^2 q (1-q) / 2) sum_i (a_i x)^2 Var_p(b_i), J to second order in the adapter.

    s = scaling * rescale, so (1-q) / (2 q) at scaling 1 and rescale 1/q. `B` is the output factor
    of an adapter on the logits, `Z` = x A^T its activations and `logits` the mean ones, of which p
    is the softmax. Fails for large logit changes: J grows linearly there.
    """
    p = logits.softmax(-1)
    variance = p @ B.square() - (p @ B).square()  # (*batch, r)
    gate_variance, *_ = gate_moments(keep_prob=keep_prob, rescale=scaling * rescale)
    return gate_variance / 2 * (Z.square() * variance).sum(-1)


def ensemble_cross_entropy(
    logits: Float[Tensor, "masks *batch classes"],
    labels: Int[Tensor, "*batch"],
    *,
    weights: Float[Tensor, " masks"] | None = None,
) -> EnsembleCrossEntropy:
    """Single-mask, geometric and arithmetic cross-entropy, and the Jensen gap.

    single = geometric + jensen_gap exactly, and single >= arithmetic by convexity. Geometric
    against arithmetic has no fixed sign on an example.
    """

    def cross_entropy(log_p: Tensor) -> Tensor:
        return -log_p.gather(-1, labels.expand(log_p.shape[:-1])[..., None]).squeeze(-1)

    return EnsembleCrossEntropy(
        single=_mean(cross_entropy(logits.log_softmax(-1)), weights),
        geometric=cross_entropy(geometric_ensemble(logits, weights=weights)),
        arithmetic=cross_entropy(arithmetic_ensemble(logits, weights=weights)),
        jensen_gap=jensen_gap(logits, weights=weights),
    )


def ambiguity_decomposition(
    outputs: Float[Tensor, "masks *batch m"],
    target: Float[Tensor, "*batch m"],
    *,
    weights: Float[Tensor, " masks"] | None = None,
) -> AmbiguityDecomposition:
    """E ||y - f_D||^2 = ||y - E f_D||^2 + tr Var f_D (Krogh and Vedelsby 1995).

    For a linear adapter the mean over tokens of the last term is `masked_output_variance`'s, the
    dropout regularizer: training on single masks minimizes the ensemble's error plus its diversity.
    """
    mean = _mean(outputs, weights)
    return AmbiguityDecomposition(
        single=_mean((target - outputs).square().sum(-1), weights),
        ensemble=(target - mean).square().sum(-1),
        ambiguity=_mean((outputs - mean).square().sum(-1), weights),
    )


def masked_output_variance(
    B: Float[Tensor, "m r"],
    Z: Float[Tensor, "*batch r"],
    *,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Tr Var of s B diag(d) z over Bernoulli masks: s^2 q (1-q) sum_i ||b_i||^2 z_i^2.

    s = scaling * rescale and z = A x. At rescale 1/q its mean over tokens is
    ((1-q)/q) scaling^2 sum_i ||b_i||^2 ||a_i||_Sigma^2.
    """
    gate_variance, *_ = gate_moments(keep_prob=keep_prob, rescale=scaling * rescale)
    return gate_variance * Z.square() @ B.square().sum(0)


def ensemble_squared_error(
    ensemble: Float[Tensor, "*batch"], ambiguity: Float[Tensor, "*batch"], *, masks: int
) -> Float[Tensor, "*batch"]:
    """Expected squared error of the mean of K independent masks: ensemble + ambiguity / K.

    For a linear adapter with rescale 1/q `ensemble` is the full-rank error, which no finite mask
    ensemble beats in expectation. Masks drawn without replacement do better than this.
    """
    return ensemble + ambiguity / masks


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the first dimension."""
    if weights is None:
        return values.mean(0)
    return torch.einsum("k,k...->...", weights.to(values.dtype), values)
