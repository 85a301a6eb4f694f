"""The rank mask: its law, its exactness, and what it must never disturb."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy import stats

from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import Bernoulli, ExactK
from tests.tiny import batch, tiny_llama, tiny_lora


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch()).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_step_masks_follow_their_law_and_depend_on_seed_step_and_module():
    law = Bernoulli(0.3, seed=5)
    masks = np.stack([law.step_mask(step, "m", 16) for step in range(1, 2001)])
    kept = masks.sum(1)
    expected = stats.binom.pmf(np.arange(17), 16, 0.3) * len(kept)
    observed = np.bincount(kept, minlength=17)
    tail = expected < 5
    grouped = [np.append(x[~tail], x[tail].sum()) for x in (observed, expected)]
    assert stats.chisquare(*grouped).pvalue > 1e-3
    # Successive steps, neighboring modules and seeds are independent: overlap q^2 r.
    overlaps = [
        (masks[1:] & masks[:-1]).sum(1),
        (masks & np.stack([law.step_mask(t, "n", 16) for t in range(1, 2001)])).sum(1),
        (
            masks & np.stack([Bernoulli(0.3, seed=6).step_mask(t, "m", 16) for t in range(1, 2001)])
        ).sum(1),
    ]
    for overlap in overlaps:
        assert abs(overlap.mean() - 0.09 * 16) < 4 * np.sqrt(16 * 0.09 * 0.91 / len(overlap))
    assert np.array_equal(law.step_mask(7, "m", 16), Bernoulli(0.3, seed=5).step_mask(7, "m", 16))


def test_exact_k_keeps_k_and_every_direction_equally_often():
    law = ExactK(0.25)
    masks = np.stack([law.step_mask(step, "m", 8) for step in range(4000)])
    assert (masks.sum(1) == 2).all()
    assert stats.chisquare(masks.sum(0)).pvalue > 1e-3
    with pytest.raises(UserError, match="whole number"):
        law.step_mask(1, "m", 7)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_step_mask_computes_w0_x_plus_s_b_d_a_x(rescale):
    model = tiny_lora(trained=True).double()
    with pytest.warns(UserWarning, match="not zero"):
        mask = RankMask(0.5, rescale=rescale, seed=1).attach(model)
    module = lora_modules(model)[0]
    x = torch.randn(2, 5, module.A.shape[1], dtype=torch.float64)
    kept = torch.from_numpy(mask.kept[module.name]).double()
    s = 2.0 if rescale else 1.0
    dense = module.scaling * s * (module.B @ torch.diag(kept) @ module.A)
    expected = module.layer.base_layer(x) + x @ dense.T
    torch.testing.assert_close(module.layer.train()(x), expected, rtol=1e-12, atol=1e-12)
    full = module.layer.base_layer(x) + x @ (module.scaling * module.B @ module.A).T
    torch.testing.assert_close(module.layer.eval()(x), full, rtol=1e-12, atol=1e-12)


def test_masked_directions_get_exactly_zero_gradient():
    model = tiny_lora()
    mask = RankMask(0.5, seed=3).attach(model)
    for _, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.1)
    found = gradients(model)
    for module in lora_modules(model):
        dropped = ~mask.kept[module.name]
        prefix = f"base_model.model.{module.name}"
        assert dropped.any()
        assert (found[f"{prefix}.lora_A.default.weight"][dropped] == 0).all()
        assert (found[f"{prefix}.lora_B.default.weight"][:, dropped] == 0).all()
        assert (found[f"{prefix}.lora_A.default.weight"][~dropped] != 0).any()


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_bit(granularity, reentrant):
    found = []
    for checkpointing in (False, True):
        model = tiny_lora(lora_dropout=0.1).train()
        RankMask(0.5, granularity=granularity).attach(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_token_masks_are_the_dropout_of_the_released_code():
    """The gates of torch's dropout: 0 or 1 / keep_prob, each entry on its own."""
    model = tiny_lora(rank=16)
    RankMask(0.7, granularity="token").attach(model)
    module = lora_modules(model)[0]
    x = torch.randn(64, 32, module.A.shape[1])
    gates = module.A_module.train()(x) / (x @ module.A.T)
    kept = gates != 0
    torch.testing.assert_close(gates[kept], torch.full_like(gates[kept], 1 / 0.7))
    assert abs(kept.float().mean() - 0.7) < 4 * (0.21 / kept.numel()) ** 0.5
    for shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):  # neighbors in every dimension
        both = (kept & kept.roll(shift, dims=(0, 1, 2))).float().mean()
        assert abs(both - 0.49) < 5 * (0.49 * 0.51 / kept.numel()) ** 0.5


def test_sample_masks_are_shared_by_the_tokens_of_a_row_and_differ_between_rows():
    model = tiny_lora(rank=16)
    RankMask(0.5, granularity="sample").attach(model)
    module = lora_modules(model)[0]
    zeros = module.A_module.train()(torch.randn(8, 5, module.A.shape[1])) == 0
    assert (zeros == zeros[:, :1]).all()
    assert len({tuple(row.tolist()) for row in zeros[:, 0]}) > 1


def test_the_adapter_is_saved_as_a_plain_lora_and_detach_restores_the_model(tmp_path):
    model = tiny_lora(trained=True)
    keys = set(model.state_dict())
    with pytest.warns(UserWarning):
        mask = RankMask(0.5).attach(model)
    assert set(model.state_dict()) == keys
    assert find_rank_mask(model) is mask
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(loaded(**batch()).logits, model.eval()(**batch()).logits)
    mask.detach()
    assert find_rank_mask(model) is None
    torch.testing.assert_close(model.train()(**batch()).logits, loaded(**batch()).logits)


def test_chosen_masks_stay_on_in_evaluation_one_or_an_ensemble():
    model = tiny_lora(trained=True).eval()
    with pytest.warns(UserWarning):
        mask = RankMask(0.5, seed=2).attach(model)
    draws = [
        {name: torch.from_numpy(kept) for name, kept in mask.masks(step).items()} for step in (1, 2)
    ]
    with torch.no_grad():
        single = []
        for chosen in draws:
            with mask.in_evaluation(chosen):
                single.append(model(**batch()).logits)
        stacked = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
        repeated = {name: value.repeat(2, 1) for name, value in batch().items()}
        with mask.in_evaluation(stacked):
            both = model(**repeated).logits
        plain = model(**batch()).logits
    torch.testing.assert_close(both, torch.cat(single))
    mask.set_step(2)
    torch.testing.assert_close(model.train()(**batch()).logits, single[1])
    assert not torch.allclose(plain, single[0])


def test_all_micro_batches_of_a_step_share_the_mask_and_a_resumed_run_repeats_it():
    first, second = tiny_lora(), tiny_lora()
    mask, resumed = RankMask(0.5, seed=9).attach(first), RankMask(0.5, seed=9).attach(second)
    mask.set_step(12)
    before = {name: kept.copy() for name, kept in mask.kept.items()}
    for _ in range(3):
        gradients(first)
    assert all(np.array_equal(mask.kept[name], before[name]) for name in before)
    resumed.set_step(12)
    assert all(np.array_equal(resumed.kept[name], before[name]) for name in before)


def test_what_the_mask_refuses():
    for keep_prob in (0.0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"\(0, 1\]"):
            RankMask(keep_prob)
    with pytest.raises(UserError, match="DoRA"):
        RankMask(0.5, granularity="token").attach(tiny_lora(use_dora=True))
    with pytest.raises(UserError, match="no LoRA layers"):
        RankMask(0.5).attach(tiny_llama())
    model = tiny_lora()
    RankMask(0.5).attach(model)
    with pytest.raises(UserError, match="already has"):
        RankMask(0.5).attach(model)


def test_dora_masks_its_norm_and_its_output_alike():
    model = tiny_lora(use_dora=True)
    RankMask(0.5, seed=1).attach(model)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    module = lora_modules(model)[0]
    mask = find_rank_mask(model)
    kept = torch.from_numpy(mask.kept[module.name]).float()
    W = module.layer.base_layer.weight + module.scaling * 2 * (module.B * kept) @ module.A
    magnitude = module.layer.lora_magnitude_vector["default"].weight
    expected = magnitude[:, None] * W / W.norm(dim=1, keepdim=True)
    x = torch.randn(3, 32)
    torch.testing.assert_close(module.layer.train()(x), x @ expected.T, rtol=1e-4, atol=1e-5)
