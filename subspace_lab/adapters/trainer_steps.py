"""Follow the Trainer's own count of optimizer steps, in every Trainer that trains a module."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer


class FollowTrainers(TrainerCallback):
    """Says which step begins, in every Trainer built from now on whose model has a given module.

    The callback joins transformers' default callbacks until `stop`; it keeps neither the module nor
    the listener alive.

    Args:
        module: a module of the model.
        step_begins: a method, called with the number of the optimizer step that begins, from 1.
    """

    def __init__(self, module: nn.Module, step_begins: Callable[[int], None]) -> None:
        self._module = weakref.ref(module)
        self._step_begins = weakref.WeakMethod(step_begins)
        self._concerned = False
        trainer.DEFAULT_CALLBACKS.append(self)
        weakref.finalize(module, self.stop)

    def stop(self) -> None:
        """Leave the default callbacks; Trainers built before say nothing any more."""
        self._module = lambda: None
        if self in trainer.DEFAULT_CALLBACKS:
            trainer.DEFAULT_CALLBACKS.remove(self)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """Find out whether this Trainer trains the module."""
        module = self._module()
        self._concerned = any(part is module for part in model.modules())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass the step on."""
        step_begins = self._step_begins()
        if self._concerned and step_begins is not None:
            step_begins(state.global_step + 1)
