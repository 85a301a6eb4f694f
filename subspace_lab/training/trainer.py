"""From a configuration to a trained, recorded run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from subspace_lab import models, tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import context_length
from subspace_lab.recording import files
from subspace_lab.recording.provenance import provenance
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.writer import discard_unfinished, refuse_if_occupied
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.coreless import CorelessRecorder
from subspace_lab.training.data import (
    RightPadding,
    data_hash,
    response_statistics,
    summarise,
    tokenize,
)
from subspace_lab.training.preparation import Prepared, prepare, restrict_to_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from subspace_lab.tasks import Example


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> None:
    """Train as `config` says and record into the run directory `out`.

    Args:
        config: the configuration.
        out: the run directory.
        resume: go on with an unfinished run of the same configuration in `out` from its last
            checkpoint; a finished one is left as it is.

    Raises:
        UserError: if `out` is occupied, or anything that the configuration names is missing.
    """
    resume_at = _resume_point(config, out) if resume else None
    if resume_at == FINISHED:
        print(f"{out} is finished: nothing to do")
        return
    if resume_at is None:
        refuse_if_occupied(out)
    _, trainer = build(config, out, resume_at=resume_at)
    checkpoint = out / "checkpoints" / f"checkpoint-{resume_at}" if resume_at else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        print(f"wrote {out}")


FINISHED = -1


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
        ],
    )
    return prepared.model, trainer


def base_dtype(config: TrainConfig, base: models.Base) -> models.Precision:
    """Give the dtype of the base and of what is computed, which `auto` leaves to the machine."""
    if config.method == "full":
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
    shared: dict[str, Any] = {
        "seed": config.seed,
        "data_dir": config.data_dir,
        "difficulty": config.difficulty,
    }
    rows: dict[str, list[Example]] = {
        config.train_split: tasks.load(
            config.task,
            config.train_split,
            size=config.train_size,
            label_noise=config.label_noise,
            **shared,
        )
    }
    if config.eval_split != "none":
        rows[config.eval_split] = tasks.load(
            config.task, config.eval_split, size=config.eval_size, **shared
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
    shared: dict[str, Any] = {
        "snapshots": config.snapshots,
        "description": description,
        "resume_at": resume_at,
        "save": prepared.save,
    }
    if prepared.coreless is not None:
        return CorelessRecorder(out, modules=prepared.coreless, **shared)
    return SubspaceRecorder(out, cores=config.cores, **shared)


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
        optim="adamw_torch_fused" if config.optimizer == "adamw" else "sgd",
        max_grad_norm=config.max_grad_norm,
        bf16=dtype == "bf16",
        torch_compile=config.compile,
        ddp_find_unused_parameters=False,
        logging_steps=1,
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


def _resume_point(config: TrainConfig, out: Path) -> int | None:
    """Find the step to resume at: None for a new run, FINISHED, or a checkpoint's step.

    A checkpoint counts only if the record on disk reaches its step: a run can be killed between
    the Trainer's writing of a checkpoint and the recorder's.
    """
    if not (out / "run.json").exists():
        return None
    description = files.read_json(out / "run.json")
    if description.get("config") != config.to_dict():
        raise UserError(
            f"{out} holds a run of another configuration (see {out / 'run.json'}): choose another "
            "--out"
        )
    if description["status"] == "finished":
        return FINISHED
    used = description.get("provenance", {}).get("base_dtype")
    dtype = models.DTYPES[base_dtype(config, models.find_base(config.base))]
    if used not in (None, dtype):
        raise UserError(
            f"{out} was trained in {used} so far, and base_dtype {config.base_dtype} is {dtype} on "
            "this machine: resume it on a machine like its first, or choose another --out"
        )
    recorded = 0
    if (out / "metrics.parquet").exists():
        recorded = int(files.read_table(out / "metrics.parquet")["step"].max())
    steps = [int(p.name.split("-")[1]) for p in (out / "checkpoints").glob("checkpoint-*")]
    usable = [step for step in steps if step <= recorded]
    if not usable:
        if _processes() > 1:  # which would race for it
            raise UserError(f"{out} was stopped before its first checkpoint: delete it first")
        print(f"{out} was stopped before its first checkpoint: it starts again from step 0")
        discard_unfinished(out)
        return None
    return max(usable)
