"""What is scored once, when training is over: test examples, and what became of label noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PredictionOutput

from subspace_lab.calibration import TEMPERATURES, best_temperature, loss_at
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.training.data import statistics_with_temperatures
from subspace_lab.training.validation_choice import ValidationChoice

TEST = "test"

Tokens = Sequence[dict[str, list[int]]]


class FinalScores(TrainerCallback):
    """Scores the last step, and on test examples also the step that validation chose.

    Scores go into the metrics rows of their steps, as columns that begin with their set's name; of
    test examples also the loss at the temperature that validation examples choose, and theirs. It
    must come before the recorder among the Trainer's callbacks, which ends the record.

    Args:
        trainer: the Trainer, whose metrics are computed.
        recorder: of the run.
        sets: tokenized examples by the name of their set.
        validation: tokenized validation examples; None: no temperature is chosen.
        choice: the validation-chosen step; None: nothing is chosen.
        snapshot: whether the chosen step's adapter is saved as a snapshot.
    """

    def __init__(
        self,
        trainer: Trainer,
        recorder: SubspaceRecorder,
        sets: Mapping[str, Tokens],
        *,
        validation: Tokens | None,
        choice: ValidationChoice | None,
        snapshot: bool,
    ) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._sets = sets
        self._validation = validation
        self._choice = choice
        self._snapshot = snapshot

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the trained model, then the chosen one."""
        for name in self._sets:
            self._score(name, state.global_step)
        if self._choice is None:
            return
        chosen = self._choice.step
        if chosen is not None:
            with self._choice.loaded(kwargs["model"]):
                self._recorder.add_chosen(chosen, save=self._snapshot)
                if TEST in self._sets and chosen != state.global_step:
                    self._score(TEST, chosen)
        self._trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            self._choice.discard()

    def _score(self, name: str, step: int) -> None:
        if name == TEST and self._validation is not None:
            self._recorder.add_evaluation(step, self._calibrated(self._validation))
            return
        result = self._predict(name, self._sets[name])
        self._recorder.add_evaluation(step, result.metrics or {})

    def _calibrated(self, validation: Tokens) -> dict[str, float]:
        """Score test examples, also at the temperature that validation examples choose."""
        usual = self._trainer.preprocess_logits_for_metrics
        self._trainer.preprocess_logits_for_metrics = statistics_with_temperatures
        try:
            chosen_on = self._predict("validation", validation)
            result = self._predict(TEST, self._sets[TEST])
        finally:
            self._trainer.preprocess_logits_for_metrics = usual
        place = best_temperature(_nats(chosen_on))
        return (result.metrics or {}) | {
            f"{TEST}_temperature": TEMPERATURES[place],
            f"{TEST}_calibrated_loss": loss_at(place, _nats(result), _tokens(result)),
            "validation_calibrated_loss": loss_at(place, _nats(chosen_on), _tokens(chosen_on)),
        }

    def _predict(self, name: str, examples: Tokens) -> PredictionOutput:
        return self._trainer.predict(examples, metric_key_prefix=name)  # type: ignore[arg-type]


def _nats(result: PredictionOutput) -> Tensor:
    """Give the nats of each response at each temperature."""
    return torch.as_tensor(result.predictions)[:, 3:]


def _tokens(result: PredictionOutput) -> Tensor:
    """Give the number of tokens of each response."""
    return torch.as_tensor(result.predictions)[:, 1].double()
