"""AdaLoRA, DoRA and converted PiSSA adapters, against the model that PEFT makes of them."""

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model

from subspace_lab.linalg.dora import dora_whole_update
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
)

pytestmark = IGNORE_PEFTS_WARNINGS


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora_agrees_with_the_model_that_peft_loads(tmp_path, pruned):
    options = {"total_step": 10, "tinit": 1, "tfinal": 2, "target_modules": ["q_proj", "v_proj"]}
    model = adapt(llama(), AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, **options))
    if pruned:
        kept = {"0": [True, False, True, False], "1": [False, True, True, True]}
        model.peft_config["default"].rank_pattern = {
            f"model.layers.{layer}.self_attn.{projection}.lora_E.default": kept[layer]
            for layer in kept
            for projection in ("q_proj", "v_proj")
        }
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, PeftModel.from_pretrained(llama(), tmp_path))
    assert set(folder.modules["r"]) == ({2, 3} if pruned else {4})
    assert set(folder.modules["variant"]) == {"adalora"}


@pytest.mark.parametrize(
    ("base", "targets", "fan_in_fan_out"),
    [
        (llama, ["q_proj", "down_proj", "embed_tokens"], False),
        (gpt2, ["c_attn", "c_proj"], True),
        (Zoo, ["linear", "embedding", "conv1d", "conv2d", "conv1x1", "conv3d"], False),
    ],
)
def test_doras_whole_update_is_merged_minus_base(tmp_path, base, targets, fan_in_fan_out):
    config = LoraConfig(
        r=3, lora_alpha=2, use_dora=True, target_modules=targets, fan_in_fan_out=fan_in_fan_out
    )
    model = adapt(base().double(), config)
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert len(folder.modules) >= len(targets)
    assert folder.modules["note"].str.contains("direction only").all()
    before = {name: layer.get_base_layer().weight for name, layer in adapted_layers(model).items()}
    before = {name: weight.detach().clone() for name, weight in before.items()}
    merged = model.merge_and_unload()
    for name in folder.modules["module"]:
        factors = folder.factors(name)
        view = {"kind": factors.kind, "fan_in_fan_out": fan_in_fan_out}
        W0 = weight_matrix(before[name], **view)
        update = dora_whole_update(W0, factors, folder.magnitude(name))
        difference = weight_matrix(merged.get_submodule(name).weight.detach(), **view) - W0
        assert_near(update.dense(W0), difference, 1e-12)
        c = update.row_scaling[:, None]
        assert_near((c - 1) * W0 + c * product(factors), difference, 1e-12)


def test_dora_row_norms_do_not_depend_on_the_block_size(monkeypatch, tmp_path):
    config = LoraConfig(r=2, use_dora=True, target_modules=["linear"])
    model = adapt(Zoo(), config)
    model.save_pretrained(tmp_path)
    folder, W0 = AdapterFolder(tmp_path), model.base_model.model.linear.base_layer.weight.detach()
    arguments = (W0, folder.factors("linear"), folder.magnitude("linear"))
    whole = dora_whole_update(*arguments).row_scaling
    monkeypatch.setattr("subspace_lab.linalg.dora._ROWS", 3)
    assert torch.equal(dora_whole_update(*arguments).row_scaling, whole)
    with pytest.raises(ValueError, match="weight_matrix"):
        dora_whole_update(W0.T, *arguments[1:])


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_converted_pissa_adapter_updates_the_original_base(tmp_path, use_rslora):
    base = llama()
    original = {name: weight.clone() for name, weight in base.state_dict().items()}
    targets = ["q_proj", "up_proj"]
    config = LoraConfig(
        r=2, use_rslora=use_rslora, init_lora_weights="pissa", target_modules=targets
    )
    model = get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "residual")
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )

    converted = AdapterFolder(tmp_path / "converted")
    assert set(converted.modules["r"]) == {4}
    assert set(converted.modules["note"]) == {""}
    residual = AdapterFolder(tmp_path / "residual")
    assert residual.modules["note"].str.contains("not converted").all()
    for name, layer in adapted_layers(model).items():
        now = layer.base_layer.weight.detach() + layer.get_delta_weight("default").detach()
        assert_near(product(converted.factors(name)), now - original[f"{name}.weight"])
        assert_near(
            product(residual.factors(name)), layer.get_delta_weight("default").detach(), 1e-6
        )
