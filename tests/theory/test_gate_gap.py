"""The gap of random gates and its expansion (T11)."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from subspace_lab.theory.enumeration import all_masks
from subspace_lab.theory.gates import (
    GateGap,
    average_gap,
    gate_gap,
    gate_moments,
    gate_trace,
    mean_gates,
)
from tests.theory.gate_network import RANK, STEP, Network


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
def test_orders_of_a_quartic_by_enumeration(q, rescaled, deviation):
    s = 1 / q if rescaled else 1.0
    draw = torch.Generator().manual_seed(3)
    T1, T2, T3, T4 = (
        torch.randn((5,) * k, dtype=torch.float64, generator=draw) for k in range(1, 5)
    )

    def quartic(g):
        u = g - s * q  # derivatives at the mean are then the symmetrised coefficients
        return (
            u @ T1
            + torch.einsum("ij,i,j", T2, u, u)
            + torch.einsum("ijk,i,j,k", T3, u, u, u)
            + torch.einsum("ijkl,i,j,k,l", T4, u, u, u, u)
        )

    found = gate_gap(quartic, [torch.ones(5).double()], keep_prob=q, rescale=s)
    deviation(
        "T11: gap = second + third + fourth order, for a quartic",
        gate_gap,
        abs(found.measured - found.orders.sum()) / abs(found.measured),
        1e-12,
    )
    mu2, mu3, mu4 = gate_moments(keep_prob=q, rescale=s)
    diagonal = torch.einsum("iiii->", T4)
    paired = sum(torch.einsum(f"{p}->", T4) for p in ["iijj", "ijij", "ijji"]) - 3 * diagonal
    expected = torch.stack(
        [mu2 * T2.trace(), mu3 * torch.einsum("iii->", T3), mu4 * diagonal + mu2**2 * paired]
    )
    deviation(
        "T11: orders by the gate moments mu2, mu3, mu4",
        gate_moments,
        (found.orders - expected).abs().max() / expected.abs().max(),
        1e-12,
    )
    point = mean_gates([torch.ones(5).double()], keep_prob=q, rescale=s)
    deviation(
        "T11: second order = (mu2 / 2) tr H at the mean gates",
        gate_gap,
        abs(found.second_order - mu2 / 2 * gate_trace(quartic, point).total),
        1e-12,
    )


@pytest.mark.parametrize("attention", [True, False])
def test_expansion_of_a_network_by_enumeration(attention, deviation):
    """The remainder after the fourth order falls as the sixth power of the adapter (q = 1/2)."""
    gaps = [
        gate_gap(Network(attention=attention, strength=e), STEP, keep_prob=0.5, rescale=2.0)
        for e in [0.2, 0.1]
    ]
    remainder = [abs(gap.measured - gap.orders.sum()) for gap in gaps]
    deviation(
        "T11: gap of a small adapter = orders 2 to 4, relative",
        gate_gap,
        remainder[1] / abs(gaps[1].measured),
        1e-3,
    )
    assert remainder[0] / remainder[1] > 20  # an odd order left out would give 8 or 32


def test_random_masks_agree_with_enumeration(deviation):
    network = Network(attention=True, strength=0.5)
    law = {"keep_prob": 0.4, "rescale": 2.5}
    exact = gate_gap(network, STEP, **law)
    found = gate_gap(network, STEP, masks=200, generator=torch.Generator().manual_seed(4), **law)
    errors = [abs(found.measured - exact.measured) / found.measured_standard_error]
    errors += ((found.orders - exact.orders).abs() / found.orders_standard_error).tolist()
    deviation(
        "T11: gap and orders by random masks, in standard errors (Monte Carlo)",
        gate_gap,
        max(errors),
        4,
    )


def test_a_mask_and_its_complement_cancel_the_odd_orders(deviation):
    network = Network(attention=True, strength=0.5)
    exact = gate_gap(network, STEP, keep_prob=0.5, rescale=2.0)
    draw = torch.Generator().manual_seed(5)
    found = gate_gap(network, STEP, keep_prob=0.5, rescale=2.0, masks=200, generator=draw)
    errors = [abs(found.measured - exact.measured) / found.measured_standard_error]
    errors += ((found.orders - exact.orders).abs() / found.orders_standard_error)[[0, 2]].tolist()
    statement = "T11: gap and orders by pairs of masks at q = 1/2, in standard errors (Monte Carlo)"
    deviation(statement, gate_gap, max(errors), 4)
    assert found.orders[1] == exact.orders[1] == 0
    # A mask alone: its gap without the first order, of more variance than the pair's.
    z = 4 * all_masks(2 * RANK).double() - 2
    alone = torch.stack([network(*(1 + each / 2).split(RANK)) for each in z])
    paired = (alone + alone.flip(0)) / 2  # the complement in binary order
    error = abs(paired.mean() - network(*STEP) - exact.measured)
    deviation("T11: pairs of masks have the mean of all masks", gate_gap, error, 1e-14)
    expected = (paired.std(correction=0) / 200**0.5).item()
    assert found.measured_standard_error == pytest.approx(expected, rel=0.2)


def test_trustworthy_for_a_weak_adapter():
    network = Network(attention=True, strength=0.1)
    assert gate_gap(network, STEP, keep_prob=0.5, rescale=2.0).trustworthy


@pytest.mark.parametrize(("standard_error", "expected"), [(0.05, True), (0.15, False)])
def test_trust_needs_evidence(standard_error, expected):
    """The same agreement, with a certain and an uncertain difference."""
    masks = 10
    noise = torch.tensor([1.0, -1.0] * (masks // 2), dtype=torch.float64)
    samples = torch.zeros(masks, 4, dtype=torch.float64)
    samples[:, 0] = 1 + standard_error * noise * masks**0.5 / noise.std()
    samples[:, 1] = 1
    gap = GateGap(samples, torch.full((masks,), 1 / masks).double(), False, tolerance=0.2)
    assert gap.excess_standard_error == pytest.approx(standard_error)
    assert gap.trustworthy is expected


def test_the_gap_of_a_mean_loss_is_the_mean_of_the_gaps():
    network = Network(attention=True, strength=0.5)
    shifted = Network(attention=True, strength=0.3)

    def both(*gates):
        return 0.25 * network(*gates) + 0.75 * shifted(*gates)

    def gap(loss):
        generator = torch.Generator().manual_seed(0)
        return gate_gap(loss, STEP, keep_prob=0.7, rescale=1.0, masks=5, generator=generator)

    found, expected = average_gap([gap(network), gap(shifted)], [1, 3]), gap(both)
    torch.testing.assert_close(found.samples, expected.samples)
    assert found.measured_standard_error == pytest.approx(expected.measured_standard_error)
    with pytest.raises(ValueError, match="same number of masks"):
        average_gap([], [])


def test_not_trustworthy_where_the_model_interpolates():
    """A fitted cross-entropy model: small residuals, hence second order, but a large gap."""
    draw = torch.Generator().manual_seed(6)
    x = torch.randn(12, 8, dtype=torch.float64, generator=draw)
    labels = torch.randint(3, (12,), generator=draw)
    W = torch.randn(8, 8, dtype=torch.float64, generator=draw) / 8**0.5
    head = torch.randn(3, 8, dtype=torch.float64, generator=draw) / 8**0.5
    A = (torch.randn(6, 8, dtype=torch.float64, generator=draw) / 8**0.5).requires_grad_()
    B = torch.zeros(8, 6, dtype=torch.float64, requires_grad=True)

    def loss(gate):
        return cross_entropy(torch.tanh(x @ W.T + (gate * (x @ A.T)) @ B.T) @ (4 * head).T, labels)

    gate = torch.ones(6, dtype=torch.float64)
    optimizer = torch.optim.Adam([A, B], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss(gate).backward()
        optimizer.step()
    A.requires_grad_(False)
    B.requires_grad_(False)
    gap = gate_gap(loss, [gate], keep_prob=0.5, rescale=2.0)
    assert loss(gate).item() < 0.05
    assert gap.measured > 3 * gap.second_order > 0
    assert not gap.trustworthy


def test_refuses_a_single_probe():
    with pytest.raises(ValueError, match="at least 2 probes"):
        gate_trace(lambda g: g.sum(), [torch.ones(2)], probes=1)
    with pytest.raises(ValueError, match="at least 2 masks"):
        gate_gap(lambda g: g.sum(), [torch.ones(2)], keep_prob=0.5, rescale=2.0, masks=1)
