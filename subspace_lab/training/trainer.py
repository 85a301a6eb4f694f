"""From a configuration to a trained, recorded run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

from subspace_lab import files, models
from subspace_lab.adapters.adalora import RankAllocation
from subspace_lab.adapters.restarts import Restarts
from subspace_lab.errors import UserError
from subspace_lab.provenance import provenance
from subspace_lab.recording.projection_recorder import ProjectionRecorder
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.run_folder import refuse_if_occupied
from subspace_lab.runs.run import Run
from subspace_lab.training.arguments import base_dtype, process_count, training_arguments
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import (
    RightPadding,
    data_hash,
    response_statistics,
    summarize,
)
from subspace_lab.training.examples import (
    load_examples,
    refuse_examples_beyond_the_context,
    tokenize_examples,
    tokenized_memorization_sets,
)
from subspace_lab.training.final_scores import TEST, FinalScores
from subspace_lab.training.initialization_batches import initialization_batches
from subspace_lab.training.loss import brier_loss
from subspace_lab.training.objective_trainer import make_trainer
from subspace_lab.training.optimizers import lora_plus_optimizer
from subspace_lab.training.preparation import Prepared, prepare, restrict_to_shards
from subspace_lab.training.resuming import FINISHED, how_to_continue, resume_point
from subspace_lab.training.validation_choice import ValidationChoice


def train(config: TrainConfig, out: Path, *, resume: bool = False) -> int | None:
    """Train as `config` says, and record into the run directory `out`.

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
        resume_at = resume_point(config, out, processes=process_count(), base_dtype=dtype)
    if resume_at == FINISHED:
        print(f"{out} is finished: nothing to do")
        return Run(out).diverged_at
    if resume_at is None:
        refuse_if_occupied(out, instead="choose another folder (`out`)")
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
    """Load base and data, put the adapter and its mask on, and make the Trainer that records."""
    examples = load_examples(config)
    base = models.find_base(config.base)
    tokenizer = models.load_tokenizer(base)
    tokenized = {split: tokenize_examples(config, examples[split], tokenizer) for split in examples}
    dtype = base_dtype(config, base)
    arguments = training_arguments(config, out, dtype=dtype)
    arguments.eval_on_start &= resume_at is None  # which would be one evaluation more
    model = models.load_model(base, dtype=dtype)
    last_sets = tokenized_memorization_sets(config, examples[config.train_split], tokenizer)
    last_sets |= {TEST: tokenized[TEST]} if config.test_size else {}
    refuse_examples_beyond_the_context(model, tokenized | last_sets)
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    pad_token_id = int(tokenizer.pad_token_id)
    batches = initialization_batches(
        tokenized[config.train_split][: config.initialization_examples],
        batch_size=config.batch_size,
        pad_token_id=pad_token_id,
        device=arguments.device,
    )
    prepared = prepare(config, model, device=arguments.device, batches=batches)
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
            "data_hashes": {split: data_hash(examples[split]) for split in examples},
            "rows": {split: len(tokens) for split, tokens in tokenized.items()},
            "rows_dropped": {
                split: len(examples[split]) - len(tokenized[split]) for split in examples
            },
            "trainable_parameters": trainable_parameters(prepared.model),
            "processes": arguments.world_size,
        },
    }
    trainer = make_trainer(
        config,
        model=prepared.model,
        args=arguments,
        train_dataset=tokenized[config.train_split],
        eval_dataset=tokenized.get(config.eval_split),
        data_collator=RightPadding(pad_token_id),
        compute_loss_func=brier_loss if config.training_loss == "brier" else None,
        compute_metrics=_metrics,
        preprocess_logits_for_metrics=response_statistics,
        callbacks=[*[EvaluateTheEnd()] * (config.eval_split != "none")],
        optimizers=(lora_plus_optimizer(config, prepared.model), None),
    )
    recorder = _recorder(config, out, prepared, description)
    choice = None
    if config.chooses:
        choice = ValidationChoice(out / "checkpoints", resume_at=resume_at)
        trainer.add_callback(choice)
    if last_sets or choice:
        trainer.add_callback(
            FinalScores(
                trainer,
                recorder,
                last_sets,
                validation=tokenized.get("validation"),
                choice=choice,
                snapshot=config.early_stopping,
            )
        )
    trainer.add_callback(recorder)
    for callback in (*_of_the_method(config, prepared.model, out), *prepared.callbacks):
        trainer.add_callback(callback)  # after the recorder, which sees the step itself
    return prepared.model, trainer


def _of_the_method(config: TrainConfig, model: nn.Module, out: Path) -> list[TrainerCallback]:
    """List what else takes part in the training of a method, and writes into the run."""
    if getattr(model, "peft_type", None) == "ADALORA":
        if config.checkpoint_every:
            raise UserError(
                "AdaLoRA's scores are not part of a checkpoint, so that a run cannot be continued: "
                "omit `checkpoint_every`"
            )
        phase = (config.allocation_start, config.allocation_end)
        return [RankAllocation(model, out, phase=phase if config.method == "adalora" else None)]
    if config.method == "galore":
        return [ProjectionRecorder(out, refresh_every=config.galore_refresh)]
    return []


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


def _recorder(
    config: TrainConfig,
    out: Path,
    prepared: Prepared,
    description: Mapping[str, Any],
) -> SubspaceRecorder:
    return SubspaceRecorder(
        out,
        cores=config.cores if prepared.modules is None else "never",
        modules=prepared.modules,
        snapshots=config.snapshots,
        description=description,
        save=prepared.save,
        log_every=config.log_every or None,
    )


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    return summarize(prediction.predictions)
