"""Which layers of a base model are Conv1D, GPT-2's linear layer with a weight (in, out).

PEFT saves one flag `fan_in_fan_out` for all modules of an adapter: that of the last one. Where an
adapter covers both sorts of layer, the flag is wrong for some; a weight that is not square tells
by its shape, a square one only by the class of its layer.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

CONV1D_NAMES = ("c_attn", "q_attn", "c_proj", "c_fc")
"""Names that transformers' models with Conv1D give to it (others give them to linear layers)."""


def is_conv1d(module: str, folder: Path) -> bool | None:
    """Tell whether a module of a base model is a Conv1D, by its class; None if it is not known.

    Args:
        module: path in the model with its head, or without.
        folder: the base's folder, with its `config.json`.
    """
    known = {
        conv1d
        for name, conv1d in _layers(folder).items()
        if name == module or name.endswith(f".{module}") or module.endswith(f".{name}")
    }
    return known.pop() if len(known) == 1 else None


@functools.cache
def _layers(folder: Path) -> dict[str, bool]:
    """List the layers with a weight: whether each is Conv1D. Empty for an unknown model."""
    import transformers
    from transformers.pytorch_utils import Conv1D

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with_head = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):  # shapes and classes only, no memory
            if with_head is not None:
                model = with_head(config)
            else:
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except Exception:  # each model class has errors of its own
        return {}
    return {
        name: isinstance(layer, Conv1D)
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
    }
