"""What of an adapter is not analyzed has its true reason, and its share of the parameters."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.runs.run import Run
from tests.peft_files.peft_models import IGNORE_PEFTS_WARNINGS, adapt, assert_peft_agrees, llama
from tests.peft_files.test_adapter_folder_skipped import Mixture

pytestmark = IGNORE_PEFTS_WARNINGS

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def write(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def pair(module=Q, *, part="", r=2):
    return {
        f"{module}.lora_A{part}.weight": torch.randn(r, 5),
        f"{module}.lora_B{part}.weight": torch.randn(3, r),
    }


def trained_parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({}, 0),
        ({"use_dora": True}, 0),
        ({"modules_to_save": ["lm_head"]}, 32 * 16),
        ({"trainable_token_indices": [1, 2]}, 2 * 16),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 0),  # with a copy of the base's weight
    ],
)
def test_coverage_counts_what_peft_trains(tmp_path, options, whole):
    model = adapt(llama(), LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | options))
    model.save_pretrained(tmp_path)
    total = trained_parameters(model)
    assert Run(tmp_path).coverage == (total - whole, total)
    assert Run(tmp_path).left_out["parameters"].sum() == whole


def test_an_expert_stack_is_named_with_its_share(tmp_path):
    config = LoraConfig(
        r=2, target_modules=["linear"], target_parameters=["experts.stack"], lora_alpha=2
    )
    mixture = Mixture()
    mixture.linear = torch.nn.Linear(5, 3)
    model = adapt(mixture, config)
    model.save_pretrained(tmp_path)
    run = Run(tmp_path)
    (row,) = run.left_out.itertuples()
    stack = 3 * 2 * (4 + 6)
    assert (row.kind, row.name, row.parameters) == ("module", "experts", stack)
    assert "a stack of 3 expert matrices" in row.reason
    assert run.coverage == (2 * (5 + 3), trained_parameters(model))


@pytest.mark.parametrize("name", ["default", "policy", "0"])
def test_the_adapters_name_in_the_keys_is_read_as_peft_reads_it(tmp_path, name):
    model = adapt(llama(), LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {
        key.replace(".weight", f".{name}.weight") if "lora_A" in key or "lora_B" in key
        else f"{key}.{name}" if "lora_embedding" in key else key: tensor
        for key, tensor in load_file(file).items()
    }  # fmt: skip
    assert sum(f".{name}" in key for key in tensors) >= 6
    save_file(tensors, file)
    assert_peft_agrees(AdapterFolder(tmp_path), model)


def test_several_adapters_in_one_file_are_not_mixed(tmp_path):
    both = pair(part=".a") | pair(part=".b")
    for number, tensors in enumerate([both, pair() | pair(part=".b"), both | pair("x.q_proj")]):
        folder = AdapterFolder(write(tmp_path / str(number), tensors))
        assert folder.modules.empty
        assert folder.skipped["reason"].str.contains("several adapters").all()


@pytest.mark.parametrize(
    ("tensors", "config", "why"),
    [
        ({key: torch.zeros(0) for key in pair()}, {}, "empty: sharded weights"),
        ({}, {}, "holds no tensors"),
        (pair(), {"kasa_config": {"x": 1}}, "KaSA"),
        (pair(), {"use_new_kernel": True}, "use_new_kernel=True is not known and may change"),
        (pair(r=3), {}, "rank 3 in the file, 2 in the configuration"),
        (
            {"layers.0.linear_qkv.adapter.linear_in.weight": torch.randn(2, 5)},
            {},
            "linear_in is a name of NVIDIA NeMo's",
        ),
        ({"lora_unet.down": torch.randn(2, 5)}, {}, "not a tensor that PEFT's LoRA stores"),
    ],
)
def test_the_reason_is_the_true_one(tmp_path, tensors, config, why):
    run = Run(write(tmp_path, tensors, **config))
    assert run.modules.empty
    assert run.left_out["reason"].str.contains(why).all() and len(run.left_out)
    assert run.coverage == (0, sum(tensor.numel() for tensor in tensors.values()))


@pytest.mark.parametrize("option", ["use_gradient_checkpointing", "use_cache", "bnb_config"])
def test_how_another_tool_trained_does_not_change_the_update(tmp_path, option):
    run = Run(write(tmp_path, pair(), **{option: "unsloth"}))
    assert len(run.modules) == 1 and run.left_out.empty


def test_checkpoints_that_cannot_be_read_are_left_out_by_name(tmp_path):
    write(tmp_path / "checkpoint-1", {key: torch.zeros(0) for key in pair()})
    write(tmp_path / "checkpoint-2", pair() | pair("layers.0.v_proj"))
    write(tmp_path / "checkpoint-3", pair())
    (write(tmp_path / "checkpoint-4", pair()) / "adapter_model.safetensors").unlink()
    run = Run(tmp_path)
    assert list(run.snapshots) == [2, 3] and len(run.modules) == 1
    found = run.left_out.set_index("name")
    assert set(found.index) == {"checkpoint-1", "checkpoint-4", "layers.0.v_proj"}
    assert "sharded" in found.loc["checkpoint-1", "reason"]
    assert "holds no weights" in found.loc["checkpoint-4", "reason"]
    assert "module table" in found.loc["layers.0.v_proj", "reason"]
