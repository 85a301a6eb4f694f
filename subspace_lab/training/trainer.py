"""From a configuration to a trained, recorded run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from subspace_lab import files, models, tasks
from subspace_lab.adapters.adalora import RankAllocation
from subspace_lab.adapters.methods import WHOLE_WEIGHTS
from subspace_lab.adapters.restarts import Restarts
from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import context_length
from subspace_lab.provenance import provenance
from subspace_lab.recording.projection_recorder import ProjectionRecorder
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.run_folder import refuse_if_occupied
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import (
    RightPadding,
    data_hash,
    response_statistics,
    summarise,
    tokenize,
)
from subspace_lab.training.optimizers import lora_plus_optimizer, optimizer_arguments
from subspace_lab.training.preparation import Prepared, prepare, restrict_to_shards
from subspace_lab.training.resuming import FINISHED, how_to_continue, resume_point

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from subspace_lab.tasks import Example


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> int | None:
    """Train as `config` says and record into the run directory `out`.

    Whatever stops the training, what was recorded is on disk then. A `KeyboardInterrupt` gets a
    note that says how to continue.

    Args:
        config: the configuration.
        out: the run directory.
        resume: continue an unfinished run of the same configuration in `out` from its last
            checkpoint; a finished one is left as it is.

    Returns:
        The step after which the weights were not finite; None for a run that did not diverge.

    Raises:
        UserError: if `out` is occupied or cannot be written, or anything that the configuration
            names is missing.
    """
    resume_at = None
    if resume:
        dtype = models.DTYPES[base_dtype(config, models.find_base(config.base))]
        resume_at = resume_point(config, out, processes=_processes(), base_dtype=dtype)
    if resume_at == FINISHED:
        print(f"{out} is finished: nothing to do")
        return Run(out).diverged_at
    if resume_at is None:
        refuse_if_occupied(out)
    checkpoint = out / "checkpoints" / f"checkpoint-{resume_at}" if resume_at else None
    _, trainer = build(config, out, resume_at=resume_at)
    for callback in trainer.callback_handler.callbacks:
        if checkpoint is not None and isinstance(callback, Restarts):
            callback.resume(checkpoint)
    (recorder,) = (
        callback
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, SubspaceRecorder)
    )
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException as error:
        _close_progress_bar(trainer)
        recorder.interrupt()
        if isinstance(error, KeyboardInterrupt) and trainer.is_world_process_zero():
            error.add_note(how_to_continue(out))
        if isinstance(error, Exception) and (full := files.storage_error(error, out)):
            raise full from error
        raise
    if trainer.is_world_process_zero():
        print(f"wrote {out}")
    return recorder.diverged_at


def _close_progress_bar(trainer: Trainer) -> None:
    """End its line, so that what is printed next stands on a line of its own."""
    for callback in trainer.callback_handler.callbacks:
        bar: tqdm[Any] | None = getattr(callback, "training_bar", None)
        if bar is not None:
            bar.close()


def build(
    config: TrainConfig, out: Path, *, resume_at: int | None = None
) -> tuple[nn.Module, Trainer]:
    """Load base and data, put the adapter and its mask on, and give the Trainer that records."""
    rows = _load_rows(config)
    base = models.find_base(config.base)
    tokenizer = models.load_tokenizer(base)
    tokenized = {split: _tokenize(config, examples, tokenizer) for split, examples in rows.items()}
    dtype = base_dtype(config, base)
    arguments = training_arguments(config, out, dtype=dtype)
    model = models.load_model(base, dtype=dtype)
    _refuse_rows_beyond_the_context(model, tokenized)
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared = prepare(config, model, device=arguments.device)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # set by accelerate launch
        prepared = restrict_to_shards(config, prepared)
    description = {
        "config": config.to_dict(),
        "provenance": provenance()
        | {
            "base": base.name,
            "base_remark": base.remark,
            "base_hash": models.content_hash(base),
            "base_dtype": models.DTYPES[dtype],
            "data_hashes": {split: data_hash(examples) for split, examples in rows.items()},
            "rows": {split: len(tokens) for split, tokens in tokenized.items()},
            "rows_dropped": {split: len(rows[split]) - len(tokenized[split]) for split in rows},
            "trainable_parameters": trainable_parameters(prepared.model),
            "processes": arguments.world_size,
        },
    }
    trainer = Trainer(
        model=prepared.model,
        args=arguments,
        train_dataset=tokenized[config.train_split],
        eval_dataset=tokenized.get(config.eval_split),
        data_collator=RightPadding(int(tokenizer.pad_token_id)),
        compute_metrics=_metrics,
        preprocess_logits_for_metrics=response_statistics,
        callbacks=[
            _recorder(config, out, prepared, description, resume_at),
            *[EvaluateTheEnd()] * (config.eval_split != "none"),
            *_of_the_method(config, prepared.model, out),
            *prepared.callbacks,
        ],
        optimizers=(lora_plus_optimizer(config, prepared.model), None),
    )
    return prepared.model, trainer


def _of_the_method(config: TrainConfig, model: nn.Module, out: Path) -> list[TrainerCallback]:
    """List what else takes part in the training of a method, and writes into the run."""
    if getattr(model, "peft_type", None) == "ADALORA":
        if config.checkpoint_every:
            raise UserError(
                "AdaLoRA's scores are not part of a checkpoint, so that a run cannot be continued: "
                "leave checkpoint_every out"
            )
        phase = (config.allocation_start, config.allocation_end)
        return [RankAllocation(model, out, phase=phase if config.method == "adalora" else None)]
    if config.method == "galore":
        return [ProjectionRecorder(out, refresh_every=config.galore_refresh)]
    return []


def base_dtype(config: TrainConfig, base: models.Base) -> models.Precision:
    """Give the dtype of the base and of what is computed, which `auto` leaves to the machine."""
    if config.method in WHOLE_WEIGHTS:
        return "fp32"
    return models.training_dtype(base) if config.base_dtype == "auto" else config.base_dtype


class EvaluateTheEnd(TrainerCallback):
    """Has the Trainer evaluate after the last step, whatever `eval_every` is."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for an evaluation at the last step."""
        control.should_evaluate |= state.global_step == state.max_steps


def trainable_parameters(model: nn.Module) -> int:
    """Count the parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _load_rows(config: TrainConfig) -> dict[str, list[Example]]:
    shared: dict[str, Any] = {"data_dir": config.data_dir, "difficulty": config.difficulty}
    rows: dict[str, list[Example]] = {
        config.train_split: tasks.load(
            config.task,
            config.train_split,
            size=config.train_size,
            seed=config.seed,
            label_noise=config.label_noise,
            **shared,
        )
    }
    if config.eval_split != "none":
        rows[config.eval_split] = tasks.load(
            config.task,
            config.eval_split,
            size=config.eval_size,
            seed=tasks.EVALUATION_SEED,
            **shared,
        )
    return rows


def _tokenize(
    config: TrainConfig, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, list[int]]]:
    """Tokenise examples, without those that are too long if the configuration says so."""
    limit = sys.maxsize if config.drop_long_rows else config.max_length
    tokenized = tokenize(examples, tokenizer, max_length=limit)
    kept = [row for row in tokenized if len(row["input_ids"]) <= config.max_length]
    if not kept:
        raise UserError(f"no row of {config.task} has {config.max_length} tokens or fewer")
    return kept


def _refuse_rows_beyond_the_context(
    model: PreTrainedModel, tokenized: Mapping[str, list[dict[str, list[int]]]]
) -> None:
    longest = max(len(row["input_ids"]) for rows in tokenized.values() for row in rows)
    context = context_length(model)
    if context is not None and longest > context:
        raise UserError(
            f"a row has {longest} tokens, more than the base's context of {context}: lower "
            "--max_length, with --drop_long_rows true"
        )


def _recorder(
    config: TrainConfig,
    out: Path,
    prepared: Prepared,
    description: Mapping[str, Any],
    resume_at: int | None,
) -> SubspaceRecorder:
    return SubspaceRecorder(
        out,
        cores=config.cores if prepared.modules is None else "never",
        modules=prepared.modules,
        snapshots=config.snapshots,
        description=description,
        resume_at=resume_at,
        save=prepared.save,
    )


def training_arguments(
    config: TrainConfig, out: Path, *, dtype: models.Precision = "fp32"
) -> TrainingArguments:
    """Translate the configuration for the Trainer, which computes in `dtype`.

    Raises:
        UserError: if the global batch cannot be made of whole batches on all processes.
    """
    evaluated = config.eval_split != "none"
    return TrainingArguments(
        # Without GPUs, several processes find each other, and bf16 is accepted, only where the
        # CPU is asked for.
        use_cpu=(_processes() > 1 or dtype == "bf16") and not torch.cuda.is_available(),
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
        seed=config.seed,
        report_to=[],
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _accumulation(config: TrainConfig) -> int:
    """Give the forward passes per optimizer step, so that all processes make the global batch."""
    if config.global_batch is None:
        return config.accumulation
    processes = _processes()
    accumulation, remainder = divmod(config.global_batch, config.batch_size * processes)
    if remainder or not accumulation:
        raise UserError(
            f"global_batch {config.global_batch} is no multiple of batch_size {config.batch_size} "
            f"x {processes} processes: change one of them"
        )
    return accumulation


def _processes() -> int:
    """Give the number of data-parallel processes, as accelerate launch and torchrun set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    return summarise(prediction.predictions)
