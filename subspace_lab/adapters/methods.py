"""The methods as PEFT adapters on a base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def lora_config(
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
) -> LoraConfig:
    """Give the PEFT configuration of a plain LoRA: dW = (alpha / r) B A."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
    )


def adapt(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Put an adapter on `model`, initialised by `seed`, in fp32 whatever the base's dtype.

    Raises:
        UserError: if the target modules match nothing in the model.
    """
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            if "target" not in str(error).lower():
                raise
            wanted = ", ".join(sorted(config.target_modules or []))
            linear = (name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise UserError(
                f"the targets {wanted} match nothing in the model; its linear layers are: {known}"
            ) from error
