"""A mask that is not applied is refused in the first steps, whatever the reason."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from subspace_lab.adapters.frozen import freeze
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from tests.adapters.observed_masks import train_by_hand, trainer
from tests.tiny import batch, tiny_lora


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def fuse(model: nn.Module, index: int = 0) -> None:
    """Compute a LoRA layer as fused kernels do: from the weights, without calling lora_A."""
    module = lora_modules(model)[index]

    def forward(x, *args, **kwargs):
        return module.layer.base_layer(x) + x @ module.A.T @ module.B.T * module.scaling

    module.layer.forward = forward


class Frozen(RankMask):
    """Says that it advances, and keeps the mask of step 1 on."""

    def set_step(self, step):
        super().set_step(step)
        self._freeze()

    def _use(self, step):
        super()._use(step)
        self._freeze()

    def _freeze(self):
        for name, kept in self.masks(1).items():
            self._hooks[name].multiplier.copy_(torch.from_numpy(kept * self.law.factor))


class Off(RankMask):
    """Keeps everything."""

    def _use(self, step):
        super()._use(step)
        for hook in self._hooks.values():
            hook.multiplier.fill_(1)


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
@pytest.mark.parametrize("under", ["loop", "trainer"])
def test_fused_kernels_that_bypass_the_module_are_refused(granularity, under):
    model = tiny_lora()
    RankMask(0.5, granularity=granularity, seed=1).attach(model)
    fuse(model, index=2)  # one layer of many is enough
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj.*fused LoRA kernels"):
        if under == "loop":
            train_by_hand(model, [adamw(model)], 1)
        else:
            trainer(model, steps=1).train()


@pytest.mark.parametrize(("wrong", "refused_at"), [(Frozen, 2), (Off, 1)])
def test_gradients_of_dropped_directions_are_refused(wrong, refused_at):
    model = tiny_lora()
    wrong(0.5, seed=1).attach(model)
    optimizer = adamw(model)
    train_by_hand(model, [optimizer], refused_at - 1)
    with pytest.raises(UserError, match="the mask is not applied"):
        train_by_hand(model, [optimizer], 1)


def test_a_penalty_on_the_weights_themselves_needs_the_check_switched_off():
    for checked_steps in (3, 0):
        model = tiny_lora()
        RankMask(0.5, seed=1, checked_steps=checked_steps).attach(model)
        optimizer = adamw(model)
        loss = model.train()(**batch()).loss + sum(m.A.square().sum() for m in lora_modules(model))
        loss.backward()
        if checked_steps:
            with pytest.raises(UserError, match="checked_steps=0"):
                optimizer.step()
        else:
            optimizer.step()


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
def test_what_is_not_trained_is_not_complained_of(granularity):
    model = tiny_lora()
    RankMask(0.5, granularity=granularity).attach(model)
    experts = [lora_modules(model)[0], lora_modules(model)[1]]
    for module in experts:  # experts that no token reached: no call and no gradient
        module.layer.forward = module.layer.base_layer.forward
    train_by_hand(model, [adamw(model)], 1)
    optimizer = adamw(model)
    for module in experts:  # as under DDP
        module.A.grad, module.B.grad = torch.zeros_like(module.A), torch.zeros_like(module.B)
    with model.disable_adapter():
        model.train()(**batch())
    optimizer.step()


@pytest.mark.parametrize("granularity", ["step", "token"])
def test_an_overflow_in_mixed_precision_is_not_a_missing_mask(granularity):
    model = tiny_lora()
    RankMask(0.5, granularity=granularity).attach(model)
    optimizer = adamw(model)
    (model.train()(**batch()).loss * float("inf")).backward()
    optimizer.step()


def test_a_second_adapter_trains_without_the_first_ones_mask():
    model = tiny_lora()
    mask = RankMask(0.5, seed=1).attach(model)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    train_by_hand(model, [adamw(model)], 2)
    assert mask.step == 1
    mask.detach()
    with pytest.warns(UserWarning, match="not zero"):
        mask.attach(model, adapter="other")
    mask.set_step(1)
    train_by_hand(model, [adamw(model)], 2)
    assert mask.step == 3


@pytest.mark.parametrize("side", ["A", "B"])
def test_the_factor_that_is_not_frozen_is_checked(side):
    """Silence means that the check was made: warnings are errors here."""
    models = [tiny_lora(), tiny_lora()]
    for model, mask in zip(models, [RankMask(0.5, seed=1), Off(0.5, seed=1)], strict=True):
        freeze(model, side, seed=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the adapter's B A is not zero")
            mask.attach(model)
    trainer(models[0], steps=5).train()
    with pytest.raises(UserError, match="the mask is not applied"):
        train_by_hand(models[1], [adamw(models[1])], 1)


def test_a_trainer_that_hides_the_gradients_says_that_it_was_not_checked():
    model = tiny_lora()
    RankMask(0.5, seed=1).attach(model)
    trained = trainer(model, steps=5)
    trained.create_optimizer()

    class Sharded(torch.optim.SGD):  # holds copies, as DeepSpeed does
        def step(self, closure=None):
            return None

    trained.optimizer = Sharded([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.warns(UserWarning, match="was not checked"):
        trained.train()
