"""Rank masks that do not do what they say, trained for a few steps under the real Trainer."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from subspace_lab.adapters.mask import MaskLaw, RankMask
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.run import Run
from tests.tiny import batch, tiny_lora

RANK = 8


class Swapped(RankMask):
    """Drops what it should keep."""

    def set_step(self, step):
        super().set_step(step)
        for name, kept in self.kept.items():
            self._hooks[name].multiplier.copy_(torch.from_numpy(~kept * self.law.factor))


class NotRescaled(RankMask):
    """Claims the rescale 1 / keep_prob, and multiplies by one."""

    def attach(self, model, *, adapter="default"):
        super().attach(model, adapter=adapter)
        for hook in self._hooks.values():
            hook.multiplier.clamp_(max=1)
        return self

    def set_step(self, step):
        super().set_step(step)
        for hook in self._hooks.values():
            hook.multiplier.clamp_(max=1)


class PerSample(RankMask):
    """Records a mask per step, and draws one per sample."""

    drawn = "sample"

    def attach(self, model, *, adapter="default"):
        super().attach(model, adapter=adapter)
        for hook in self._hooks.values():
            hook.law = replace(self.law, granularity=self.drawn)
        return self


class PerToken(PerSample):
    """Records a mask per step, and draws one per token."""

    drawn = "token"


class OneForAllModules(RankMask):
    """Gives every module the mask of the first."""

    def masks(self, step):
        masks = super().masks(step)
        return dict.fromkeys(masks, next(iter(masks.values())))


class Sticky(RankMask):
    """Keeps half of the directions as they were in the step before."""

    def masks(self, step):
        before = super().masks(step - 1)
        half = np.arange(RANK) % 2 == step % 2
        return {
            name: np.where(half, mask, before[name]) for name, mask in super().masks(step).items()
        }


class PerMicroBatch(RankMask):
    """Records the mask of the step, and uses another one in each forward pass."""

    def attach(self, model, *, adapter="default"):
        self.calls = 0
        model.register_forward_pre_hook(lambda *_: self._redraw())
        return super().attach(model, adapter=adapter)

    def _redraw(self):
        self.calls += 1
        for name, kept in self.masks(1000 + self.calls).items():
            self._hooks[name].multiplier.copy_(torch.from_numpy(kept * self.law.factor))


def train(
    folder: Path,
    mask: RankMask | None,
    *,
    claim: MaskLaw | None = None,
    steps: int = 16,
    accumulation: int = 1,
    optimizer: str = "adamw",
    seed: int = 0,
) -> Run:
    """Train a tiny Llama of rank 8 under `mask`, and say that its law was `claim`."""
    model = tiny_lora(rank=RANK, seed=seed)
    if mask is not None:
        mask.checked_steps = 0  # which would refuse most wrong masks before they are recorded
        mask.attach(model)
    config = {
        "method": "lora" if mask is None else "droplora",
        "optimizer": optimizer,
        "weight_decay": 0.0,
        "batch_size": 4,
        "accumulation": accumulation,
        "seed": seed,
    }
    description = {"config": config} | ({"mask": asdict(claim)} if claim else {})
    arguments = TrainingArguments(
        output_dir=f"{folder}/checkpoints",
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        optim="adamw_torch" if optimizer == "adamw" else "sgd",
        learning_rate=1e-2 if optimizer == "adamw" else 0.3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
    )
    rows = batch(rows=64, seed=seed)["input_ids"]
    Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[SubspaceRecorder(folder, description=description)],
    ).train()
    return Run(folder)
