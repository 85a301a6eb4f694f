"""Initializations that look at training examples first: LoRA-GA, CorDA and EVA, as PEFT has them.

| method | what it takes from the examples | A and B at the start |
|---|---|---|
| `lora_ga` (Wang et al., 2024, arXiv 2407.05000) | the gradient G = U S V^T of each weight | A = V^T's rows 1..r, B of U's columns r+1..2r; their product is taken out of the base |
| `corda` (Yang et al., 2024, arXiv 2406.05223) | the covariance C of each layer's inputs | the r smallest singular directions of W0 C (knowledge-preserved mode), taken out of the base |
| `eva` (Paischer et al., 2024, arXiv 2410.07170) | the leading singular directions of each layer's inputs | A of those directions, B = 0; ranks are handed out among layers by explained variance |

The gradient and the inputs are those of whole batches; EVA counts tokens of responses only.
"""  # noqa: E501 (a table)

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

Batches = Sequence[Mapping[str, Tensor]]

FROM_DATA = ("lora_ga", "corda", "eva")


def initialization_fields(method: str) -> dict[str, Any]:
    """Give the fields of LoraConfig that choose the initialization of a method."""
    from peft import EvaConfig
    from peft.tuners.lora.config import CordaConfig, LoraGAConfig

    configurations: dict[str, dict[str, Any]] = {
        "lora_ga": {"lora_ga_config": LoraGAConfig()},
        "corda": {"corda_config": CordaConfig(corda_method="kpm", verbose=False)},
        "eva": {"eva_config": EvaConfig()},
    }
    return {"init_lora_weights": method, **configurations.get(method, {})}


def look_at_examples(model: nn.Module, config: LoraConfig, batches: Batches) -> None:
    """Give a base model what LoRA-GA and CorDA read when its adapter is made.

    Args:
        model: the base model, on the device of the batches.
        config: the adapter's configuration.
        batches: of training examples, with labels.

    Raises:
        UserError: if LoRA-GA's rank is too high for a weight.
    """
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import get_target_modules, preprocess_loraga

    if config.init_lora_weights == "lora_ga":
        for name, module in get_target_modules(model, config):
            if 2 * config.r > min(module.weight.shape):
                m, n = module.weight.shape
                raise UserError(
                    f"{name} is {m} x {n} and has no {2 * config.r} singular directions, which "
                    "lora_ga divides between A and B: lower `rank`"
                )
        preprocess_loraga(model, config, lambda: _gradients(model, batches))
    elif config.init_lora_weights == "corda":
        model.eval()
        preprocess_corda(model, config, run_model=lambda: _forward(model, batches))


def set_from_examples(model: PeftModel, batches: Batches) -> None:
    """Set A to EVA's directions, where the adapter's configuration says so."""
    from peft import initialize_lora_eva_weights

    if getattr(model.peft_config["default"], "init_lora_weights", None) == "eva":
        initialize_lora_eva_weights(
            model,
            [dict(batch) for batch in batches],
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )


def plain(config: LoraConfig) -> LoraConfig:
    """Copy a configuration without the initialization, which an adapter's own values replace."""
    copied = copy.deepcopy(config)
    copied.init_lora_weights = True
    copied.lora_ga_config = copied.corda_config = copied.eva_config = None
    return copied


def _gradients(model: nn.Module, batches: Batches) -> None:
    for batch in batches:
        model(**batch).loss.backward()


@torch.no_grad()
def _forward(model: nn.Module, batches: Batches) -> None:
    """Pass the examples one by one, without padding, as PEFT's CorDA takes a layer's inputs."""
    for batch in batches:
        masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for row, mask in zip(batch["input_ids"], masks, strict=True):
            model(input_ids=row[mask.bool()][None])
