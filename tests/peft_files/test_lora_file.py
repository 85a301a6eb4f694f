"""LoRA files of image models give the updates that their own tools apply."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from analyses import effective_rank
from subspace_lab.errors import UserError
from subspace_lab.peft_files.lora_file import LoraFile
from subspace_lab.runs.run import Run
from tests.peft_files.peft_models import assert_near, product, reason

UNET = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_11_self_attn_q_proj"


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def write(folder, tensors, metadata=None):
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "x.safetensors", metadata
    )
    return folder / "x.safetensors"


def test_kohyas_names_and_scaling(tmp_path):
    tensors = {
        f"{UNET}.lora_down.weight": normal(4, 8),
        f"{UNET}.lora_up.weight": normal(6, 4),
        f"{UNET}.alpha": torch.tensor(2.0),
        f"{TEXT}.lora_down.weight": normal(3, 5),  # without alpha: scaling 1
        f"{TEXT}.lora_up.weight": normal(7, 3),
    }
    file = LoraFile(write(tmp_path, tensors))
    table = file.modules.set_index("module")
    assert table.loc[UNET, ["layer", "projection", "m", "n", "r", "scaling"]].tolist() == [
        -1, "attn1_to_q", 6, 8, 4, 0.5
    ]  # fmt: skip
    assert table.loc[TEXT, ["layer", "projection", "scaling"]].tolist() == [
        11, "self_attn_q_proj", 1.0
    ]  # fmt: skip
    expected = 2.0 / 4 * normal(6, 4) @ normal(4, 8)
    assert_near(product(file.factors(UNET)), expected)
    assert file.skipped.empty and file.parameters == 4 * 8 + 6 * 4 + 3 * 5 + 7 * 3


def test_a_convolutions_factors_are_its_flattened_update(tmp_path):
    """down (r, in, 3, 3) then up (out, r, 1, 1) is one convolution with the product as weight."""
    down, up = normal(2, 3, 3, 3), normal(5, 2, 1, 1)
    tensors = {"c.lora_down.weight": down, "c.lora_up.weight": up, "c.alpha": torch.tensor(2.0)}
    factors = LoraFile(write(tmp_path, tensors)).factors("c")
    x = normal(1, 3, 6, 6)
    with_two = nn.functional.conv2d(nn.functional.conv2d(x, down, padding=1), up)
    with_one = nn.functional.conv2d(x, product(factors).view(5, 3, 3, 3), padding=1)
    torch.testing.assert_close(with_one, with_two, atol=1e-4, rtol=1e-4)


def test_diffusers_names_of_both_ages(tmp_path):
    tensors = {
        "unet.mid_block.attn1.to_q.lora_A.weight": normal(4, 8),
        "unet.mid_block.attn1.to_q.lora_B.weight": normal(6, 4),
        "unet.mid_block.attn1.to_k.lora.down.weight": normal(4, 8),
        "unet.mid_block.attn1.to_k.lora.up.weight": normal(6, 4),
        "unet.mid_block.attn1.processor.to_v_lora.down.weight": normal(4, 8),
        "unet.mid_block.attn1.processor.to_v_lora.up.weight": normal(6, 4),
        "text_encoder.layers.3.q_proj.lora_linear_layer.down.weight": normal(4, 8),
        "text_encoder.layers.3.q_proj.lora_linear_layer.up.weight": normal(6, 4),
    }
    metadata = {
        "lora_adapter_metadata": json.dumps(
            {"unet.r": 4, "unet.lora_alpha": 16, "unet.alpha_pattern": {"mid_block.attn1.to_k": 2}}
        )
    }
    table = LoraFile(write(tmp_path, tensors, metadata)).modules.set_index("module")
    assert table["scaling"].to_dict() == {
        "unet.mid_block.attn1.to_q": 4.0,
        "unet.mid_block.attn1.to_k": 0.5,
        "unet.mid_block.attn1.to_v": 4.0,
        "text_encoder.layers.3.q_proj": 1.0,
    }
    assert table.loc["text_encoder.layers.3.q_proj", "layer"] == 3


def test_what_is_not_b_a_is_named(tmp_path):
    tensors = {
        "good.lora_down.weight": normal(2, 4),
        "good.lora_up.weight": normal(3, 2),
        "tucker.lora_down.weight": normal(2, 4, 1, 1),
        "tucker.lora_mid.weight": normal(2, 2, 3, 3),
        "tucker.lora_up.weight": normal(3, 2, 1, 1),
        "half.lora_down.weight": normal(2, 4),
        "loha.hada_w1_a": normal(3, 2),
        "loha.alpha": torch.tensor(1.0),
        "inputs.lora_down.weight": normal(2, 4),
        "inputs.lora_up.weight": normal(3, 2),
        "inputs.dora_scale": normal(1, 4),
    }
    file = LoraFile(write(tmp_path, tensors))
    assert file.modules["module"].tolist() == ["good"]
    assert "Tucker" in reason(file, "tucker")
    assert "holds only half.lora_down.weight" in reason(file, "half")
    assert "LoHa" in reason(file, "loha.hada_w1_a")
    assert "each input" in reason(file, "inputs")
    with pytest.raises(UserError, match="Tucker"):
        file.factors("tucker")


def test_dora_scales_of_outputs_are_magnitudes(tmp_path):
    tensors = {
        "q.lora_down.weight": normal(2, 4),
        "q.lora_up.weight": normal(3, 2),
        "q.dora_scale": normal(3, 1),
    }
    file = LoraFile(write(tmp_path, tensors))
    assert file.modules["variant"].tolist() == ["dora"]
    assert torch.equal(file.magnitude("q"), normal(3, 1).flatten())


def test_a_file_opens_as_a_run_and_is_analyzed(tmp_path):
    tensors = {
        f"{UNET}.lora_down.weight": torch.eye(4, 8),
        f"{UNET}.lora_up.weight": torch.eye(6, 4) * torch.tensor([4.0, 3.0, 0.0, 0.0]),
    }
    run = Run(write(tmp_path, tensors))
    assert run.steps == [0] and run.modules["projection"].tolist() == ["attn1_to_q"]
    table = effective_rank.compute(run, measures=["stable", "numerical"])
    values = table[table["matrix"] == "update"].set_index("measure")["value"]
    assert values.to_dict() == pytest.approx({"stable": 25 / 16, "numerical": 2})


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no LoRA"):
        Run(write(tmp_path, {"model.weight": normal(2, 2)}))


@pytest.mark.parametrize("rs_lora", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(3, 6, 3)])
def test_lycoris_agrees(tmp_path, layer, rs_lora):
    locon = pytest.importorskip("lycoris.modules.locon")
    module = locon.LoConModule(UNET, layer, lora_dim=4, alpha=3.0, rs_lora=rs_lora)
    nn.init.normal_(module.lora_up.weight)
    tensors = {f"{UNET}.{name}": t.detach() for name, t in module.custom_state_dict().items()}
    update = product(LoraFile(write(tmp_path, tensors)).factors(UNET))
    assert_near(update, module.get_diff_weight()[0].detach().flatten(1))
