"""Can a law be applied to a model's layers, and is it? What the first gradients say."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subspace_lab.adapters.mask_hook import MaskHook
from subspace_lab.adapters.modules import LoraModule
from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import MaskLaw


def check_modules(law: MaskLaw, modules: Sequence[LoraModule], *, adapter: str) -> None:
    """Refuse modules that the law cannot gate; warn where it changes what the model computes.

    Raises:
        UserError: if a DoRA is asked for sample or token masks, or the law does not fit a rank.
    """
    is_dora = any(
        getattr(module.layer, "use_dora", {}).get(adapter, False)
        or adapter in getattr(module.layer, "lora_magnitude_vector", {})
        for module in modules
    )
    if is_dora and law.granularity != "step":
        raise UserError(
            f"DoRA pushes the identity matrix through A for its weight norm, which "
            f"{law.granularity} masks would corrupt: use granularity step"
        )
    law.check_modules({module.name: module.rank for module in modules})
    if law.keep_prob < 1 and any(bool(module.B.any()) for module in modules):
        warnings.warn(
            "the adapter's B A is not zero (PiSSA, MiLoRA, or already trained), so a rank "
            "mask changes the model's function from its first step on",
            stacklevel=3,
        )


def refuse_unmasked(hooks: Iterable[MaskHook], kept: Mapping[str, NDArray[np.bool_]]) -> bool:
    """Refuse gradients that masked modules cannot have.

    Under a step mask a dropped direction has exactly zero gradient: its row of A's and its column
    of B's. Under sample and token masks a module with a gradient must have called its hook. A
    frozen factor has none, which leaves the other. Where the whole gradient is not available
    (DeepSpeed, sharded parameters) nothing is checked.

    Args:
        hooks: the hooks of the masked modules, before an optimizer step.
        kept: the step masks in use, module name to (r,); empty for other laws.

    Returns:
        Whether any module's gradient was available.

    Raises:
        UserError: if a gradient shows that the mask was not applied.
    """
    available = False
    for hook in hooks:
        factors = ((hook.A_module.weight, 0), (hook.B_module.weight, 1))  # with their rank axes
        gradients = [(_whole(weight), axis) for weight, axis in factors if weight.requires_grad]
        known = [(gradient, axis) for gradient, axis in gradients if gradient is not None]
        if not known or len(known) < len(gradients):
            continue
        available = True
        if hook.module in kept:
            dropped = torch.from_numpy(np.flatnonzero(~kept[hook.module])).to(known[0][0].device)
            if any(_nonzero(gradient.index_select(axis, dropped)) for gradient, axis in known):
                raise UserError(
                    f"{hook.module}: rank directions that the mask drops have a gradient, so the "
                    "mask is not applied: switch off fused LoRA kernels (Unsloth, axolotl) and "
                    "torch.compile; if the loss has a term in A or B themselves, pass "
                    "checked_steps=0 to RankMask"
                )
        elif hook.calls == 0 and any(_nonzero(gradient) for gradient, _ in known):
            raise UserError(
                f"{hook.module} has a gradient, but its forward pass did not go through lora_A, "
                "so the rank mask is not applied: switch off fused LoRA kernels (Unsloth, axolotl)"
            )
    return available


def _whole(weight: Tensor) -> Tensor | None:
    """Return the gradient (m, n) of a weight, None if there is none or only a shard of it."""
    gradient = weight.grad
    if gradient is None or gradient.dim() != 2 or hasattr(gradient, "placements"):
        return None
    return gradient


def _nonzero(gradient: Tensor) -> bool:
    """Whether an entry differs from zero; an overflow makes 0 x inf = nan, which does not."""
    return bool(((gradient != 0) & gradient.isfinite()).any())
