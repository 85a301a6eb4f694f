"""Layer and projection of the module paths of several architectures."""

from __future__ import annotations

import pytest

from subspace_lab.module_names import base_name, layer_and_projection


@pytest.mark.parametrize(
    ("module", "layer", "projection"),
    [
        ("model.layers.11.self_attn.q_proj", 11, "q_proj"),
        ("transformer.h.3.attn.c_attn", 3, "c_attn"),
        ("encoder.layer.7.attention.self.query", 7, "query"),
        ("encoder.block.2.layer.0.SelfAttention.q", 2, "q"),
        ("transformer_blocks.18.attn.to_q", 18, "to_q"),
        ("single_transformer_blocks.4.proj_mlp", 4, "proj_mlp"),
        ("transformer.transformer_blocks.0.ff.net.0.proj", 0, "proj"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", -1, "to_q"),
        ("lm_head", -1, "lm_head"),
        ("myblocks.3.fc", -1, "fc"),
    ],
)
def test_layer_and_projection(module, layer, projection):
    assert layer_and_projection(module) == (layer, projection)


@pytest.mark.parametrize(
    "wrapped",
    [
        "base_model.model.model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.up_proj",
        "_orig_mod.base_model.model.model.layers.0.mlp.up_proj",
        "module.base_model.model.model.layers.0.mlp.up_proj",
        "module.module._orig_mod.base_model.model.model.layers.0.mlp.up_proj",
        "_orig_mod.module.base_model.model.model.layers.0.mlp.up_proj",
        "base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj",
        "base_model.model.model.layers.0._checkpoint_wrapped_module.mlp._orig_mod.up_proj",
        "_fsdp_wrapped_module.base_model.model.model.layers.0.mlp.up_proj._orig_mod",
    ],
)
def test_a_module_has_one_name_whatever_wraps_the_model(wrapped):
    assert base_name(wrapped) == "model.layers.0.mlp.up_proj"


def test_a_base_keeps_its_own_modules_called_module():
    assert base_name("base_model.model.module.layers.0.module.up") == "module.layers.0.module.up"
