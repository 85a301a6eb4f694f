"""The LoRA layers of a PEFT model, under the names that runs and adapter files use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from subspace_lab.errors import UserError
from subspace_lab.module_names import base_name
from subspace_lab.module_table import module_table


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear layer: dW = scaling * B A.

    Attributes:
        name: path of the layer in the base model, such as `model.layers.0.self_attn.q_proj`,
            whatever wraps the model (torch.compile, FSDP, DDP).
        layer: the PEFT layer.
        A_module: the linear map x -> A x, whose output the rank mask multiplies.
        B_module: the linear map back.
        A: its weight, (r, n).
        B: weight of the map back, (m, r).
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA, as PEFT holds it.
    """

    name: str
    layer: nn.Module
    A_module: nn.Linear
    B_module: nn.Linear
    A: Tensor
    B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.A.shape[0])


def lora_modules(model: nn.Module, *, adapter: str = "default") -> list[LoraModule]:
    """List the adapted linear layers of a PEFT model, in the model's own order.

    Raises:
        UserError: if the model has no LoRA layer of that name, or one that is not a linear layer.
    """
    modules = list(_walk(model, adapter))
    if not modules:
        raise UserError(
            f"the model has no LoRA layers of the adapter {adapter!r}: "
            "build it with peft.get_peft_model and a LoraConfig first"
        )
    return modules


def lora_table(modules: Iterable[LoraModule]) -> pd.DataFrame:
    """Make the module table of adapted layers."""
    return module_table(
        (module.name, module.B.shape[0], module.A.shape[1], module.rank, module.scaling)
        for module in modules
    )


def _walk(model: nn.Module, adapter: str) -> Iterator[LoraModule]:
    from peft.tuners.lora import LoraLayer

    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        name = base_name(path)
        if adapter in layer.lora_embedding_A or (
            adapter in layer.lora_A and not isinstance(layer.lora_A[adapter], nn.Linear)
        ):
            raise UserError(
                f"{name} is adapted but is not a linear layer: rank masks and step records cover "
                "linear layers, so leave it out of target_modules"
            )
        if adapter in layer.lora_A:
            A_module, B_module = layer.lora_A[adapter], layer.lora_B[adapter]
            scaling = float(layer.scaling[adapter])
            weights = A_module.weight, B_module.weight
            yield LoraModule(name, layer, A_module, B_module, *weights, scaling)
