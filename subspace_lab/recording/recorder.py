"""The recorder: a Trainer callback that reduces every adapted matrix to its rank core.

At each scheduled step A and B are reduced on their own device, all modules of one shape in one
batched factorization; only the cores, r x r numbers, travel to the disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab import schedule
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import lora_modules, lora_table
from subspace_lab.errors import UserError
from subspace_lab.provenance import provenance
from subspace_lab.recording.gate_recorder import GateRecorder
from subspace_lab.recording.recording import Recording
from subspace_lab.recording.snapshots import Save, Snapshots
from subspace_lab.recording.trainer_numbers import (
    evaluation_metrics,
    loaded_best_step,
    optimizer_settings,
    step_metrics,
)


class SubspaceRecorder(TrainerCallback):
    """Records a training run, and the masks of its rank mask, into a run directory.

    Core and adapter of the last step are recorded whatever stops the training. Where the Trainer
    loads the best model at its end, the adapter of its best step is saved as well, and run.json
    names it as `best_step`. A run whose loss or weights are no longer finite is `diverged_at` the
    first step at which this was seen. An `evaluate()` after training belongs to the step of the
    model that it evaluates.

    Args:
        folder: the run directory; new or empty.
        cores: when to record rank cores, a schedule (see `subspace_lab.schedule`).
        modules: the module table of a model whose matrices A and B are out of reach (full
            fine-tuning, sharded adapters), which is recorded with `cores="never"`; None: that of
            the model's LoRA layers.
        snapshots: when to save whole adapters; the first and the last are always saved.
        mask: the rank mask, if any; None: the one attached to the model, found at the start.
        adapter: name of the PEFT adapter.
        description: what run.json says about the run (configuration, data); provenance is added.
        resume_at: step of the checkpoint from which the Trainer continues this run; None: a new
            run.
        save: what writes a snapshot, given the model and the folder; None: PEFT's
            `save_pretrained`.

    Raises:
        UserError: if cores are to be recorded of modules out of reach; when training begins, if
            `folder` is occupied or nothing can be recorded.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        cores: str = "full",
        modules: pd.DataFrame | None = None,
        snapshots: str = "never",
        mask: RankMask | None = None,
        adapter: str = "default",
        description: Mapping[str, Any] | None = None,
        resume_at: int | None = None,
        save: Save | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.mask = mask
        self._schedules = {"cores": cores, "snapshots": snapshots}
        for text in self._schedules.values():
            schedule.parse(text)
        if modules is not None and cores != "never":
            raise UserError(
                "the cores of `modules` out of reach cannot be recorded: set `cores` to never"
            )
        self._modules = modules
        self._adapter = adapter
        self._description = dict(description or {})
        self._resume_at = resume_at
        self._snapshots = Snapshots(self.folder, adapter=adapter, save=save)
        self._recording: Recording | None = None
        self._kept: Mapping[str, NDArray[np.bool_]] = {}

    @property
    def diverged_at(self) -> int | None:
        """The step at which the run was seen to have diverged; None if it has not."""
        return None if self._recording is None else self._recording.diverged_at

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run directory and record step 0."""
        model = kwargs["model"]
        self.mask = self.mask or find_rank_mask(model)
        if self.mask is not None:  # which may have been attached after the Trainer was built
            self.mask.set_step(state.global_step + 1)
        self._kept = {}
        if not state.is_world_process_zero:
            return
        if self._recording is not None:
            self._start_over(self._recording, args)
        layers = [] if self._modules is not None else lora_modules(model, adapter=self._adapter)
        self._recording = Recording(
            model,
            self.folder,
            lora_table(layers) if self._modules is None else self._modules,
            schedules=self._schedules,
            snapshots=self._snapshots,
            description=self._describe(kwargs.get("optimizer")),
            resume_at=self._resume_at,
        )
        gates = None
        if layers and not args.torch_compile:  # hooks would have it compiled again
            gates = GateRecorder(
                layers,
                self.folder,
                last=state.max_steps,
                seed=args.seed,
                resume_at=self._resume_at,
            )
        self._recording.start(state.global_step, layers, gates=gates)

    def _start_over(self, recording: Recording, args: TrainingArguments) -> None:
        """Discard the record of an attempt that ended in memory errors; refuse another training.

        Raises:
            UserError: unless the Trainer is trying a smaller batch.
        """
        if recording.closed or not args.auto_find_batch_size:
            raise UserError(
                f"{self.folder} already holds a run, of this recorder's previous training: make "
                "a SubspaceRecorder with another folder for each call of train()"
            )
        recording.discard()

    def _describe(self, optimizer: Any) -> dict[str, Any]:
        description: dict[str, Any] = {"provenance": provenance(), "schedules": self._schedules}
        if self.mask is not None:
            description["mask"] = asdict(self.mask.law)
        return description | self._description | {"optimizer": optimizer_settings(optimizer)}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the weights that the coming step starts from."""
        self._started = time.perf_counter()
        if self._recording is not None:
            self._recording.begin_step(state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the masks in use: the optimizer's step brings those of the next one."""
        self._kept = {} if self.mask is None else self.mask.kept
        if self._recording is not None and self.mask is not None and self.mask.gates_chosen:
            self._recording.note_chosen_gates()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step that was just taken."""
        if self._recording is None:
            return
        seconds = time.perf_counter() - self._started
        self._recording.end_step(state.global_step, self._kept, seconds=seconds)
        if control.should_training_stop:
            self._recording.end(state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last step, if an evaluation stopped the training.

        All stops come by here, and only here the model is sure to be the last and not the best
        one. An evaluation at the epoch's end is still to come, and may stop the training.
        """
        undecided = args.load_best_model_at_end and args.eval_strategy == "epoch"
        if self._recording is not None and (control.should_training_stop or undecided):
            self._recording.end(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the Trainer's numbers: loss, learning rate, gradient norm, tokens."""
        metrics = step_metrics(logs)
        if self._recording is None or "loss" not in metrics:
            return
        batches = args.gradient_accumulation_steps * args.world_size
        filtered = batches if args.logging_nan_inf_filter else None
        self._recording.add_logged(state.global_step, metrics, filtered=filtered)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep evaluations (columns `eval_*`) with the step of the model that was evaluated."""
        if self._recording is not None and metrics:
            step = self._loaded_step if self._recording.closed else state.global_step
            self.add_evaluation(step, metrics)

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add what an evaluation of the model of a step found to that step's metrics."""
        if self._recording is not None:
            self._recording.add_evaluation(step, evaluation_metrics(metrics))

    def add_chosen(self, step: int, *, save: bool) -> None:
        """Record which step validation chose; the model has its weights now.

        Args:
            step: the step.
            save: save its adapter as a snapshot, where there is none.
        """
        if self._recording is not None:
            self._recording.add_chosen(step, save=save)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring the record to disk with each checkpoint, so that both continue together."""
        if self._recording is not None:
            self._recording.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the trained adapter, write what is left and mark the run as finished."""
        if self._recording is None:
            return
        best = loaded_best_step(args, state)
        if best is None:
            self._recording.end(state.global_step)
        else:
            self._recording.add_best(best)
        self._loaded_step = state.global_step if best is None else best
        self._recording.close()

    def interrupt(self) -> None:
        """Write what was recorded of a training that was stopped, with the status `interrupted`.

        Nothing happens to a run that is finished, nor in processes that do not record.
        """
        if self._recording is not None:
            self._recording.close("interrupted")
