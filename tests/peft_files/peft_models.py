"""Small models of several architectures, adapted by PEFT itself, and its own dense updates."""

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from subspace_lab.linalg.factors import weight_matrix

IGNORE_PEFTS_WARNINGS = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
            tie_word_embeddings=False,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8))


class Zoo(nn.Module):
    """One layer of every kind that LoRA adapts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)
        self.embedding = nn.Embedding(10, 4)
        self.conv1d = nn.Conv1d(3, 4, 3)
        self.conv2d = nn.Conv2d(3, 4, (2, 3))
        self.conv1x1 = nn.Conv2d(3, 4, 1)
        self.conv3d = nn.Conv3d(2, 4, 2)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.mha = nn.MultiheadAttention(4, 2)


def adapt(base, config):
    """Apply the adapter and give every tensor of it a random value, as if trained."""
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.uniform_(0.5, 2)
            elif "lora_" in name:
                parameter.normal_()
    return model.eval()


def adapted_layers(model):
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def product(factors):
    return factors.scaling * (factors.B @ factors.A)


def assert_near(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    difference = torch.linalg.vector_norm(found - expected)
    assert difference <= tolerance * torch.linalg.vector_norm(expected)


def assert_peft_agrees(folder, model, *, fan_in_fan_out=False, without=()):
    layers = adapted_layers(model)
    assert set(folder.modules["module"]) == layers.keys() - set(without)
    for row in folder.modules.itertuples():
        factors = folder.factors(row.module)
        delta = weight_matrix(
            layers[row.module].get_delta_weight("default").detach(),
            kind=row.kind,
            fan_in_fan_out=fan_in_fan_out,
        )
        assert delta.norm() > 0
        assert_near(product(factors), delta)
        assert (row.m, row.n, row.r) == (*delta.shape, factors.rank)
        assert row.scaling == factors.scaling


def reason(folder, module):
    reasons = folder.skipped.set_index("module")["reason"]
    assert module in reasons.index
    return str(reasons[module])
