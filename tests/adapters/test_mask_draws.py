"""Sample and token masks: a pure function of seed, step, call, process and module."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.mask_hook import draw_uniform
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.theory.mask_law import Bernoulli, mask_law
from tests.adapters.observed_masks import observed, trainer
from tests.tiny import batch, tiny_lora

RANDOM = pytest.mark.parametrize("granularity", ["sample", "token"])


def masks_of(granularity, calls=2, *, step=3, seed=5, module=0, model=None, **law):
    """Run `calls` forward passes of one step and give the masks (calls, batch, tokens, r)."""
    model = model or tiny_lora(rank=16)
    mask = RankMask(0.5, granularity=granularity, seed=seed, **law).attach(model.train())
    mask.set_step(step)
    seen = observed(model, module)
    for _ in range(calls):
        model(**batch())
    mask.detach()
    return torch.stack(seen)


@RANDOM
def test_masks_repeat_themselves_and_depend_on_everything_they_should(granularity):
    first = masks_of(granularity)
    torch.manual_seed(123)
    assert torch.equal(first, masks_of(granularity))  # a resumed run
    assert not torch.equal(first[0], first[1])  # micro-batches
    for other in ({"step": 4}, {"seed": 6}, {"module": 1}):
        assert not torch.equal(first, masks_of(granularity, **other))


@RANDOM
def test_set_step_before_each_micro_batch_does_not_repeat_the_mask(granularity):
    model = tiny_lora(rank=16).train()
    mask = RankMask(0.5, granularity=granularity).attach(model)
    seen = observed(model)
    for _ in range(2):
        mask.set_step(1)
        model(**batch())
    assert not torch.equal(*seen)


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
def test_processes_share_step_masks_and_no_others(granularity):
    drawn = []
    for process in (0, 1):
        distributed.init_process_group("fake", rank=process, world_size=2, store=FakeStore())
        drawn.append(masks_of(granularity))
        distributed.destroy_process_group()
    alone = masks_of(granularity)
    assert torch.equal(drawn[0], alone)
    assert torch.equal(drawn[0], drawn[1]) == (granularity == "step")


@pytest.mark.parametrize("sampling", ["bernoulli", "exact-k"])
@RANDOM
def test_the_global_generator_is_left_alone(granularity, sampling):
    model = tiny_lora(rank=16)
    before = torch.get_rng_state()
    masks_of(granularity, sampling=sampling, model=model)
    assert torch.equal(before, torch.get_rng_state())


@RANDOM
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_recomputed_layer_gets_the_mask_of_its_own_forward_pass(granularity, reentrant, together):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_lora(trained=True, rank=8).train()
        with pytest.warns(UserWarning, match="not zero"):
            RankMask(0.5, granularity=granularity).attach(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        losses = [model(**batch(seed=seed)).loss for seed in (0, 1)]
        if together:  # a loss of two forward passes, as in contrastive training
            (losses[0] * losses[1]).backward()
        else:  # two graphs, the older one first
            for loss in losses:
                loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@RANDOM
@pytest.mark.parametrize("sampling", ["bernoulli", "exact-k"])
def test_masks_of_bf16_outputs_are_those_of_fp32(granularity, sampling):
    law = mask_law(0.25, granularity=granularity, sampling=sampling)
    drawn = [
        law.draw(draw_uniform(law, output, torch.Generator().manual_seed(0)))
        for output in (torch.empty(64, 8, 8), torch.empty(64, 8, 8, dtype=torch.bfloat16))
    ]
    assert torch.equal(*drawn)


@RANDOM
@pytest.mark.parametrize("sampling", ["bernoulli", "exact-k"])
def test_every_direction_is_kept_with_the_laws_probability(granularity, sampling):
    law = mask_law(0.25, granularity=granularity, sampling=sampling)
    output = torch.empty(40_000, 1, 8)
    kept = law.draw(draw_uniform(law, output, torch.Generator().manual_seed(0)))
    assert kept.shape == output.shape
    counts = kept.sum(0).flatten().numpy()
    assert stats.binomtest(int(counts.sum()), 320_000, 0.25).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue > 1e-3
    of_each = torch.bincount(kept.sum(-1).flatten(), minlength=9).numpy() / 40_000
    if sampling == "exact-k":
        assert of_each[2] == 1
    else:
        assert abs(of_each - stats.binom.pmf(range(9), 8, 0.25)).max() < 0.01


def test_the_number_of_threads_changes_no_mask():
    threads = torch.get_num_threads()
    drawn = []
    for count in (1, 2):
        torch.set_num_threads(count)
        output, law = torch.empty(512, 32, 8), Bernoulli(0.5, "token")
        drawn.append(draw_uniform(law, output, torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
def test_the_rescale_is_not_rounded_to_bf16(granularity):
    model = tiny_lora(rank=64).bfloat16().train()
    RankMask(0.7, granularity=granularity).attach(model)
    A = lora_modules(model)[0].A_module
    x = torch.randn(16, 64, 32).bfloat16()
    output, plain = A(x).float(), A.eval()(x).float()
    kept = output != 0
    # 1 / 0.7 is 1.4286, in bf16 1.4297; the products' own rounding averages out.
    assert abs((output[kept] / plain[kept]).mean() - 1 / 0.7) < 2e-4


@RANDOM
def test_a_resumed_trainer_continues_with_the_same_masks(granularity, tmp_path):
    model = tiny_lora(rank=16)
    RankMask(0.5, granularity=granularity, seed=5).attach(model)
    seen = observed(model)
    trainer(model, steps=4, folder=tmp_path, save_strategy="steps", save_steps=2).train()
    resumed = tiny_lora(rank=16)
    RankMask(0.5, granularity=granularity, seed=5).attach(resumed)
    again = observed(resumed)
    trainer(resumed, steps=4, folder=tmp_path).train(
        resume_from_checkpoint=f"{tmp_path}/checkpoint-2"
    )
    assert torch.equal(torch.stack(seen[2:]), torch.stack(again))
