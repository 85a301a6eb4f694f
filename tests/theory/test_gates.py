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
    gauss_newton_trace,
    mean_gates,
)

TOKENS, WIDTH, RANK, CLASSES = 4, 5, 3, 6


class Network:
    """Two adapted layers with gates between A and B; attention in between, or tanh."""

    def __init__(self, *, attention, strength=1.0, seed=0):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=draw) / shape[-1] ** 0.5

        self.attention = attention
        self.x = normal(TOKENS, WIDTH) * WIDTH**0.5
        self.labels = torch.randint(CLASSES, (TOKENS,), generator=draw)
        self.W = [normal(WIDTH, WIDTH), normal(CLASSES, WIDTH)]
        self.B = [strength * normal(WIDTH, RANK), strength * normal(CLASSES, RANK)]
        self.A = [normal(RANK, WIDTH), normal(RANK, WIDTH)]

    def layer(self, index, x, gate):
        W, B, A = self.W[index], self.B[index], self.A[index]
        return x @ W.T + (gate * (x @ A.T)) @ B.T

    def logits(self, first, second):
        h = self.layer(0, self.x, first)
        h = torch.softmax(h @ h.T, -1) @ h if self.attention else torch.tanh(h)
        return self.layer(1, h, second)

    def output_loss(self, logits):
        return cross_entropy(logits, self.labels)

    def __call__(self, first, second):
        return self.output_loss(self.logits(first, second))


def ones(*shape):
    return [torch.ones(shape, dtype=torch.float64) for _ in range(2)]


STEP, TOKEN = ones(RANK), ones(TOKENS, RANK)


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
