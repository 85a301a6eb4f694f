import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom

from subspace_lab.theory.adam import (
    adam_step,
    displacement_ratio,
    dropped_step,
    effective_step_ratio,
    first_activation_step,
    first_gradient_step,
    leakage,
    squared_leakage,
    step_correction,
    token_step_ratio,
    weight_decay_ratio,
)
from subspace_lab.theory.enumeration import all_masks, mask_probabilities

BETAS = (0.9, 0.99)
LAWS = [(1.0, 0.0, 0.5), (1.0, 0.0, 0.2), (1.0, 1.0, 0.5), (0.3, 1.0, 0.5), (1.0, 1.0, 1.0)]
REPLICAS, BURN, STEPS, RATE, DECAY = 1000, 700, 400, 0.1, 0.5


@pytest.fixture(scope="module")
def simulated():
    """torch's AdamW on Bernoulli-gated Gaussian gradients, a row of coordinates for each law.

    Means over the late steps, by coordinate and so independent: step and its square in units of the
    learning rate, the part of it made while masked, and the weight.
    """
    draw = torch.Generator().manual_seed(0)
    mean, std, q = (x[:, None] for x in torch.tensor(LAWS, dtype=torch.float64).T)
    shape = (len(LAWS), REPLICAS)
    w = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.AdamW([w], lr=RATE, betas=BETAS, eps=1e-30, weight_decay=DECAY)
    sums = torch.zeros(4, *shape, dtype=torch.float64)
    for t in range(BURN + STEPS):
        kept = torch.rand(shape, generator=draw) < q
        noise = torch.randn(shape, dtype=torch.float64, generator=draw)
        w.grad.copy_(kept * (mean + std * noise))
        before = w.detach().clone()
        optimizer.step()
        if t >= BURN:
            step = (before * (1 - RATE * DECAY) - w.detach()) / RATE
            sums += torch.stack([step, step**2, step * ~kept, -before])
    step, square, masked, weight = sums / STEPS
    return SimpleNamespace(step=step, square=square, masked=masked, weight=weight)


def error(sample):
    return sample.std().item() / len(sample) ** 0.5


@pytest.mark.parametrize("row", range(len(LAWS)))
def test_mean_and_rms_step(row, simulated, deviation):
    mean, std, q = LAWS[row]
    predicted = adam_step(mean, std, keep_prob=q, beta1=BETAS[0], beta2=BETAS[1])
    steps = simulated.step[row]
    deviation(
        "T16: mean step against torch's AdamW, in standard errors (simulation)",
        adam_step,
        abs(steps.mean().item() - predicted.mean) / error(steps),
        4,
    )
    deviation(
        "T16: rms step against torch's AdamW, relative, leading order (simulation)",
        adam_step,
        abs(simulated.square[row].mean().sqrt().item() / predicted.rms - 1),
        0.03,
    )
    deviation(
        "T16: fraction moved while masked is b1(1-q), leading order (simulation)",
        leakage,
        abs((simulated.masked[row].mean() / steps.mean()).item() - leakage(keep_prob=q)),
        0.01,
    )


def test_correction_factor_is_needed(simulated, deviation):
    """At q = 0.2 and beta2 = 0.99 the correction is 1 %, far beyond the standard error."""
    q = 0.2
    steps = simulated.step[1] / math.sqrt(q)
    correction = step_correction(keep_prob=q, beta1=BETAS[0], beta2=BETAS[1])
    lam = (1 - q) / q
    closed = 1 + 3 / 8 * 0.01 / 1.99 * lam - 0.5 * 0.1 * 0.01 / (1 - 0.9 * 0.99) * lam
    deviation(
        "T16: correction factor in lam at std 0", step_correction, abs(correction - closed), 1e-15
    )
    deviation(
        "T16: correction factor against torch's AdamW, in standard errors (simulation)",
        step_correction,
        abs(steps.mean().item() - correction) / error(steps),
        4,
    )
    assert abs(steps.mean().item() - 1) > 4 * error(steps)


def test_mean_step_is_sqrt_q_of_loras(simulated, deviation):
    masked, lora = simulated.step[2], simulated.step[4]  # mu = sigma = 1, q = 0.5 and 1
    ratio = (masked.mean() / lora.mean()).item()
    deviation(
        "T16: mean step is sqrt(q) of LoRA's, relative, leading order (simulation)",
        effective_step_ratio,
        abs(ratio / effective_step_ratio(keep_prob=0.5) - 1),
        0.01,
    )


@pytest.mark.parametrize(("drift", "memory"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.9)])
def test_displacement_is_not_sqrt_q_where_gradients_wander(drift, memory, deviation):
    """torch's AdamW with and without step masks, under the same gradients of some memory."""
    q, coordinates, burn, steps = 0.5, 2000, 200, 150
    draw = torch.Generator().manual_seed(6)
    noise = torch.zeros(coordinates, dtype=torch.float64)
    X = torch.zeros(2, coordinates, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([X], lr=1.0, betas=BETAS, eps=1e-30, weight_decay=0)
    for t in range(burn + steps):
        if t == burn:
            start = X.detach().clone()
        fresh = torch.randn(coordinates, dtype=torch.float64, generator=draw)
        noise = memory * noise + math.sqrt(1 - memory**2) * fresh
        kept = torch.rand(coordinates, generator=draw) < q
        X.grad = torch.stack([torch.ones_like(kept), kept]) * (drift + noise)
        optimizer.step()
    plain, masked = (X.detach() - start).square().sum(1).tolist()
    measured = math.sqrt(masked / plain)
    kappa = effective_step_ratio(keep_prob=q)
    predicted = displacement_ratio(coordinates * steps / plain, step_ratio=kappa)
    deviation(
        "T16: displacement over LoRA's, gradients with any memory, leading order (simulation)",
        displacement_ratio,
        abs(measured / predicted - 1),
        0.04,
    )
    assert (measured > 1.1 * kappa) == (memory == 0)


def test_decay_to_learning_ratio(simulated, deviation):
    """The weight settles where decay and learning balance, at mean step / weight_decay."""
    ratio = (simulated.weight[4].mean() / simulated.weight[2].mean()).item()
    deviation(
        "T16: weight decay over learning grows by 1 / sqrt(q), relative (simulation)",
        weight_decay_ratio,
        abs(ratio / weight_decay_ratio(keep_prob=0.5) - 1),
        0.01,
    )


def test_decay_hits_masked_coordinates(deviation):
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.AdamW([w], lr=RATE, weight_decay=DECAY)
    for _ in range(5):
        optimizer.step()
    error = abs(w.item() - (1 - RATE * DECAY) ** 5)
    deviation("T16: decoupled decay acts at zero gradient", weight_decay_ratio, error, 1e-15)


def test_adam_is_invariant_to_the_rescale(deviation):
    found = []
    for s in [1.0, 1 / 0.3]:
        draw = torch.Generator().manual_seed(1)
        w = torch.zeros(100, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([w], lr=1.0, eps=1e-30)
        for _ in range(50):
            kept = torch.rand(100, generator=draw) < 0.3
            w.grad = s * kept * torch.randn(100, dtype=torch.float64, generator=draw)
            optimizer.step()
        found.append(w.detach())
    difference = (found[0] - found[1]).abs().max()
    deviation("T16: Adam's step does not see the rescale", adam_step, difference, 1e-12)


@pytest.mark.parametrize("q", [0.3, 0.5])
def test_leakage_of_sgd_with_momentum_is_exact(q, deviation):
    draw, b = torch.Generator().manual_seed(2), 0.8
    w = torch.zeros(2000, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=b)
    masked = torch.zeros(2000, dtype=torch.float64)
    for t in range(300):
        kept = torch.rand(2000, generator=draw) < q
        w.grad = kept.double()
        before = w.detach().clone()
        optimizer.step()
        if t >= 100:
            masked += (before - w.detach()) * ~kept / 200
    expected = leakage(keep_prob=q, beta1=b) * q / (1 - b)  # of the mean step q / (1 - b)
    deviation(
        "T16: leakage b(1-q) of SGD with momentum, in standard errors (simulation)",
        leakage,
        abs(masked.mean().item() - expected) / error(masked),
        4,
    )


def test_an_impulse_is_applied_late(deviation):
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    path = []
    for t in range(400):
        w.grad = torch.full_like(w, float(t == 0))
        optimizer.step()
        path.append(w.item())
    deviation(
        "T16: an impulse applies 1 - b1 of itself on its own step",
        leakage,
        abs(path[0] / path[-1] - 0.1),
        1e-12,
    )


@pytest.mark.parametrize("step", [1, 2, 10, 50, 1000])
def test_first_activation(step, deviation):
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.Adam([w], lr=1.0, eps=1e-30)
    for _ in range(step - 1):
        optimizer.step()
    w.grad.fill_(-3.0)
    optimizer.step()
    error = abs(w.item() - first_activation_step(step))
    deviation("T16: step of a coordinate first kept at t0", first_activation_step, error, 1e-13)


def test_first_activation_counts_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        first_activation_step(0)


def test_first_gradient_comes_at_the_second_activation(deviation):
    q, r, steps = 0.5, 1000, 60
    draw = torch.Generator().manual_seed(3)
    A = torch.randn(r, 2, dtype=torch.float64, generator=draw).requires_grad_()
    B = torch.zeros(2, r, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, dtype=torch.float64, generator=draw)
    optimizer = torch.optim.Adam([A, B], lr=1e-5)
    activations, second, first_gradient = torch.zeros(r), torch.zeros(r), torch.zeros(r)
    for t in range(1, steps + 1):
        kept = torch.rand(r, generator=draw) < q
        optimizer.zero_grad()
        (target - (B * kept) @ A).square().sum().backward()
        optimizer.step()
        activations += kept
        second[(activations == 2) & kept] = t
        started = (A.grad.abs().sum(1) > 0) & (first_gradient == 0)
        first_gradient[started] = t
    deviation(
        "T16: from B = 0 a row of A starts at its second activation",
        first_gradient_step,
        (second != first_gradient).sum(),
        0,
    )
    deviation(
        "T16: ... at step 2/q on average, in standard errors (simulation)",
        first_gradient_step,
        abs(first_gradient.mean().item() - first_gradient_step(keep_prob=q))
        / error(first_gradient),
        4,
    )


@pytest.mark.parametrize("q", [0.3, 0.5])
@pytest.mark.parametrize("tokens", [1, 16, 1000])
def test_token_masks_restore_the_step(q, tokens, deviation):
    law = binom(tokens, q)
    mean, second = law.mean(), law.var() + law.mean() ** 2
    deviation(
        "T16: E g / sqrt(E g^2) of N equal tokens = 1 / sqrt(1 + lam/N)",
        token_step_ratio,
        abs(mean / math.sqrt(second) - token_step_ratio(keep_prob=q, tokens=tokens)),
        1e-14,
    )


def test_unequal_tokens_count_less(deviation):
    q, h = 0.4, torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    masks = all_masks(4)
    g = masks.double() @ h / 4
    weights = mask_probabilities(masks, keep_prob=q)
    effective = 4 * h.mean() ** 2 / h.square().mean()
    ratio = (weights @ g) / (weights @ g**2).sqrt()
    deviation(
        "T16: unequal tokens count as N_eff",
        token_step_ratio,
        abs(ratio - 1 / (1 + (1 - q) / q / effective).sqrt()),
        1e-14,
    )


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("q", [0.5, 0.7, 0.9])
def test_share_of_squared_length_made_while_masked(q, signal, deviation):
    """torch's AdamW on gated noise and gated signal: the sums over coordinates and late steps."""
    draw = torch.Generator().manual_seed(4)
    w = torch.zeros(4000, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=1e-30, weight_decay=0.0)
    masked = total = 0.0
    for t in range(600):
        kept = torch.rand(4000, generator=draw) < q
        w.grad = kept * (signal + torch.randn(4000, dtype=torch.float64, generator=draw))
        before = w.detach().clone()
        optimizer.step()
        if t >= 300:
            squares = (w.detach() - before).square()
            masked, total = masked + squares[~kept].sum(), total + squares.sum()
    deviation(
        "T16: share of squared length made while masked is b1²(1-q), leading order (simulation)",
        squared_leakage,
        abs(masked / total - squared_leakage(keep_prob=q)),
        5e-3,
    )


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_a_dropped_coordinate_repeats_its_last_step(betas, decay, deviation):
    """torch's AdamW under a schedule; steps are compared without their decay."""
    draw = torch.Generator().manual_seed(4)
    w = torch.randn(500, dtype=torch.float64, generator=draw).requires_grad_()
    optimizer = torch.optim.AdamW([w], betas=betas, eps=1e-30, weight_decay=decay)
    worst, last, last_rate = 0.0, torch.zeros(500), 1.0
    for t in range(1, 40):
        rate = 0.1 * (2 + math.sin(t))
        optimizer.param_groups[0]["lr"] = rate
        kept = torch.rand(500, generator=draw) < 0.5
        w.grad = kept * torch.randn(500, dtype=torch.float64, generator=draw)
        before = w.detach().clone()
        optimizer.step()
        step = (1 - rate * decay) * before - w.detach()
        if t > 1:
            law = dropped_step(t, rate_ratio=rate / last_rate, beta1=betas[0], beta2=betas[1])
            off = (step - law.factor * last)[~kept].abs().max() / step.abs().max()
            worst = max(worst, off.item())
        last, last_rate = step, rate
    deviation(
        "T16: a coordinate without a gradient repeats its last step, torch's AdamW (relative)",
        dropped_step,
        worst,
        1e-12,
    )


@pytest.mark.parametrize("size", [1e-12, 1e-8, 1e-4])
def test_eps_only_shortens_the_step_of_a_dropped_coordinate(size, deviation):
    draw = torch.Generator().manual_seed(5)
    w = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=1e-8, weight_decay=0)
    outside, last = 0.0, torch.zeros(200)
    for t in range(1, 12):
        kept = torch.rand(200, generator=draw) < 0.5
        w.grad = size * kept * torch.randn(200, dtype=torch.float64, generator=draw)
        before = w.detach().clone()
        optimizer.step()
        step = (before - w.detach()).abs()
        if t > 1:
            law = dropped_step(t)
            above = (step - law.factor * last)[~kept].max()
            below = (law.least * last - step)[~kept].max()
            outside = max(outside, above.item(), below.item())
        last = step
    deviation(
        "T16: ... with eps by a factor within its bounds, excess over them",
        dropped_step,
        outside,
        1e-14,
    )


def test_a_dropped_step_needs_a_last_one():
    with pytest.raises(ValueError, match="from step 2 on"):
        dropped_step(1)
