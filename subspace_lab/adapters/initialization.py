"""MiLoRA's initialization, which PEFT does not have: the minor singular directions of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from subspace_lab.adapters.modules import LoraModule, lora_modules
from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel


def split_off_minor_directions(model: PeftModel, *, adapter: str = "default") -> None:
    """Move the r smallest singular directions of each adapted weight into its adapter.

    With the singular value decomposition W0 = U diag(S) Vh, S descending, and s = scaling,

        B0 = U[:, -r:] diag(S[-r:] / s)^(1/2),    A0 = diag(S[-r:] / s)^(1/2) Vh[-r:],
        W_res = W0 - s B0 A0,

    so that W_res + s B0 A0 = W0 (Wang et al., 2025, whose B A is the minor part itself: s = 1).
    The decomposition is taken in fp32 where the weight lies; W_res is rounded to its dtype.
    """
    modules = lora_modules(model, adapter=adapter)
    for module in tqdm(modules, desc="singular directions", delay=1, disable=None):
        _split_off(module)


@torch.no_grad()
def _split_off(module: LoraModule) -> None:
    weight = module.layer.get_base_layer().weight  # type: ignore[operator]
    transposed = bool(module.layer.fan_in_fan_out)  # GPT-2's Conv1D holds (n, m)
    W = weight.float().T if transposed else weight.float()
    rank = module.rank
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = (S[-rank:] / module.scaling).sqrt()
    B, A = U[:, -rank:] * root, root[:, None] * Vh[-rank:]
    module.B.copy_(B)
    module.A.copy_(A)
    residual = W - module.scaling * B @ A
    weight.copy_(residual.T if transposed else residual)


def refuse_too_high_ranks(model: PeftModel, *, adapter: str = "default") -> None:
    """Refuse an adapter that asks for more singular directions than a weight has.

    Raises:
        UserError: if r exceeds a weight's smaller side.
    """
    for module in lora_modules(model, adapter=adapter):
        m, n = module.B.shape[0], module.A.shape[1]
        # A itself has fewer rows where PEFT kept fewer directions.
        rank = module.layer.r[adapter]  # type: ignore[index]
        if rank > min(m, n):
            raise UserError(
                f"{module.name} is {m} x {n} and does not have {rank} singular directions: lower "
                "`rank`"
            )


def refuse_quantized(model: nn.Module, method: str) -> None:
    """Refuse a base whose weights cannot be split.

    Raises:
        UserError: if the model is quantized.
    """
    if getattr(model, "quantization_method", None) is not None:
        raise UserError(
            f"{method} changes the base weights, which a quantized base does not allow: load the "
            "base in bf16 or fp32"
        )
