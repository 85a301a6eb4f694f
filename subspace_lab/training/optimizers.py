"""The optimizer of a configuration: what the Trainer builds by itself, and LoRA+'s."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from subspace_lab.adapters.galore import galore_arguments
from subspace_lab.training.config import TrainConfig


def optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    """Give the fields of `TrainingArguments` that choose the optimizer."""
    if config.method == "galore":
        return galore_arguments(
            config.targets,
            rank=config.rank,
            refresh_every=config.galore_refresh,
            scale=config.galore_scale,
        )
    return {"optim": "adamw_torch_fused" if config.optimizer == "adamw" else "sgd"}


def lora_plus_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer | None:
    """Build LoRA+'s optimizer (Hayou et al., 2024): B learns `lora_plus_ratio` times as fast as A.

    Returns:
        PEFT's; None where the configuration has no ratio.
    """
    if config.lora_plus_ratio is None:
        return None
    from peft.optimizers import create_loraplus_optimizer

    adam: dict[str, Any] = {"optimizer_cls": torch.optim.AdamW, "fused": True}
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        lr=config.learning_rate,
        loraplus_lr_ratio=config.lora_plus_ratio,
        loraplus_weight_decay=config.weight_decay,
        **(adam if config.optimizer == "adamw" else {"optimizer_cls": torch.optim.SGD}),
    )
    return optimizer
