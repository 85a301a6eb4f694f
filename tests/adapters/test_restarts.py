"""Restarts: the function stays, the optimizer forgets, snapshots hold the sum over restarts."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.adapters.modules import lora_modules
from subspace_lab.adapters.restarts import Restarts
from tests.tiny import batch, tiny_lora


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def trained(steps: int = 3):
    """A LoRA after a few steps of AdamW, with its optimizer."""
    model = tiny_lora(rank=4)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    take_steps(model, optimizer, steps)
    return model, optimizer


def take_steps(model, optimizer, steps: int) -> None:
    for step in range(steps):
        model(**batch(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def restarts(model, *, restart="redraw", pruned=1.0) -> Restarts:
    return Restarts(model, every=2, restart=restart, pruned=pruned, seed=0)


@pytest.mark.parametrize("restart", ["redraw", "keep_a"])
def test_the_function_is_unchanged_and_the_adapter_begins_anew(restart):
    model, optimizer = trained()
    before = logits(model)
    A = {m.name: m.A.detach().clone() for m in lora_modules(model)}
    restarts(model, restart=restart).restart(optimizer, step=3)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)
    for module in lora_modules(model):
        assert not module.B.any()
        assert torch.equal(module.A, A[module.name]) == (restart == "keep_a")
        # as PEFT draws it: uniform in +- 1 / sqrt(n)
        assert module.A.abs().max() <= 1.5 / module.A.shape[1] ** 0.5


def test_after_a_restart_the_next_step_is_adams_first():
    """|step| = lr in each entry whose gradient is not tiny, as for a new optimizer; also of B."""
    model, optimizer = trained()
    restarts(model).restart(optimizer, step=3)
    weights = [w for m in lora_modules(model) for w in (m.A, m.B)]
    assert not any(weight in optimizer.state for weight in weights)
    before = [m.B.detach().clone() for m in lora_modules(model)]
    take_steps(model, optimizer, 1)
    for module, B in zip(lora_modules(model), before, strict=True):
        torch.testing.assert_close(
            (module.B - B).abs().median(), torch.tensor(1e-2), rtol=1e-3, atol=0
        )


def test_pruning_keeps_the_largest_moments_and_the_step_count():
    model, optimizer = trained()
    weights = [w for m in lora_modules(model) for w in (m.A, m.B)]
    before = [optimizer.state[w]["exp_avg_sq"].clone() for w in weights]
    restarts(model, pruned=0.75).restart(optimizer, step=3)
    for weight, old in zip(weights, before, strict=True):
        state = optimizer.state[weight]
        kept = state["exp_avg_sq"] != 0
        assert int(kept.sum()) == weight.numel() - round(0.75 * weight.numel())
        assert old[kept].min() >= old[~kept].max()
        assert int((state["exp_avg"] != 0).sum()) == int(kept.sum())
        assert int(state["step"]) == 3


def test_without_a_reset_the_moments_stay():
    model, optimizer = trained()
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    restarts(model, pruned=0.0).restart(optimizer, step=3)
    for state, old in zip(optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], old)


def test_draws_differ_between_restarts_and_repeat_with_the_seed():
    draws = []
    for step in (2, 4, 2):
        model, optimizer = trained()
        restarts(model).restart(optimizer, step=step)
        draws.append(lora_modules(model)[0].A.detach().clone())
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
