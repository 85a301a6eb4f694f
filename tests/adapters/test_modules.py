"""A wrapped model has the modules, masks and scalings of the model itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from tests.tiny import tiny_lora


def compiled_blocks(model: nn.Module) -> nn.Module:
    layers = model.base_model.model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")
    return model


def checkpointed_blocks(model: nn.Module) -> nn.Module:
    layers = model.base_model.model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)
    return model


@pytest.fixture
def process_group():
    distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        compiled_blocks,
        checkpointed_blocks,
        DistributedDataParallel,
        nn.DataParallel,
        lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compiled", "compiled blocks", "checkpointed blocks", "ddp", "dp", "compiled in ddp"],
)
def test_a_wrapped_model_has_the_same_names_scalings_and_masks(wrap, process_group):
    options = {"alpha_pattern": {"v_proj": 32}, "rank_pattern": {"v_proj": 8}}
    plain, wrapped = tiny_lora(**options), wrap(tiny_lora(**options))

    def described(model):
        return [(m.name, m.rank, m.scaling) for m in lora_modules(model)]

    assert described(wrapped) == described(plain)
    masks = [RankMask(0.5, seed=3).attach(model).masks(7) for model in (plain, wrapped)]
    assert masks[0].keys() == masks[1].keys()
    assert all(np.array_equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.{}.self_attn.{}",
        "_orig_mod.base_model.model.{}.self_attn.{}",
        "module.base_model.model.{}.self_attn.{}",
        "base_model.model.{}._fsdp_wrapped_module.self_attn.{}",
        "base_model.model.{}._checkpoint_wrapped_module.self_attn.{}._orig_mod",
    ],
)
def test_an_adapter_file_of_a_wrapped_model_has_the_same_names_and_patterns(key, tmp_path):
    layer = "model.layers.0"
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 16},
        "rank_pattern": {"v_proj": 2},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for projection, rank in (("q_proj", 4), ("v_proj", 2)):
        path = key.format(layer, projection)
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, 8)
        tensors[f"{path}.lora_B.weight"] = torch.randn(8, rank)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    table = AdapterFolder(tmp_path).modules
    assert [tuple(row) for row in table[["module", "r", "scaling"]].to_numpy()] == [
        (f"{layer}.self_attn.q_proj", 4, 4.0),
        (f"{layer}.self_attn.v_proj", 2, 4.0),
    ]
