"""The recorder: a callback of `transformers.Trainer`, and three calls in any other loop."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab.errors import UserError
from subspace_lab.recording.step_recorder import StepRecorder
from subspace_lab.recording.trainer_logs import IN_LOGS
from subspace_lab.recording.trainer_numbers import loaded_best_step, step_metrics


class SubspaceRecorder(StepRecorder, TrainerCallback):
    """A `StepRecorder` that a Trainer calls; see there for its arguments.

    The Trainer continues a record by itself: with `train(resume_from_checkpoint=True)` the folder
    is that of the run so far. Where it loads the best model at its end, the adapter of its best
    step is saved as well, and run.json names it as `best_step`. An `evaluate()` after training
    belongs to the step of the model that it evaluates. With `log_every` the numbers of the record
    appear beside the loss, in what the Trainer logs and reports; it logs at these steps in any
    case.

    Raises:
        UserError: as `StepRecorder`; when training begins, as `start`.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the run directory, new or to be continued."""
        if self.log_every is not None and not IN_LOGS.hears(kwargs["model"]):
            raise UserError(
                "`log_every` cannot reach the logs of a Trainer that was built before "
                "SubspaceRecorder was imported: import it first"
            )
        recording = self._recording
        if recording is not None and not recording.closed and args.auto_find_batch_size:
            recording.discard()  # that of a batch that was too large; a resumed run stays
            self._recording = None
        self.start(
            kwargs["model"],
            at=state.global_step,
            steps=state.max_steps,
            optimizer=kwargs.get("optimizer"),
            seed=args.seed,
            observe_gates=not args.torch_compile,
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the weights that the step starts from, which DeepSpeed changes unseen."""
        self._begin_step()
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step that was just taken."""
        step = state.global_step
        numbers = self.step(step)
        if self.log_every is not None and step % self.log_every == 0:
            control.should_log = True  # in all processes, which gather the loss
            IN_LOGS.add(kwargs["model"], numbers)
        if self._recording is not None and control.should_training_stop:
            self._recording.end(step)

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

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring the record to disk with each checkpoint, so that both continue together."""
        self.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the run; if the Trainer has loaded its best model, save its adapter before."""
        best = loaded_best_step(args, state)
        self._loaded_step = state.global_step if best is None else best
        if best is None:
            self.finish()
        elif self._recording is not None:
            self._recording.add_best(best)
            self._close("finished")
