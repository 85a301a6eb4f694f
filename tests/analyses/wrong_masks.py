"""Rank masks that do not do what they say, trained for a few steps under the real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import Bernoulli, MaskLaw
from tests.tiny import batch, tiny_lora

RANK = 8
STEPS = 16


class Fault(TrainerCallback):
    """Replaces what the mask made of a module's A x, from one step on.

    Args:
        gates: gives the gates that are used in place of the right ones, from the law, the module's
            name, the step and A x (rows, tokens, r).
        after: the last step that is right.
    """

    def __init__(self, gates: Callable[[MaskLaw, str, int, Tensor], Tensor], *, after: int) -> None:
        self.gates = gates
        self.after = after
        self.step = 1

    def attach(self, model: nn.Module, law: MaskLaw) -> None:
        """Put the fault on every adapted module, behind its mask."""
        for module in lora_modules(model):
            module.A_module.register_forward_hook(self._hook(law, module.name))

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.step = state.global_step + 1

    def _hook(self, law: MaskLaw, name: str):
        def hook(module, inputs, output):
            if not module.training or self.step <= self.after:
                return None
            plain = nn.functional.linear(inputs[0], module.weight)
            return plain * self.gates(law, name, self.step, plain)

        return hook


def _mask(law: MaskLaw, name: str, step: int) -> Tensor:
    return torch.from_numpy(law.step_mask(step, name, RANK)).float()


def off(law, name, step, plain):
    return torch.ones(RANK)


def others(law, name, step, plain):
    return _mask(law, name, step + 1000) * law.factor


def swapped(law, name, step, plain):
    return (1 - _mask(law, name, step)) * law.factor


def frozen(law, name, step, plain):
    return _mask(law, name, 1) * law.factor


def rescaled(factor: float):
    return lambda law, name, step, plain: _mask(law, name, step) * factor


def not_rescaled_in_one_module(law, name, step, plain):
    factor = 1 if "layers.1.self_attn.q_proj" in name else law.factor
    return _mask(law, name, step) * factor


def drawn(shape: Callable[[Tensor], tuple[int, ...]]):
    """Draw fresh gates in each forward pass, of a shape that follows from that of A x."""
    generator = torch.Generator().manual_seed(1)

    def gates(law, name, step, plain):
        return (torch.rand(shape(plain), generator=generator) < law.keep_prob) * law.factor

    return gates


def per_sample(plain):
    return len(plain), 1, RANK


def per_token(plain):
    return tuple(plain.shape)


def per_pass(plain):
    return (RANK,)


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


def train(
    folder: Path,
    mask: RankMask | None,
    *,
    fault: Fault | None = None,
    claim: MaskLaw | None = None,
    steps: int = STEPS,
    accumulation: int = 1,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    seed: int = 0,
    adapter: dict | None = None,
    resume_from: int | None = None,
    **arguments,
) -> Run:
    """Train a tiny Llama of rank 8 under `mask`, and say that its law was `claim`.

    Args:
        fault: what the layers do instead.
        adapter: further fields of PEFT's LoraConfig.
        resume_from: stop here (a checkpoint is written), and resume with a new model.
        arguments: further TrainingArguments.
    """
    config = {
        "method": "lora" if mask is None else "droplora",
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "batch_size": 4,
        "accumulation": accumulation,
        "seed": seed,
    }
    description = {"config": config} | ({"mask": asdict(claim)} if claim else {})
    rows = batch(rows=64, seed=seed)["input_ids"]
    training_arguments = TrainingArguments(
        output_dir=f"{folder}/checkpoints",
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        optim="adamw_torch" if optimizer == "adamw" else "sgd",
        weight_decay=weight_decay,
        logging_steps=1,
        save_strategy="steps" if resume_from else "no",
        save_steps=resume_from or 500,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        **{"learning_rate": 1e-2 if optimizer == "adamw" else 0.3} | arguments,
    )
    for resume_at in [None, resume_from] if resume_from else [None]:
        model = tiny_lora(rank=RANK, seed=seed, **adapter or {})
        if mask is not None:
            mask.checked_steps = 0  # which would refuse most wrong masks before they are recorded
            mask.attach(model)
        if fault is not None:
            fault.attach(model, mask.law if mask else Bernoulli(0.5))
        recorder = SubspaceRecorder(folder, description=description)
        trainer = Trainer(
            model=model,
            args=training_arguments,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            callbacks=[recorder, *[fault] * (fault is not None)],
        )
        checkpoint = f"{folder}/checkpoints/checkpoint-{resume_at}" if resume_at else None
        trainer.train(resume_from_checkpoint=checkpoint)
        if mask is not None:
            mask.detach()
    return Run(folder)
