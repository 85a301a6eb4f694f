import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy

from subspace_lab.theory.ensembles import (
    ambiguity_decomposition,
    arithmetic_ensemble,
    ensemble_cross_entropy,
    ensemble_squared_error,
    geometric_ensemble,
    jensen_gap,
    jensen_gap_bound,
    jensen_gap_second_order,
    masked_output_variance,
)
from subspace_lab.theory.enumeration import all_masks, mask_probabilities

R, N, CLASSES = 5, 7, 4


class Adapter:
    """Outputs W0 x + s B D A x of all 2^r masks."""

    def __init__(self, keep_prob, rescale, strength=1.0, seed=0):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=draw)

        self.base = normal(N, CLASSES)
        self.B, self.Z = strength * normal(CLASSES, R), normal(N, R)
        self.labels = torch.randint(CLASSES, (N,), generator=draw)
        masks = all_masks(R)
        self.weights = mask_probabilities(masks, keep_prob=keep_prob)
        self.full = self.base + self.Z @ self.B.T
        self.outputs = self.base + rescale * (masks.double()[:, None] * self.Z) @ self.B.T


@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
def test_full_rank_logits_are_the_geometric_ensemble(q, deviation):
    model = Adapter(q, 1 / q)
    weights = model.weights
    product = (model.outputs.softmax(-1) ** weights[:, None, None]).prod(0)
    expected = product / product.sum(-1, keepdim=True)
    found = geometric_ensemble(model.outputs, weights=weights).exp()
    deviation(
        "T12: normalized geometric mean of the predictions",
        geometric_ensemble,
        (found - expected).abs().max(),
        1e-13,
    )
    deviation(
        "T12: geometric mean of all masks = full-rank model, rescale 1/q",
        geometric_ensemble,
        (found - model.full.softmax(-1)).abs().max(),
        1e-13,
    )
    as_written = Adapter(q, 1.0)
    scaled = as_written.base + q * as_written.Z @ as_written.B.T
    found = geometric_ensemble(as_written.outputs, weights=weights).exp()
    deviation(
        "T12: geometric mean of all masks = W0 + q B A, rescale 1",
        geometric_ensemble,
        (found - scaled.softmax(-1)).abs().max(),
        1e-13,
    )
    mean = torch.einsum("k,knc->nc", weights, model.outputs.softmax(-1))
    found = arithmetic_ensemble(model.outputs, weights=weights).exp()
    deviation("T12: arithmetic ensemble", arithmetic_ensemble, (found - mean).abs().max(), 1e-13)


@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
def test_jensen_gap_is_label_free(q, deviation):
    model = Adapter(q, 1 / q)
    gap = jensen_gap(model.outputs, weights=model.weights)
    divergence = kl_divergence(Categorical(logits=model.full), Categorical(logits=model.outputs))
    deviation(
        "T12: J = E KL(p_full || p_D)",
        jensen_gap,
        (gap - model.weights @ divergence).abs().max(),
        1e-13,
    )
    for label in range(CLASSES):
        labels = torch.full((N,), label)
        losses = [cross_entropy(z, labels, reduction="none") for z in model.outputs]
        single = model.weights @ torch.stack(losses)
        found = ensemble_cross_entropy(model.outputs, labels, weights=model.weights)
        full = cross_entropy(model.full, labels, reduction="none")
        error = torch.stack([found.single - single, found.geometric - full, single - full - gap])
        deviation(
            "T12: E CE_D = CE_full + J for every label",
            ensemble_cross_entropy,
            error.abs().max(),
            1e-12,
        )
        assert (found.arithmetic <= found.single).all()
    bound = jensen_gap_bound(model.outputs, weights=model.weights)
    assert (gap > 0).all()
    deviation("T12: 0 <= J <= E range^2 / 8", jensen_gap_bound, (gap - bound).clamp(min=0).max(), 0)


def test_bound_is_reached_by_a_small_symmetric_change(deviation):
    """Two classes, p = 1/2, z moved by +-(h, -h): J = log cosh(h) and the bound is h^2 / 2."""
    h = 1e-3
    logits = h * torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]]], dtype=torch.float64)
    ratio = jensen_gap(logits) / jensen_gap_bound(logits)
    deviation("T12: the bound on J is sharp", jensen_gap_bound, abs(ratio.item() - 1), 1e-6)


@pytest.mark.parametrize("rescaled", [True, False])
def test_second_order_jensen_gap(rescaled, deviation):
    q = 0.5
    s = 1 / q if rescaled else 1.0
    model = Adapter(q, s, strength=1e-3)
    gap = jensen_gap(model.outputs, weights=model.weights)
    mean = model.base + s * q * model.Z @ model.B.T
    found = jensen_gap_second_order(mean, model.B, model.Z, keep_prob=q, rescale=s)
    deviation(
        "T12: J = (lam/2) sum (a_i x)^2 Var_p(b_i) for a small adapter, relative",
        jensen_gap_second_order,
        ((found - gap) / gap).abs().max(),
        1e-4,
    )
    scaled = jensen_gap_second_order(
        mean, model.B / 3, model.Z, keep_prob=q, rescale=s, scaling=3.0
    )
    assert torch.allclose(scaled, found, rtol=1e-12, atol=0)


def test_geometric_against_arithmetic_has_no_fixed_sign():
    model = Adapter(0.5, 2.0)
    found = ensemble_cross_entropy(model.outputs, model.labels, weights=model.weights)
    difference = found.geometric - found.arithmetic
    assert difference.min() < 0 < difference.max()


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("q", [0.3, 0.5])
def test_ambiguity_is_the_regulariser(q, rescaled, deviation):
    s = 1 / q if rescaled else 1.0
    model = Adapter(q, s)
    target = model.base.roll(1, 0)
    found = ambiguity_decomposition(model.outputs, target, weights=model.weights)
    direct = model.weights @ (target - model.outputs).square().sum(-1)
    deviation(
        "T12: E ||y - f_D||^2 = ||y - f||^2 + tr Var",
        ambiguity_decomposition,
        max(
            (found.single - direct).abs().max(),
            (direct - found.ensemble - found.ambiguity).abs().max(),
        ),
        1e-11,
    )
    variance = masked_output_variance(model.B / 2, model.Z, keep_prob=q, rescale=s, scaling=2.0)
    deviation(
        "T12: tr Var = s^2 q(1-q) sum ||b_i||^2 z_i^2",
        masked_output_variance,
        (found.ambiguity - variance).abs().max(),
        1e-11,
    )
    if rescaled:  # the mean over tokens against T7's lam R, with Sigma formed from z = A x
        S = model.Z.T @ model.Z / N
        R_penalty = (model.B.square().sum(0) * S.diagonal()).sum()
        deviation(
            "T12: mean tr Var over tokens = lam R of T7",
            masked_output_variance,
            abs(found.ambiguity.mean() - (1 - q) / q * R_penalty),
            1e-11,
        )


def test_two_mask_ensemble(deviation):
    q = 0.3
    model = Adapter(q, 1 / q)
    target, w = model.base.roll(1, 0), model.weights
    pairs = (model.outputs[:, None] + model.outputs[None]) / 2
    error = torch.einsum("j,k,jkn->n", w, w, (target - pairs).square().sum(-1))
    parts = ambiguity_decomposition(model.outputs, target, weights=w)
    found = ensemble_squared_error(parts.ensemble, parts.ambiguity, masks=2)
    deviation(
        "T12: K-mask ensemble error = full + Var / K",
        ensemble_squared_error,
        (found - error).abs().max(),
        1e-11,
    )


def test_unweighted_is_the_mean_over_the_given_masks():
    model = Adapter(0.5, 2.0)  # all masks are equally likely at q = 1/2
    for function in [geometric_ensemble, arithmetic_ensemble, jensen_gap, jensen_gap_bound]:
        found = function(model.outputs)
        assert torch.allclose(
            found, function(model.outputs, weights=model.weights), rtol=1e-12, atol=1e-14
        )
