"""One factor of a LoRA frozen at a random draw, the other trained from zero.

With A frozen (LoRA-FA, Zhang et al., 2023, arXiv 2308.03303) the update's row space is chosen once,
at random; with B frozen (Zhu et al., 2024, arXiv 2402.16842, "asymmetry") its column space is. The
model starts out as its base in both.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from subspace_lab.adapters.modules import lora_modules

Side = Literal["A", "B"]


@torch.no_grad()
def freeze(model: nn.Module, side: Side, *, seed: int) -> None:
    """Freeze one factor of every adapted layer of a model whose B is still zero.

    Args:
        model: the PEFT model.
        side: `A`, as it was drawn; or `B`, which is drawn as PEFT draws A, while A becomes zero.
        seed: of B's draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in lora_modules(model):
        if side == "B":
            drawn = torch.empty(module.B.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            module.B.copy_(drawn)
            module.A.zero_()
        (module.A if side == "A" else module.B).requires_grad_(False)
