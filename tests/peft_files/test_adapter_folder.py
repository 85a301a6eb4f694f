"""LoRA adapters saved by PEFT itself, against the dense updates that PEFT computes from them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from subspace_lab.linalg.factors import weight_matrix
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from tests.peft_files.peft_models import (
    IGNORE_PEFTS_WARNINGS,
    Zoo,
    adapt,
    adapted_layers,
    assert_near,
    assert_peft_agrees,
    gpt2,
    llama,
    product,
    reason,
)

pytestmark = IGNORE_PEFTS_WARNINGS

ATTENTION_AND_MLP = ["q_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("options", "variant"),
    [
        ({}, "lora"),
        ({"use_rslora": True}, "rslora"),
        ({"use_dora": True}, "dora"),
        ({"use_dora": True, "use_rslora": True}, "dora+rslora"),
        ({"exclude_modules": ["up_proj"]}, "lora"),
        ({"layers_to_transform": [1]}, "lora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "lora"),
        ({"bias": "lora_only"}, "lora"),
        ({"init_lora_weights": "mica"}, "lora"),
        ({"target_modules": r".*\.1\.(self_attn|mlp)\.\w+_proj"}, "lora"),
    ],
)
def test_linear_layers_agree_with_peft(tmp_path, options, variant):
    options = {"target_modules": ATTENTION_AND_MLP} | options
    model = adapt(llama(), LoraConfig(r=3, lora_alpha=7, **options))
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model)
    assert set(folder.modules["variant"]) == {variant}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_rank_and_alpha_patterns_match_as_peft_matches_them(tmp_path, use_rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=use_rslora,
        target_modules=ATTENTION_AND_MLP,
        # `proj` is part of a name only and matches nothing; the first key that matches wins.
        rank_pattern={"proj": 9, r"layers\.1\.mlp\..*": 5, "up_proj": 2, "q_proj": 1},
        alpha_pattern={"^model.layers.0.self_attn.q_proj": 11, "v_proj": 3, r"mlp\.up_proj": 13},
    )
    model = adapt(llama(), config)
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model)
    assert set(folder.modules["r"]) == {1, 2, 4, 5}


def test_the_module_table_locates_each_module(tmp_path):
    adapt(llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])).save_pretrained(tmp_path)
    modules = AdapterFolder(tmp_path).modules.set_index("module")
    assert modules.loc["lm_head", ["layer", "projection", "kind"]].tolist() == [
        -1,
        "lm_head",
        "linear",
    ]
    second = modules.loc["model.layers.1.self_attn.q_proj", ["layer", "projection", "note"]]
    assert second.tolist() == [1, "q_proj", ""]


def test_replicated_layers_are_counted_as_peft_counts_them(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]])
    adapt(llama(), config).save_pretrained(tmp_path)
    modules = AdapterFolder(tmp_path).modules
    assert sorted(modules["layer"]) == [0, 1, 2]
    assert set(modules["note"]) == {"layer counts the layers after layer_replication"}


def test_conv1d_of_gpt2_comes_in_linear_orientation(tmp_path):
    model = adapt(gpt2(), LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model, fan_in_fan_out=True)
    attention = folder.modules.set_index("module").loc["transformer.h.1.attn.c_attn"]
    assert (attention["m"], attention["n"], attention["layer"]) == (48, 16, 1)


def test_factors_do_not_depend_on_the_shared_flag_of_a_mixed_adapter(tmp_path):
    # PEFT corrects its one flag at each layer, so that the saved value is that of the last layer.
    model = adapt(gpt2(), LoraConfig(r=3, target_modules=["c_attn", "lm_head"]))
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    for name, layer in adapted_layers(model).items():
        delta = layer.get_delta_weight("default").detach()
        is_conv1d = name.endswith("c_attn")
        assert_near(product(folder.factors(name)), weight_matrix(delta, fan_in_fan_out=is_conv1d))


def test_every_kind_of_layer_agrees_with_peft(tmp_path):
    targets = [name for name, _ in Zoo().named_children()]
    rank_pattern = {"conv2d": 5, "mha": 3}
    config = LoraConfig(r=2, lora_alpha=5, target_modules=targets, rank_pattern=rank_pattern)
    model = adapt(Zoo(), config)
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model, without=["grouped"])
    assert folder.modules.set_index("module")["kind"].to_dict() == {
        "linear": "linear",
        "embedding": "embedding",
        "conv1d": "conv1d",
        "conv2d": "conv2d",
        "conv1x1": "conv2d",
        "conv3d": "conv3d",
        "mha": "linear",
        "mha.out_proj": "linear",
    }
    assert "groups" in reason(folder, "grouped")


def test_bfloat16_adapters_keep_their_dtype(tmp_path):
    model = get_peft_model(
        llama().bfloat16(), LoraConfig(target_modules=["q_proj"]), autocast_adapter_dtype=False
    )
    model.save_pretrained(tmp_path)
    module = "model.layers.0.self_attn.q_proj"
    factors = AdapterFolder(tmp_path).factors(module)
    assert torch.equal(factors.A, adapted_layers(model)[module].lora_A["default"].weight)
    assert factors.A.dtype == torch.bfloat16
