"""A tiny random Llama with a LoRA on it, for tests that need a whole model in milliseconds."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

TARGETS = ["q_proj", "v_proj", "down_proj"]


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """Make a Llama of two layers and 32 hidden units."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


def tiny_lora(*, rank: int = 4, trained: bool = False, seed: int = 0, **options) -> PeftModel:
    """Put a LoRA on a tiny Llama; `trained` gives B random values, as if it had been trained."""
    options = {"r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS} | options
    config = LoraConfig(**options)
    model = get_peft_model(tiny_llama(seed), config)
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(rows: int = 4, length: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw token ids with themselves as labels."""
    ids = torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


class StopAfter(TrainerCallback):
    """Stops training after a step, before its last."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
