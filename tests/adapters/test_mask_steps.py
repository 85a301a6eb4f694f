"""The mask advances by itself: in loops of one's own, under a plain Trainer, after a resume."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import trainer as transformers_trainer

from subspace_lab.adapters import mask_steps
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.adapters.observed_masks import expected, observed, step_masks, train_by_hand, trainer
from tests.tiny import batch, tiny_lora


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


class Nested(torch.optim.SGD):
    """An optimizer whose step calls its parent's: torch's hooks see both."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("kind", ["one", "nested", "two", "accelerated"])
def test_a_loop_that_knows_nothing_of_masks_trains_under_those_of_its_steps(kind, micro_batches):
    model = tiny_lora()
    RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(parameters, lr=1e-2)  # wraps SGD.step, so that Nested is seen twice
    optimizers = {
        "one": lambda: [adamw(model)],
        "nested": lambda: [Nested(parameters, lr=1e-2)],
        "two": lambda: [
            torch.optim.SGD(parameters[::2], lr=1e-2),
            torch.optim.Adam(parameters[1::2]),
        ],
        "accelerated": lambda: [accelerated(adamw(model))],
    }[kind]()
    train_by_hand(model, optimizers, 4, micro_batches=micro_batches)
    masks = expected(range(1, 5), seed=5, model=model)
    assert step_masks(seen) == [mask for mask in masks for _ in range(micro_batches)]


def accelerated(optimizer):
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(optimizer)


def test_a_new_optimizer_goes_on_with_the_next_mask():
    model = tiny_lora()
    mask = RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    first = adamw(model)
    train_by_hand(model, [first], 3)
    train_by_hand(model, [adamw(model)], 3)
    assert step_masks(seen) == expected(range(1, 7), seed=5, model=model)
    assert mask.step == 7


def test_another_models_optimizer_does_not_advance_the_mask():
    model, other = tiny_lora(), tiny_lora()
    mask, others = RankMask(0.5).attach(model), RankMask(0.5).attach(other)
    train_by_hand(other, [adamw(other)], 2)
    assert (mask.step, others.step) == (1, 3)


def test_a_step_within_the_backward_pass_advances_after_it():
    model = tiny_lora(trained=True)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.warns(UserWarning, match="not zero"):
        RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = {p: torch.optim.SGD([p], lr=1e-2) for p in trained}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(step)
    model.train()
    for _ in range(3):
        model(**batch()).loss.backward()
    masks = expected(range(1, 4), seed=5, model=model)
    assert step_masks(seen) == [mask for mask in masks for _ in ("forward", "recomputation")]


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_a_plain_trainer_advances_the_mask_and_a_resumed_one_continues(tmp_path, optimizer):
    model = tiny_lora()
    RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    options = {"gradient_accumulation_steps": 2, "optim": optimizer, "save_strategy": "steps"}
    trainer(model, steps=4, folder=tmp_path, save_steps=2, **options).train()
    masks = expected(range(1, 5), seed=5, model=model)
    assert step_masks(seen) == [mask for mask in masks for _ in range(2)]

    resumed = tiny_lora()
    RankMask(0.5, seed=5).attach(resumed)
    seen = observed(resumed)
    trainer(resumed, steps=4, folder=tmp_path, save_steps=9, **options).train(
        resume_from_checkpoint=f"{tmp_path}/checkpoint-2"
    )
    assert step_masks(seen) == [mask for mask in masks[2:] for _ in range(2)]


def test_the_recorder_keeps_the_masks_in_use_also_of_a_mask_younger_than_the_trainer(tmp_path):
    options = {"optim": "sgd", "folder": tmp_path / "trainer", "save_strategy": "steps"}
    first = tiny_lora()
    RankMask(0.5, seed=5).attach(first)
    trainer_of_first = trainer(first, steps=4, save_steps=2, **options)
    trainer_of_first.add_callback(SubspaceRecorder(tmp_path / "run", cores="never"))
    trainer_of_first.train()
    model = tiny_lora()
    resumed = trainer(model, steps=5, save_steps=9, **options)
    RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    resumed.add_callback(SubspaceRecorder(tmp_path / "run", cores="never"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    steps, masks = Run(tmp_path / "run").masks(lora_modules(model)[0].name)
    assert list(steps) == [1, 2, 3, 4, 5]
    assert masks[2:].tolist() == step_masks(seen) == expected([3, 4, 5], seed=5, model=model)


def test_the_mask_follows_a_model_that_is_moved_after_attach():
    model = tiny_lora().train()
    RankMask(0.5, seed=5).attach(model)
    A = lora_modules(model)[0].A_module
    (hook,) = A._forward_hooks.values()
    with FakeTensorMode(allow_non_fake_inputs=True):  # knows devices, needs none
        output = hook(A, (), torch.empty(2, 3, 4, device="cuda"))
    assert output.device.type == "cuda"


def test_a_trainer_of_another_model_leaves_the_mask_alone():
    model, other = tiny_lora(), tiny_lora()
    mask = RankMask(0.5).attach(model)
    trainer(other, steps=2).train()
    assert mask.step == 1


def test_a_resumed_loop_has_to_name_its_step():
    model = tiny_lora()
    optimizer = adamw(model)
    train_by_hand(model, [optimizer], 2)
    mask = RankMask(0.5, seed=5, checked_steps=0)
    with pytest.warns(UserWarning, match="not zero"):
        mask.attach(model)
    with pytest.raises(UserError, match=r"set_step\(3\)"):
        train_by_hand(model, [optimizer], 1)
    seen = observed(model)
    mask.set_step(3)
    train_by_hand(model, [optimizer], 2)
    assert step_masks(seen) == expected([3, 4], seed=5, model=model)


def test_set_step_wins_over_counting():
    model = tiny_lora()
    mask = RankMask(0.5, seed=5).attach(model)
    seen = observed(model)
    for step in (8, 8, 3):  # a mask that stays for two steps
        mask.set_step(step)
        train_by_hand(model, [adamw(model)], 1)
    assert step_masks(seen) == expected([8, 8, 3], seed=5, model=model)


def test_many_forward_passes_without_a_step_warn_once():
    model = tiny_lora()
    RankMask(0.5).attach(model)
    A = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default")
    with pytest.warns(UserWarning, match="no optimizer step") as caught:
        for _ in range(400):
            A(torch.zeros(1, 1, 32))
    assert len(caught) == 1


def test_detach_and_the_end_of_a_model_leave_nothing_behind():
    gc.collect()
    callbacks, watches = list(transformers_trainer.DEFAULT_CALLBACKS), len(mask_steps._WATCHES)
    model = tiny_lora()
    mask = RankMask(0.5).attach(model)
    mask.detach()
    assert callbacks == transformers_trainer.DEFAULT_CALLBACKS
    assert len(mask_steps._WATCHES) == watches
    RankMask(0.5).attach(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert callbacks == transformers_trainer.DEFAULT_CALLBACKS
    assert len(mask_steps._WATCHES) == watches


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_mask_of_a_copied_model_advances_with_the_copy(copied):
    model = tiny_lora()
    mask = RankMask(0.5, seed=5).attach(model)
    twin = copied(model)
    seen = observed(twin)
    train_by_hand(twin, [adamw(twin)], 3)
    assert step_masks(seen) == expected(range(1, 4), seed=5, model=twin)
    assert (mask.step, find_rank_mask(twin).step) == (1, 4)
