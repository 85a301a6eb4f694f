"""Saving an adapter whose base was changed, so that it is valid on the original base.

PiSSA and its relatives take scaling * B0 A0 out of the base; a restart (`adapters.restarts`) merges
scaling * B_i A_i into it. With terms (A_i, B_i) that the base has gained, (A0, -B0) for what it has
lost, the trained weight is

    W0 + scaling * (B_1 A_1 + ... + B_k A_k + B A) = W0 + scaling * [B, B_1, ...] [A; A_1; ...],

a plain LoRA of rank (k + 1) r on W0. PEFT's own conversion
(`path_initial_model_for_weight_conversion`) does the same for k = 1 by loading the initial adapter
into the live model at each save; in the middle of training, under an optimizer, DDP or
torch.compile, the live model should not be touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from subspace_lab.adapters.data_initialization import plain
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.module_names import PEFT_PREFIX, base_name, lora_key

if TYPE_CHECKING:
    from peft import LoraConfig

Terms = Mapping[str, Sequence[tuple[Tensor, Tensor]]]
"""What the base gained: for each module (A_i, B_i) of shapes (r, n) and (m, r), as many for all."""


def taken_out_of_the_base(model: nn.Module, *, adapter: str = "default") -> Terms:
    """Give the terms of a model whose base was split just now: (A0, -B0), its A and B."""
    return {
        module.name: [(module.A.detach().cpu().clone(), -module.B.detach().cpu())]
        for module in lora_modules(model, adapter=adapter)
    }


class SaveOnOriginalBase:
    """Saves the adapter of a model whose base was changed, as a plain LoRA on the original base.

    Args:
        terms: what the base gained; may grow during training.
        adapter: name of the adapter.
    """

    def __init__(self, terms: Terms, *, adapter: str = "default") -> None:
        self._terms = terms
        self._adapter = adapter

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`."""
        from peft import get_peft_model_state_dict

        tensors = {
            f"{PEFT_PREFIX}{base_name(name)}": tensor
            for name, tensor in get_peft_model_state_dict(model, adapter_name=self._adapter).items()
        }
        products = 1
        for module in lora_modules(model, adapter=self._adapter):
            pairs = [(module.A.detach().cpu(), module.B.detach().cpu()), *self._terms[module.name]]
            products = len(pairs)
            tensors[lora_key(module.name, "A")] = torch.cat([A for A, _ in pairs], dim=0)
            tensors[lora_key(module.name, "B")] = torch.cat([B for _, B in pairs], dim=1)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = model.peft_config[self._adapter]  # type: ignore[index]
        converted_config(config, products=products, base=model).save_pretrained(folder)


def converted_config(config: LoraConfig, *, products: int, base: nn.Module) -> LoraConfig:
    """Return the configuration of a sum of products B A: their joint rank with the same scaling."""
    converted = plain(config)
    growth = math.sqrt(products) if config.use_rslora else products  # keeps the scaling
    converted.inference_mode = True
    converted.r = products * config.r
    converted.lora_alpha = growth * config.lora_alpha
    ranks = config.rank_pattern or {}
    converted.rank_pattern = {key: products * rank for key, rank in ranks.items()}
    alphas = config.alpha_pattern or {}
    converted.alpha_pattern = {key: growth * alpha for key, alpha in alphas.items()}
    if converted.base_model_name_or_path is None:
        converted.base_model_name_or_path = getattr(base, "name_or_path", None)
    return converted
