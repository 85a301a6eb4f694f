"""The penalty's value by brute force in float64, its gradient by differences."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.theory.regularizer import explicit_regularizer
from subspace_lab.training.penalty import Penalty
from tests.tiny import batch, tiny_lora


def padded() -> dict[str, torch.Tensor]:
    """A batch whose second half of rows ends two tokens early."""
    rows = batch()
    rows["attention_mask"] = torch.ones_like(rows["input_ids"])
    rows["attention_mask"][2:, -2:] = 0
    return rows


def penalty_of(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    penalty = Penalty(lora_modules(model))
    with penalty.collected(rows["attention_mask"]):
        model(**rows)
        return penalty.total()


def test_it_is_the_regularizer_of_the_inputs_that_are_no_padding():
    model = tiny_lora(trained=True).double().train()
    rows, inputs = padded(), {}
    handles = [
        module.layer.register_forward_pre_hook(
            lambda layer, given, name=module.name: inputs.__setitem__(name, given[0])
        )
        for module in lora_modules(model)
    ]
    found = penalty_of(model, rows)
    assert len(handles) == len(inputs)
    expected = 0.0
    for module in lora_modules(model):
        X = inputs[module.name][rows["attention_mask"].bool()]
        R = explicit_regularizer(module.B, module.A, second_moment=X.mT @ X / len(X))
        expected += module.scaling**2 * R
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    rows["input_ids"][2:, -2:] = 0  # what stands in the padding does not matter
    torch.testing.assert_close(penalty_of(model, rows), found, rtol=1e-10, atol=0)


def test_its_gradient_by_differences_through_the_inputs_of_later_layers():
    model = tiny_lora(trained=True).double().train()
    rows, h = padded(), 1e-3
    penalty_of(model, rows).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((p.grad * v).sum() for p, v in zip(parameters, direction, strict=True))

    def moved(size: float) -> torch.Tensor:
        for p, v in zip(parameters, direction, strict=True):
            p.data += size * v
        value = penalty_of(model, rows).detach()
        for p, v in zip(parameters, direction, strict=True):
            p.data -= size * v
        return value

    # Llama's norms compute in fp32, so that smaller steps would show their rounding.
    torch.testing.assert_close((moved(h) - moved(-h)) / (2 * h), slope, rtol=1e-4, atol=0)


def test_gradient_checkpointing_does_not_change_it():
    gradients = []
    for saving in (False, True):
        model = tiny_lora(trained=True).double().train()
        if saving:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        rows, penalty = padded(), Penalty(lora_modules(model))
        with penalty.collected(rows["attention_mask"]):
            loss = model(**rows).loss
            (loss + penalty.total()).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-9, atol=1e-12)


def test_where_it_would_be_wrong_it_is_refused():
    with pytest.raises(UserError, match="is a DoRA"):
        Penalty(lora_modules(tiny_lora(use_dora=True)))
    model = tiny_lora(trained=True).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="reentrant"):
        penalty_of(model, padded())


def test_it_leaves_no_hooks_behind():
    model = tiny_lora(trained=True)
    penalty_of(model, padded())
    assert not any(module.A_module._forward_hooks for module in lora_modules(model))
