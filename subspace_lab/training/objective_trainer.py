"""The Trainer of runs whose gradient is not that of the loss under one mask."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from subspace_lab.adapters.mask import find_rank_mask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.objective import Objective, Term, default_strength
from subspace_lab.training.penalty import Penalty


class ObjectiveTrainer(Trainer):
    """Descends an objective: a forward and a backward pass for each of its terms.

    The terms of a micro-batch share its input dropout, so that they differ in their gates only.
    The loss that is logged is in nats per response token: the mean masked loss of `loss`, and L(1)
    of the other objectives.

    Args:
        objective: the objective.
        arguments: those of `Trainer`.
    """

    def __init__(self, *, objective: Objective, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._objective = objective
        self._term: Term | None = None
        self._penalty = (
            Penalty(lora_modules(arguments["model"])) if objective.kind == "penalty" else None
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add the gradient of a micro-batch to the parameters' gradients.

        Returns:
            The loss that is logged.
        """
        mask = self._objective.mask
        terms = self._objective.terms(mask.step)
        reported = torch.zeros((), device=self.args.device)
        for place, term in enumerate(terms):
            is_last = place == len(terms) - 1
            with (
                torch.random.fork_rng(self._random_devices(), enabled=not is_last),
                contextlib.nullcontext() if term.gates is None else mask.use(term.gates),
                contextlib.nullcontext()
                if self._penalty is None
                else self._penalty.collected(inputs.get("attention_mask")),
            ):
                self._term = term
                super().training_step(model, dict(inputs), num_items_in_batch)
                self._term = None
            reported += term.reported * self._loss_of_term
        return reported

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss; in training, that of the term in hand."""
        if self._term is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, Tensor)
        # Trainer.training_step divides what is not divided by the tokens of the whole step.
        batches = self.current_gradient_accumulation_steps
        is_divided = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        self._loss_of_term = loss.detach() / (1 if is_divided else batches)
        loss = self._term.weight * loss
        if self._penalty is not None:
            penalty = self._objective.strength * self._penalty.total()
            loss = loss + penalty / (batches if is_divided else 1)
        return loss

    def _random_devices(self) -> list[torch.device]:
        device = self.args.device
        return [] if device.type == "cpu" else [device]


def make_trainer(config: TrainConfig, **arguments: Any) -> Trainer:
    """Make the Trainer of the configuration's objective, which is a plain one for one mask a step.

    Raises:
        UserError: if the objective needs a higher precision, or an adapter of another kind.
    """
    if config.objective == "loss" and config.masks_per_step == 1:
        return Trainer(**arguments)
    if config.objective == "second-order" and arguments["args"].bf16:
        raise UserError(
            "`objective` second-order takes differences of losses, which bf16 rounds away: set "
            "`base_dtype` to fp32"
        )
    mask = find_rank_mask(arguments["model"])
    assert mask is not None  # the configuration is masked
    strength = config.penalty_strength
    objective = Objective(
        mask,
        config.objective,
        masks_per_step=config.masks_per_step,
        strength=default_strength(config.keep_prob) if strength is None else strength,
    )
    return ObjectiveTrainer(objective=objective, **arguments)
