"""Traces of the Hessian in the gates (T11)."""

import pytest
import torch

from subspace_lab.theory.gates import (
    gate_trace,
    gauss_newton_trace,
)
from tests.theory.gate_network import RANK, STEP, TOKEN, TOKENS, Network


def hessian(loss, gates):
    """Full Hessian over all gates by torch.func, in the order of the flattened gates."""
    sizes = [gate.numel() for gate in gates]

    def flat(v):
        parts = v.split(sizes)
        return loss(*(p.reshape(g.shape) for p, g in zip(parts, gates, strict=True)))

    return torch.func.hessian(flat)(torch.cat([gate.flatten() for gate in gates]))


@pytest.mark.parametrize("gates", [STEP, TOKEN], ids=["step", "token"])
def test_exact_trace_is_that_of_the_full_hessian(gates, deviation):
    network = Network(attention=True)
    found, full = gate_trace(network, gates), hessian(network, gates)
    deviation("T11: tr H over the gates", gate_trace, abs(found.total - full.trace()), 1e-12)
    size = gates[0].numel()
    blocks = torch.stack([full[:size, :size].trace(), full[size:, size:].trace()])
    deviation(
        "T11: tr H per layer from the same products",
        gate_trace,
        (found.per_layer - blocks).abs().max(),
        1e-12,
    )
    assert found.standard_error == 0


def test_rademacher_probe_is_unbiased_with_its_standard_error(deviation):
    network, probes = Network(attention=True), 800
    draw = torch.Generator().manual_seed(1)
    found = gate_trace(network, TOKEN, probes=probes, generator=draw)
    exact, full = gate_trace(network, TOKEN), hessian(network, TOKEN)
    off_diagonal = full - full.diag().diag()
    error = (2 * off_diagonal.square().sum() / probes).sqrt()
    deviation(
        "T11: Rademacher probe of tr H, in standard errors (Monte Carlo)",
        gate_trace,
        abs(found.total - exact.total) / error,
        4,
    )
    deviation(
        "T11: Rademacher probe of tr H per layer, in standard errors (Monte Carlo)",
        gate_trace,
        ((found.per_layer - exact.per_layer) / found.per_layer_standard_error).abs().max(),
        4,
    )
    deviation(
        "T11: variance of a probe is 2 sum_{i != j} H_ij^2, relative (Monte Carlo)",
        gate_trace,
        abs(found.standard_error / error - 1),
        0.1,
    )


@pytest.mark.parametrize("attention", [True, False])
def test_step_trace_is_token_trace_plus_cross_token_terms(attention, deviation):
    network = Network(attention=attention)
    step, token = gate_trace(network, STEP), gate_trace(network, TOKEN)
    # H as (layer, token, i, layer, token, i), its cross-token part within a layer and direction.
    H = hessian(network, TOKEN).reshape(2, TOKENS, RANK, 2, TOKENS, RANK)
    pairs = torch.einsum("ltilui->tu", H)
    cross = (pairs.sum() - pairs.trace()).item()
    deviation(
        "T11: tr H_step = tr H_token + cross-token terms",
        gate_trace,
        abs(step.total - token.total - cross),
        1e-12,
    )
    if attention:
        assert abs(cross) > 1e-3
    else:
        deviation("T11: no token mixing, no cross-token terms", gate_trace, abs(cross), 1e-14)


def test_gauss_newton_part_is_a_predictive_variance(deviation):
    network = Network(attention=True)
    J = torch.func.jacrev(network.logits, argnums=(0, 1))(*STEP)  # (tokens, classes, r) each
    p = network.logits(*STEP).softmax(-1)[:, :, None]
    expected = torch.stack([((p * j**2).sum(1) - (p * j).sum(1) ** 2).sum() / TOKENS for j in J])
    found = gauss_newton_trace(network.logits, network.output_loss, STEP)
    deviation(
        "T11: Gauss-Newton trace of CE = summed predictive variances of J_i",
        gauss_newton_trace,
        (found.per_layer - expected).abs().max(),
        1e-13,
    )
    random = gauss_newton_trace(
        network.logits,
        network.output_loss,
        STEP,
        probes=500,
        generator=torch.Generator().manual_seed(2),
    )
    deviation(
        "T11: Gauss-Newton trace by probes, in standard errors (Monte Carlo)",
        gauss_newton_trace,
        abs(random.total - found.total) / random.standard_error,
        4,
    )


def test_gauss_newton_is_the_whole_hessian_for_an_adapter_on_the_logits(deviation):
    network = Network(attention=True)
    fixed = torch.ones(RANK, dtype=torch.float64)
    gates = [fixed.clone()]
    whole = gate_trace(lambda g: network(fixed, g), gates).total
    part = gauss_newton_trace(lambda g: network.logits(fixed, g), network.output_loss, gates).total
    deviation(
        "T11: Gauss-Newton = H where logits are linear in the gates",
        gauss_newton_trace,
        abs(whole - part),
        1e-13,
    )
    # The closed form of the docstring: direction i moves the logits by b_i (a_i x).
    h = network.layer(0, network.x, fixed)
    h = torch.softmax(h @ h.T, -1) @ h
    p = network.logits(fixed, fixed).softmax(-1)
    moved = torch.einsum("ti,ci->tic", h @ network.A[1].T, network.B[1])
    variance = (p[:, None] * moved**2).sum(-1) - (p[:, None] * moved).sum(-1) ** 2
    deviation(
        "T11: for CE, H_ii = mean over tokens of (a_i x)^2 Var_p(b_i)",
        gauss_newton_trace,
        abs(part - variance.sum() / TOKENS),
        1e-13,
    )


def test_full_trace_can_be_negative_and_its_gauss_newton_part_is_not():
    found = [Network(attention=True, strength=0.3, seed=seed) for seed in range(20)]
    assert min(gate_trace(network, STEP).total for network in found) < 0
    for network in found:
        assert gauss_newton_trace(network.logits, network.output_loss, STEP).total > 0
