"""The explicit regularizer of rank masks, as a differentiable penalty on a model in training.

Masks on one linear layer with inputs x_t, t = 1..N, add to its squared loss (`theory.regularizer`)

    λ γ² R,    R = sum_i ||b_i||² (1/N) sum_t (a_i^T x_t)²,

for B = [b_1 ... b_r] (m, r), A with rows a_i (r, n), γ the adapter's scaling and λ the variance of
a gate. The penalty of a model is γ² R summed over its adapted layers, from their actual inputs,
input dropout included; its gradient reaches the inputs, and so the layers before, as well. In a
deep network, or under cross-entropy, it is not what masks add to the loss: `second-order` is that,
to second order.

Sources: Cavazza et al. 2018; Mianjy, Arora and Vidal 2018.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from subspace_lab.adapters.modules import LoraModule
from subspace_lab.errors import UserError


class Penalty:
    """Collects γ² R of adapted layers while they run.

    Args:
        modules: the adapted layers.

    Raises:
        UserError: if one of them is a DoRA, which also pushes the identity matrix through A.
    """

    def __init__(self, modules: Sequence[LoraModule]) -> None:
        for module in modules:
            if len(getattr(module.layer, "lora_magnitude_vector", ())):
                raise UserError(
                    f"{module.name} is a DoRA, whose update is not B A: the penalty is about LoRA"
                )
        self._modules = modules
        self._parts: list[Tensor] = []

    @contextlib.contextmanager
    def collected(self, attention_mask: Tensor | None) -> Iterator[None]:
        """Collect from one forward pass; to stay on until its backward pass is over.

        Args:
            attention_mask: (batch, tokens), 0 at padding, which is left out; None: no padding.
        """
        self._parts = []
        handles = [
            # Before the rank mask's own hook, which multiplies the output by the gates.
            module.A_module.register_forward_hook(self._hook(module, attention_mask), prepend=True)
            for module in self._modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._parts = []

    def total(self) -> Tensor:
        """Give the penalty of the forward pass that was collected, a scalar."""
        return torch.stack(self._parts).sum()

    def _hook(self, module: LoraModule, attention_mask: Tensor | None) -> Callable[..., None]:
        def hook(A_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                raise UserError(
                    "the penalty has no gradient under reentrant gradient checkpointing: set "
                    "use_reentrant to False"
                )
            precision = torch.promote_types(module.B.dtype, torch.float32)  # bf16 is too coarse
            energies = _mean_square(output.to(precision), attention_mask)
            part = module.scaling**2 * (module.B.to(precision).square().sum(0) * energies).sum()
            self._parts.append(part)  # in a recomputation too, after the total was taken

        return hook


def _mean_square(z: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Give the mean of z² (..., r) over all tokens that are no padding: (r,)."""
    squares = z.square().flatten(0, -2)
    if attention_mask is None:
        return squares.mean(0)
    tokens = attention_mask.to(squares).flatten()
    return tokens @ squares / tokens.sum()
