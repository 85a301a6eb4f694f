"""Early stopping as a control: the weights of the step that validation examples choose."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab import files

CRITERION = "eval_response_loss"
FILE = "chosen.safetensors"


class ValidationChoice(TrainerCallback):
    """Keeps the trained weights of the step with the lowest loss on validation examples.

    Training continues to its last step whatever is chosen, so that the learning rate's schedule is
    that of the run without the choice. The weights wait in a file, for a run that is resumed.

    Args:
        folder: where the file is kept.
        resume_at: step from which a run is resumed; a choice of a later step is forgotten.

    Attributes:
        step: the chosen step; None before the first evaluation with a finite loss.
    """

    def __init__(self, folder: Path, *, resume_at: int | None) -> None:
        self._file = folder / FILE
        self.step: int | None = None
        self._loss = math.inf
        if resume_at is not None and self._file.is_file():
            with files.open_tensors(self._file) as tensors:
                step, loss = tensors.get_tensor("step"), tensors.get_tensor("loss")
            if step <= resume_at:
                self.step, self._loss = int(step), float(loss)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the weights, if no step had a lower loss."""
        loss = (metrics or {}).get(CRITERION, math.nan)
        if not loss < self._loss:
            return
        self.step, self._loss = state.global_step, loss
        if state.is_world_process_zero:
            weights = {name: p.detach().cpu() for name, p in _trained(kwargs["model"]).items()}
            facts = {
                "step": torch.tensor(self.step),
                "loss": torch.tensor(loss, dtype=torch.float64),
            }
            files.write_tensors(self._file, weights | facts)

    @contextlib.contextmanager
    def loaded(self, model: nn.Module) -> Iterator[None]:
        """Give a model the chosen weights; afterwards it has its own again."""
        trained = _trained(model)
        own = {name: parameter.detach().clone() for name, parameter in trained.items()}
        with files.open_tensors(self._file) as tensors, torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors.get_tensor(name))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(own[name])

    def discard(self) -> None:
        """Delete the file."""
        self._file.unlink(missing_ok=True)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
