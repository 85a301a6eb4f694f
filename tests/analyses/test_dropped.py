"""Steps of dropped directions as vectors: torch's AdamW on random gradients, and steps tampered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses.mask_theory.dropped_directions import _compare, _usual_gradient
from analyses.mask_theory.optimizer import Optimizer
from analyses.mask_theory.record import Directions

STEPS, LENGTH, RANK = 40, 30, 6


def trajectory(*, weight_decay: float, dtype: torch.dtype = torch.float32):
    """Train X (LENGTH, RANK) with AdamW under step masks: states (T + 1, ...), masks, rates."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(LENGTH, RANK, generator=draw).to(dtype).requires_grad_()
    optimizer = torch.optim.AdamW([X], weight_decay=weight_decay)
    states, kept, rates = [X.detach().clone()], [], []
    for t in range(STEPS):
        rates.append(1e-2 * (1 - t / STEPS))
        optimizer.param_groups[0]["lr"] = rates[-1]
        kept.append(torch.rand(RANK, generator=draw) < 0.5)
        X.grad = (torch.randn(LENGTH, RANK, generator=draw) * kept[-1]).to(dtype)
        optimizer.step()
        states.append(X.detach().clone())
    return torch.stack(states).double().numpy(), torch.stack(kept).numpy(), np.array(rates)


def directions(states) -> Directions:
    """Reduce states (T + 1, n, r) to what cores say of one module, (T, 1, r)."""
    step = np.diff(states, axis=0)
    after = states[1:]
    numbers = {
        "size": np.linalg.norm(after, axis=1),
        "step": np.linalg.norm(step, axis=1),
        "start": np.linalg.norm(after - states[:1], axis=1),
        "along": (after * step).sum(1),
    }
    return Directions(**{name: values[:, None] for name, values in numbers.items()})


@pytest.mark.parametrize("weight_decay", [0.0, 0.5, 5.0])
def test_dropped_steps_are_allowed_and_kept_ones_are_not(weight_decay):
    states, kept, rates = trajectory(weight_decay=weight_decay)
    optimizer = Optimizer("AdamW", weight_decay=weight_decay)
    found = _compare(directions(states), rates, optimizer)
    kept = kept[:, None]
    assert (found.resolved & ~kept).sum() > 80
    assert found.allowed[found.resolved & ~kept].all()
    assert found.repeated[found.resolved & ~kept].all()
    assert not found.repeated[found.resolved & kept].any()
    assert found.allowed[found.resolved & kept].mean() < 0.05


def test_another_decay_or_other_betas_than_the_runs_are_noticed():
    states, kept, rates = trajectory(weight_decay=0.5)
    for other in (Optimizer("AdamW"), Optimizer("AdamW", betas=(0.8, 0.999), weight_decay=0.5)):
        found = _compare(directions(states), rates, other)
        assert not found.allowed[found.resolved & ~kept[:, None]].all()


def test_a_step_of_the_right_length_in_another_direction_is_noticed():
    states, kept, rates = trajectory(weight_decay=0.0)
    t, i = next((t, i) for t in range(25, STEPS) for i in range(RANK) if not kept[t, i])
    tampered = states.copy()
    step = states[t + 1, :, i] - states[t, :, i]
    along = states[t, :, i] / np.linalg.norm(states[t, :, i])
    tampered[t + 1, :, i] = states[t, :, i] + np.linalg.norm(step) * along
    found = _compare(directions(tampered), rates, Optimizer("AdamW"))
    assert found.resolved[t, 0, i] and not found.allowed[t, 0, i]
    others = np.delete(np.arange(RANK), i)
    assert found.allowed[:, 0, others][(found.resolved & ~kept[:, None])[:, 0, others]].all()


def test_what_coarse_weights_hide_is_not_tested():
    states, kept, rates = trajectory(weight_decay=0.0, dtype=torch.bfloat16)
    found = _compare(directions(states), rates, Optimizer("AdamW", rounding=2.0**-9))
    assert found.resolved.sum() < 0.05 * found.resolved.size
    assert found.allowed[found.resolved & ~kept[:, None]].all()


def test_steps_after_a_collapse_of_the_gradient_say_nothing():
    norms = np.array([1.0, 0.5, 1e-3, 0.2, 0.0, np.nan, 1.0, np.inf])
    usual = _usual_gradient(norms, Optimizer("AdamW"))
    assert usual.tolist() == [True, True, False, True, False, True, True, False]
