"""The loss of a trained model as a function of its rank gates, differentiable to any order."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from subspace_lab.adapters.modules import lora_modules
from subspace_lab.evaluation.trained_model import TrainedModel
from subspace_lab.tasks.examples import Example


class GatedLoss:
    """Loss of the responses (nats per token) given one gate tensor for each adapted module.

    Gates multiply the output of `lora_A`, as rank masks do. Directions beyond the trained rank,
    the start that PiSSA and MiLoRA subtract, have no gate. Use it as a context manager, which
    takes its hooks off the model.

    Args:
        trained: the model, in fp32: in bf16 a fourth derivative would be rounding. Its attention
            becomes the eager one, which has higher derivatives.
        examples: one batch; a fourth derivative holds some ten times what a gradient does.
        ranks: trained rank of each adapted module.
        granularity: of the gates: shapes (r,) for `step`, (examples, 1, r) for `sample` and
            (examples, length, r) for `token`.
        bar: a progress bar that counts the losses.

    Attributes:
        gates: a tensor of the right shape for each module.
        tokens: response tokens that the loss is the mean of.
    """

    def __init__(
        self,
        trained: TrainedModel,
        examples: Sequence[Example],
        *,
        ranks: Mapping[str, int],
        granularity: str,
        bar: tqdm[None] | None = None,
    ) -> None:
        self._model = trained.model.requires_grad_(False)
        self._model.set_attn_implementation("eager")
        (self._batch,) = trained.batches(examples, batch_size=len(examples), description="")
        size, length = self._batch.input_ids.shape
        shapes = {"step": (), "sample": (size, 1), "token": (size, length)}
        modules = lora_modules(self._model)
        self.gates = [
            torch.empty(*shapes[granularity], ranks[module.name], device=self._model.device)
            for module in modules
        ]
        self._values = list(self.gates)
        self._handles = [
            module.A_module.register_forward_hook(functools.partial(self._gate, place))
            for place, module in enumerate(modules)
        ]
        self._bar = bar
        self.tokens = len(self._batch.targets)

    def __call__(self, *gates: Tensor) -> Tensor:
        """Compute the loss under the gates."""
        self._values = list(gates)
        loss = cross_entropy(self._batch.logits(self._model), self._batch.targets)
        if self._bar is not None:
            self._bar.update()
        return loss

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _gate(
        self, place: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        gate = self._values[place].to(output)
        untrained = output.shape[-1] - gate.shape[-1]
        return output * pad(gate, (0, untrained), value=1.0)
