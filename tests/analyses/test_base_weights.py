"""A base weight is read as the numbers that it stands for, the right way round, or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from analyses.merged_spectra import compute
from subspace_lab.errors import UserError
from subspace_lab.linalg.factors import weight_matrix
from subspace_lab.runs.run import Run
from tests.peft_files.peft_models import IGNORE_PEFTS_WARNINGS, adapt, adapted_layers

pytestmark = IGNORE_PEFTS_WARNINGS

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
SHAPES = {MODULES[0]: (16, 16), MODULES[1]: (24, 16)}


@pytest.fixture
def adapter(tmp_path) -> Run:
    """Write a LoRA of rank 4 for both modules."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for module, (m, n) in SHAPES.items():
        for letter, shape in {"A": (4, n), "B": (m, 4)}.items():
            value = torch.randn(shape, generator=generator) * 0.1
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = value
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    )
    save_file(tensors, folder / "adapter_model.safetensors")
    return Run(folder)


@pytest.fixture
def weights():
    """Draw weights whose rows and columns differ in size a hundredfold, so that scales matter."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for module, (m, n) in SHAPES.items():
        sizes = torch.logspace(-2, 0, m)[:, None] * torch.logspace(0, -2, n)
        drawn[module] = torch.randn(m, n, generator=generator) * sizes
    return drawn


def write_base(folder, stored, **config):
    """Write the tensors of each module, by their names beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{m}.{name}": value for m, of_m in stored.items() for name, value in of_m.items()}
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "a.safetensors"
    )
    return str(folder)


def fp8_by_tensor(W):
    scale = W.abs().max() / 448
    return {"weight": (W / scale).to(torch.float8_e4m3fn), "weight_scale": scale.reshape(1)}


def fp8_by_row(W):
    scale = W.abs().amax(1, keepdim=True) / 448
    return {"weight": (W / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def fp8_by_block(W, size=5):
    """Blocks of 5 x 5, the last of each row and column cut off."""
    rows, columns = (torch.arange(n) // size for n in W.shape)
    scale = torch.zeros(rows[-1] + 1, columns[-1] + 1)
    for i, j in np.ndindex(*scale.shape):
        scale[i, j] = W[rows == i][:, columns == j].abs().max() / 448
    codes = (W / scale[rows][:, columns]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}


def int8_of_bitsandbytes(W):
    SCB = W.abs().amax(1)
    return {"weight": (W / SCB[:, None] * 127).round().to(torch.int8), "SCB": SCB}


def int8_by_row(W):
    scale = W.abs().amax(1, keepdim=True) / 127
    return {"weight": (W / scale).round().to(torch.int8), "weight_scale": scale}


def spectra(table, matrix):
    rows = table[table["matrix"] == matrix].set_index("module")["singular_values"]
    return {module: np.asarray(rows[module]) for module in MODULES}


@pytest.mark.parametrize(
    ("store", "error"),
    [
        (fp8_by_tensor, 2**-4),
        (fp8_by_row, 2**-4),
        (fp8_by_block, 2**-4),
        (int8_of_bitsandbytes, 1 / 64),
        (int8_by_row, 1 / 64),
    ],
)
def test_codes_are_read_as_the_weights_that_they_stand_for(
    adapter, weights, tmp_path, store, error
):
    stored = {module: store(W) for module, W in weights.items()}
    quantization = {"quant_method": "any", "weight_block_size": [5, 5]}
    base = write_base(tmp_path / "base", stored, quantization_config=quantization)
    table = compute(adapter, base=base, top_k=8)
    assert table["remark"].str.contains("dequantized from").all()
    for module, W in weights.items():
        factors = adapter.factors(0, module)
        for matrix, truth in (("base", W), ("merged", W + factors.B @ factors.A)):
            sigma = torch.linalg.svdvals(truth.double())[:8].numpy()
            # A singular value moves by no more than the norm of the rounding error (Weyl).
            largest = error * float(W.norm())
            assert np.abs(spectra(table, matrix)[module] - sigma).max() < largest
            assert np.abs(spectra(table, matrix)[module] - sigma).max() > 0


@pytest.mark.parametrize(
    "stored",
    [
        {"weight": torch.zeros(128, 1, dtype=torch.uint8), "weight.absmax": torch.ones(4)},
        {"weight": torch.ones(16, 16).to(torch.float8_e4m3fn)},
        {"weight": torch.ones(16, 16).to(torch.float8_e4m3fn), "scale_weight": torch.ones(1)},
        {"weight": torch.ones(16, 16, dtype=torch.int8)},
        {"weight": torch.ones(16, 8, dtype=torch.int8), "weight_scale_inv": torch.ones(16, 1)},
        {"qweight": torch.ones(2, 16, dtype=torch.int32), "scales": torch.ones(1, 16)},
        {
            "weight": torch.ones(16, 16, dtype=torch.int8),
            "weight_scale": torch.ones(16, 1),
            "weight_zero_point": torch.ones(16, 1, dtype=torch.int8),
        },
    ],
)
def test_codes_without_a_sure_meaning_are_refused(adapter, tmp_path, stored):
    quantization = {"quant_method": "of some kind"}
    stored = {MODULES[0]: stored}
    base = write_base(tmp_path / "base", stored, quantization_config=quantization)
    with pytest.raises(UserError, match=r"quantized base, of some kind.*--base") as raised:
        compute(adapter, base=base)
    assert "another base" not in str(raised.value)
    # The base that the adapter itself names is not asked for: the update is shown without it.
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (adapter.path / "adapter_config.json").write_text(json.dumps(config))
    table = compute(Run(adapter.path))
    assert set(table["matrix"]) == {"update"}
    assert table["remark"].str.contains("of some kind").all()


def test_scales_that_do_not_fit_leave_that_module_out(adapter, weights, tmp_path):
    stored = {module: fp8_by_tensor(W) for module, W in weights.items()}
    stored[MODULES[0]]["weight_scale"] = torch.ones(1, 16)  # one for each column?
    base = write_base(tmp_path / "base", stored)
    table = compute(adapter, base=base).set_index("module")
    assert set(table.loc[[MODULES[0]], "matrix"]) == {"update"}
    assert "do not say how to read" in table.loc[MODULES[0], "remark"]
    assert set(table.loc[MODULES[1], "matrix"]) == {"base", "merged", "update"}


def test_the_weight_of_the_full_name_wins(adapter, weights, tmp_path):
    stored = {module: {"weight": W} for module, W in weights.items()}
    stored |= {f"vision.{module}": {"weight": 9 * W} for module, W in weights.items()}
    table = compute(adapter, base=write_base(tmp_path / "base", stored), top_k=4)
    for module, W in weights.items():
        truth = torch.linalg.svdvals(W.double())[:4].numpy()
        assert spectra(table, "base")[module] == pytest.approx(truth, rel=1e-6)


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 8}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, tie_word_embeddings=False)).double()


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(
    "targets",
    [
        ["attn.c_proj"],
        ["attn.c_proj", "lm_head"],  # both square, one stored as (in, out)
        ["c_attn", "c_fc", "c_proj", "lm_head"],
    ],
)
def test_gpt2s_layers_are_merged_as_peft_merges_them(tmp_path, targets, use_dora):
    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=3, target_modules=targets, fan_in_fan_out=True, use_dora=use_dora, lora_alpha=1
    )
    model = adapt(base, config)
    model.save_pretrained(tmp_path / "adapter")
    names = list(adapted_layers(model))
    merged = model.merge_and_unload()
    table = compute(Run(tmp_path / "adapter"), base=str(tmp_path / "base"), top_k=8)
    assert set(table["module"]) == set(names) and set(table["matrix"]) >= {"merged"}
    for module in names:
        rows = table[(table["module"] == module) & (table["matrix"] == "merged")]
        truth = torch.linalg.svdvals(merged.get_submodule(module).weight.detach())[:8].numpy()
        assert rows["singular_values"].iloc[0] == pytest.approx(truth, rel=1e-5)


class Square(nn.Module):
    """A Conv1D of unknown make: a square layer whose weight may be stored either way."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("name", "flag", "known"),
    [("q_proj", False, True), ("c_proj", False, False), ("q_proj", True, False)],
)
def test_a_square_weight_that_may_be_stored_either_way_is_left_out(tmp_path, name, flag, known):
    base = Square(name)
    stored = {name: {"weight": base.get_submodule(name).weight.detach().clone()}}
    folder = write_base(tmp_path / "base", stored, model_type="home-made")
    adapt(base, LoraConfig(r=2, target_modules=[name])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": flag}))
    table = compute(Run(tmp_path / "adapter"), base=folder)
    assert set(table["matrix"]) == ({"base", "merged", "update"} if known else {"update"})
    assert table["remark"].str.contains("does not tell").all() != known


def test_a_weight_that_is_stored_transposed_tells_of_its_square_neighbors(tmp_path):
    base = Square("square")
    base.wide = nn.Linear(8, 12)
    stored = {
        name: {"weight": weight_matrix(layer.weight.detach(), fan_in_fan_out=True)}
        for name, layer in base.named_children()
    }
    folder = write_base(tmp_path / "base", stored)
    adapt(base, LoraConfig(r=2, target_modules=["square", "wide"])).save_pretrained(tmp_path / "a")
    table = compute(Run(tmp_path / "a"), base=folder).set_index("module")
    assert set(table.loc[["square"], "matrix"]) == {"update"}
    assert set(table.loc[["wide"], "matrix"]) == {"base", "merged", "update"}


def test_a_tied_head_is_named(tmp_path):
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    base.save_pretrained(tmp_path / "base")
    assert "lm_head.weight" not in load_file(tmp_path / "base/model.safetensors")
    model = adapt(base, LoraConfig(r=2, target_modules=["c_attn", "lm_head"]))
    model.save_pretrained(tmp_path / "adapter")
    table = compute(Run(tmp_path / "adapter"), base=str(tmp_path / "base")).set_index("module")
    assert "no single weight lm_head.weight" in table.loc["lm_head", "remark"]
