"""What a module's path says: its layer and its projection."""

from __future__ import annotations

import re

# The blocks of a diffusion transformer count as layers; those inside a U-Net's stages do not, since
# every stage counts its own from 0.
_STACKS = r"(?:^|\.)(?:layers?|h|blocks?)|^(?:transformer\.)?(?:single_)?transformer_blocks"
_LAYER = re.compile(rf"(?:{_STACKS})\.(\d+)(?:\.|$)")


def layer_and_projection(module: str) -> tuple[int, str]:
    """Read the layer index (-1 where there is none) and the last component of a module path.

    >>> layer_and_projection("model.layers.11.self_attn.q_proj")
    (11, 'q_proj')
    >>> layer_and_projection("lm_head")
    (-1, 'lm_head')
    """
    found = _LAYER.search(module)
    return (int(found.group(1)) if found else -1), module.rsplit(".", 1)[-1]
