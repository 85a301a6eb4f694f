"""Gates chosen in training: applied as they are, in the passes they were chosen for, no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from tests.tiny import batch, tiny_lora

pytestmark = pytest.mark.filterwarnings("ignore:the adapter's B A is not zero")


def masked(**law) -> tuple[torch.nn.Module, RankMask]:
    model = tiny_lora(trained=True).double()
    return model.train(), RankMask(0.5, seed=1, **law).attach(model)


def random_gates(mask: RankMask, seed: int, *groups: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*groups, rank, generator=generator) for name, rank in mask.ranks.items()
    }


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["step", "token"])
def test_gates_are_taken_as_they_are_and_groups_have_their_own(granularity):
    model, mask = masked(granularity=granularity)
    module = lora_modules(model)[0]
    x = torch.randn(6, 5, module.A.shape[1], dtype=torch.float64)
    gates = random_gates(mask, 0, 3)
    with mask.use(gates):
        found = module.layer(x)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        update = module.scaling * (module.B * gates[module.name][group]) @ module.A
        expected = x[rows] @ (module.layer.base_layer.weight + update).mT
        torch.testing.assert_close(found[rows], expected)
    with mask.use(gates), pytest.raises(UserError, match="5 rows cannot be split among 3 masks"):
        module.layer(x[:5])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("granularity", ["step", "token"])
def test_a_recomputed_pass_has_its_own_gates_whatever_was_chosen_since(granularity, reentrant):
    def two_passes(model: torch.nn.Module) -> list[torch.Tensor]:
        mask = find_rank_mask(model)
        losses = []
        for seed in (0, 1):
            with mask.use(random_gates(mask, seed)):
                losses.append(model(**batch(seed=seed)).loss)
        losses.append(model(**batch(seed=2)).loss)  # under the law's own mask
        for loss in (losses[1], losses[2], losses[0]):
            loss.backward()
        return gradients(model)

    plain, _ = masked(granularity=granularity)
    saving, _ = masked(granularity=granularity)
    saving.enable_input_require_grads()
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_equal(two_passes(plain), two_passes(saving))


def test_a_step_with_chosen_gates_has_no_single_mask_and_the_next_one_has_its_own():
    model, mask = masked()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    expected = mask.masks(2)
    with mask.use(random_gates(mask, 0)):
        model(**batch()).loss.backward()
    assert mask.gates_chosen
    assert mask.kept == {}
    optimizer.step()  # dropped directions have a gradient, and nothing is refused
    assert not mask.gates_chosen
    assert all(np.array_equal(mask.kept[name], expected[name]) for name in expected)


def test_around_a_whole_loop_no_step_has_a_mask():
    model, mask = masked()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with mask.use(random_gates(mask, 0)):
        for _ in range(2):
            model(**batch()).loss.backward()
            optimizer.step()
        assert mask.step == 3
        assert mask.kept == {}


def test_gates_that_require_gradients_get_them_under_checkpointing():
    """Rows a_i enter as g_i a_i only, so <a_i, dL/da_i> = g_i dL/dg_i."""
    model, mask = masked()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gates = {name: gate.double().requires_grad_() for name, gate in random_gates(mask, 0).items()}
    with mask.use(gates):
        loss = model(**batch()).loss
    loss.backward()
    for module in lora_modules(model):
        gate = gates[module.name]
        expected = (module.A * module.A.grad).sum(1)
        assert expected.abs().max() > 0
        torch.testing.assert_close(gate.detach() * gate.grad, expected.detach())


def test_evaluation_is_not_affected():
    model, mask = masked()
    expected = model.eval()(**batch()).logits
    with mask.use(random_gates(mask, 0)):
        torch.testing.assert_close(model(**batch()).logits, expected)


def test_wrong_gates_are_refused():
    _model, mask = masked()
    gates = random_gates(mask, 0)
    name = next(iter(gates))
    for wrong, message in (
        ({name: gates[name]}, "gates must cover the masked modules"),
        (gates | {name: torch.ones(3)}, r"must be \(4,\) or \(K, 4\), not \(3,\)"),
        (gates | {name: torch.ones(2, 2, 4)}, r"not \(2, 2, 4\)"),
    ):
        with pytest.raises(UserError, match=message), mask.use(wrong):
            pass
    assert not mask.gates_chosen
