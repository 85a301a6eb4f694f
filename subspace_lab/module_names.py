"""The names of modules: one name whatever wraps the model, its layer and its projection."""

from __future__ import annotations

import re
from typing import Literal

# The blocks of a diffusion transformer count as layers; those inside a U-Net's stages do not, since
# every stage counts its own from 0.
_STACKS = r"(?:^|\.)(?:layers?|h|blocks?)|^(?:transformer\.)?(?:single_)?transformer_blocks"
_LAYER = re.compile(rf"(?:{_STACKS})\.(\d+)(?:\.|$)")

PEFT_PREFIX = "base_model.model."
# What torch.compile, FSDP and the checkpoint wrapper put into a path.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def unwrapped(path: str) -> str:
    """Remove what torch.compile, FSDP, the checkpoint wrapper and data-parallel wrappers add.

    Data-parallel wrappers put `module` at the front; elsewhere that is a name of the model's own.
    """
    own = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
    while own.startswith("module."):
        own = own.removeprefix("module.")
    return own


def base_name(path: str) -> str:
    """Name a module, or a tensor of it, as the unwrapped base model names it, without PEFT's part.

    >>> base_name("module._orig_mod.base_model.model.model.layers.0._fsdp_wrapped_module.mlp")
    'model.layers.0.mlp'
    """
    return unwrapped(path).removeprefix(PEFT_PREFIX)


def lora_key(module: str, side: Literal["A", "B"]) -> str:
    """Name a factor of a module in an adapter's weights file, as PEFT does.

    >>> lora_key("model.layers.0.mlp.up_proj", "A")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    return f"{PEFT_PREFIX}{module}.lora_{side}.weight"


def layer_and_projection(module: str) -> tuple[int, str]:
    """Read the layer index (-1 where there is none) and the last component of a module path.

    >>> layer_and_projection("model.layers.11.self_attn.q_proj")
    (11, 'q_proj')
    >>> layer_and_projection("lm_head")
    (-1, 'lm_head')
    """
    match = _LAYER.search(module)
    return (int(match.group(1)) if match else -1), module.rsplit(".", 1)[-1]
