"""What a mask does to a module, seen from outside; and loops that train under it."""

from __future__ import annotations

import tempfile

import torch
from transformers import Trainer, TrainingArguments

from subspace_lab.adapters.modules import lora_modules
from subspace_lab.theory.mask_law import Bernoulli
from tests.tiny import batch


def observed(model: torch.nn.Module, index: int = 0) -> list[torch.Tensor]:
    """Collect (batch, tokens, r) where lora_A's output is not zero, for each training forward."""
    seen: list[torch.Tensor] = []

    def hook(module, inputs, output):
        if module.training:
            seen.append((output != 0).detach().clone())

    lora_modules(model)[index].A_module.register_forward_hook(hook)
    return seen


def step_masks(seen: list[torch.Tensor]) -> list[list[bool]]:
    """Give the one mask (r,) of each forward pass that all its tokens share."""
    assert all((mask == mask[:1, :1]).all() for mask in seen)
    return [mask[0, 0].tolist() for mask in seen]


def expected(steps, *, seed: int, rank: int = 4, index: int = 0, model=None) -> list[list[bool]]:
    """Give the law's masks of steps, for keep_prob 0.5."""
    name = lora_modules(model)[index].name
    return [Bernoulli(0.5, seed=seed).step_mask(step, name, rank).tolist() for step in steps]


def train_by_hand(model, optimizers, steps: int, *, micro_batches: int = 1) -> None:
    """Train with a plain loop that knows nothing of masks."""
    model.train()
    for _ in range(steps):
        for _ in range(micro_batches):
            model(**batch()).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


def trainer(model, *, steps: int, folder=None, **options) -> Trainer:
    """Make a plain Trainer, without the recorder."""
    defaults = {
        "output_dir": folder or tempfile.mkdtemp(),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    rows = batch(rows=64)["input_ids"]
    return Trainer(
        model=model,
        args=TrainingArguments(**(defaults | options)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
