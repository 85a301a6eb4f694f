"""Adds the numbers of a record to what a `transformers.Trainer` logs, beside the loss.

A Trainer hands what it logs to its callbacks in turn: those of the trackers (TensorBoard, wandb)
come before any that a user adds, and after transformers' default callbacks. `IN_LOGS` is one of the
latter in every Trainer that is built after this module was imported.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer


class NumbersInLogs(TrainerCallback):
    """Keeps numbers for the next log of a model's Trainer."""

    def __init__(self) -> None:
        self._waiting: weakref.WeakKeyDictionary[nn.Module, Mapping[str, float]] = (
            weakref.WeakKeyDictionary()
        )

    def hears(self, model: nn.Module) -> bool:
        """Whether the Trainer of a model in training has this callback."""
        return model in self._waiting

    def add(self, model: nn.Module, numbers: Mapping[str, float]) -> None:
        """Add numbers to what the Trainer of a model logs next."""
        self._waiting[model] = numbers

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that a Trainer of this model has the callback."""
        self._waiting[kwargs["model"]] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the numbers to a log of the loss, and to the Trainer's history of logs."""
        numbers = self._waiting.get(kwargs["model"])
        if numbers and logs is not None and "loss" in logs:
            logs.update(numbers)
            state.log_history[-1].update(numbers)
            self._waiting[kwargs["model"]] = {}


IN_LOGS = NumbersInLogs()
_DEFAULT_CALLBACKS: list[Any] = trainer.DEFAULT_CALLBACKS
_DEFAULT_CALLBACKS.append(IN_LOGS)
