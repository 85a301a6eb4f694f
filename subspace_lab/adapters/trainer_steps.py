"""Follow the Trainers' own count of optimizer steps, whoever builds them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer

_DEFAULT_CALLBACKS: list[Any] = trainer.DEFAULT_CALLBACKS


class FollowTrainers(TrainerCallback):
    """Reports which step begins in every Trainer that is built from now on.

    The callback joins transformers' default callbacks until `stop`, or until the listener is gone.

    Args:
        step_begins: a method, called with the model and the number of the step, from 1.
    """

    def __init__(self, step_begins: Callable[[nn.Module, int], None]) -> None:
        self._step_begins = weakref.WeakMethod(step_begins, self._forget)
        _DEFAULT_CALLBACKS.append(self)

    def stop(self) -> None:
        """Leave the default callbacks; Trainers that were built before still call."""
        _DEFAULT_CALLBACKS.remove(self)

    def _forget(self, _: object) -> None:
        if self in _DEFAULT_CALLBACKS:
            self.stop()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Pass the step on."""
        step_begins = self._step_begins()
        if step_begins is not None:
            step_begins(kwargs["model"], state.global_step + 1)
