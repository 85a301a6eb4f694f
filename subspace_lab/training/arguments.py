"""The configuration, translated into the Trainer's arguments for this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from subspace_lab import models
from subspace_lab.adapters.methods import WHOLE_WEIGHTS
from subspace_lab.errors import UserError
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.optimizers import optimizer_arguments


def training_arguments(
    config: TrainConfig, out: Path, *, dtype: models.Precision = "fp32"
) -> TrainingArguments:
    """Translate the configuration for the Trainer, which computes in `dtype`.

    Raises:
        UserError: if the global batch cannot be made of whole batches on all processes, or a
            tracker is unknown or not installed.
    """
    evaluated = config.eval_split != "none"
    return TrainingArguments(
        # Without GPUs, several processes find each other, and bf16 is accepted, only where the
        # CPU is asked for.
        use_cpu=(process_count() > 1 or dtype == "bf16") and not torch.cuda.is_available(),
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        gradient_accumulation_steps=_accumulation(config),
        max_steps=config.steps or -1,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule
        if config.lr_schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        **optimizer_arguments(config),
        max_grad_norm=config.max_grad_norm,
        bf16=dtype == "bf16",
        torch_compile=config.compile,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="all",
        eval_strategy="steps" if evaluated and config.eval_every else "no",
        eval_steps=config.eval_every or None,
        eval_on_start=evaluated,
        save_strategy="steps" if config.checkpoint_every else "no",
        save_steps=config.checkpoint_every or 500,
        save_total_limit=2,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        seed=config.seed_of("noise"),
        data_seed=config.seed_of("data"),
        report_to=_trackers(config.report_to),
        run_name=out.name,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _trackers(names: Sequence[str]) -> list[str]:
    """Check that the Trainer knows these trackers, and that their packages are installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UserError(f"`report_to` {name} is not a tracker: choose among {known}")
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"`report_to` {name} needs its package, which is not installed: pip install {name}"
            )
    return list(names)


def _accumulation(config: TrainConfig) -> int:
    """Count the forward passes per optimizer step, so that all processes make the global batch."""
    if config.global_batch is None:
        return config.accumulation
    processes = process_count()
    accumulation, remainder = divmod(config.global_batch, config.batch_size * processes)
    if remainder or not accumulation:
        raise UserError(
            f"`global_batch` {config.global_batch} is not a multiple of `batch_size` "
            f"{config.batch_size} x {processes} processes: change one of them"
        )
    return accumulation


def process_count() -> int:
    """Count the data-parallel processes, as accelerate launch and torchrun set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def base_dtype(config: TrainConfig, base: models.Base) -> models.Precision:
    """Choose the dtype of the base and of what is computed; `auto` leaves it to the machine."""
    if config.method in WHOLE_WEIGHTS:
        return "fp32"
    return models.training_dtype(base) if config.base_dtype == "auto" else config.base_dtype
