"""Saving a PiSSA or MiLoRA adapter so that it is valid on the original base.

During training the base is W_res = W0 - scaling * B0 A0. The trained weight is then

    W_res + scaling * B A = W0 + scaling * [B, -B0] [A; A0],

a plain LoRA of rank 2 r on W0. PEFT's own conversion (`path_initial_model_for_weight_conversion`)
does the same by loading the initial adapter into the live model at each save; in the middle of
training, under an optimizer, DDP or torch.compile, the live model should not be touched.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from subspace_lab.adapters.modules import lora_modules
from subspace_lab.module_names import PEFT_PREFIX, base_name, lora_key

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


class SaveOnOriginalBase:
    """Saves the adapter of a model whose base was split, as a plain LoRA on the original base.

    The saved matrices are A' = [A; A0], (2 r, n), and B' = [B, -B0], (m, 2 r).

    Args:
        model: the PEFT model, just initialized: its A and B are taken as A0 and B0.
        adapter: name of the adapter.
    """

    def __init__(self, model: PeftModel, *, adapter: str = "default") -> None:
        self._adapter = adapter
        self._initial: dict[str, tuple[Tensor, Tensor]] = {
            module.name: (module.A.detach().cpu().clone(), module.B.detach().cpu().clone())
            for module in lora_modules(model, adapter=adapter)
        }

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` into `folder`."""
        from peft import get_peft_model_state_dict

        tensors = {
            f"{PEFT_PREFIX}{base_name(name)}": tensor
            for name, tensor in get_peft_model_state_dict(model, adapter_name=self._adapter).items()
        }
        for module in lora_modules(model, adapter=self._adapter):
            A0, B0 = self._initial[module.name]
            A, B = module.A.detach().cpu(), module.B.detach().cpu()
            tensors[lora_key(module.name, "A")] = torch.cat([A, A0], dim=0)
            tensors[lora_key(module.name, "B")] = torch.cat([B, -B0], dim=1)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        converted_config(model.peft_config[self._adapter], base=model).save_pretrained(folder)  # type: ignore[index]


def converted_config(config: LoraConfig, *, base: nn.Module) -> LoraConfig:
    """Return the configuration of the converted adapter: rank 2 r with the same scaling."""
    converted = copy.deepcopy(config)
    growth = math.sqrt(2) if config.use_rslora else 2  # keeps alpha / sqrt(r), alpha / r
    converted.init_lora_weights = True
    converted.inference_mode = True
    converted.r = 2 * config.r
    converted.lora_alpha = growth * config.lora_alpha
    converted.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    alphas = config.alpha_pattern or {}
    converted.alpha_pattern = {key: growth * alpha for key, alpha in alphas.items()}
    if converted.base_model_name_or_path is None:
        converted.base_model_name_or_path = getattr(base, "name_or_path", None)
    return converted
