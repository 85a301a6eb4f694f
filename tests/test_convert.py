"""Adapters of other kinds as LoRAs: the whole update at full rank, what is missing below it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    PeftModel,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)

from subspace_lab.convert import convert
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from tests.tiny import TARGETS, batch, tiny_llama

CONFIGURATIONS = {
    "vera": VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "lokr": LoKrConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "randlora": RandLoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "miss": MissConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return folder


def saved(config, folder) -> PeftModel:
    """An adapter with random values, as if trained."""
    model = get_peft_model(tiny_llama(), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_at_full_rank_the_lora_is_the_adapter(tmp_path, base, kind):
    model = saved(CONFIGURATIONS[kind], tmp_path / "adapter")
    rank = 16 if kind in ("loha", "lokr") else 32
    missing = convert(tmp_path / "adapter", base=str(base), rank=rank, out=tmp_path / "lora")
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora")
    assert (logits(model) - logits(tiny_llama())).abs().max() > 1e-3
    torch.testing.assert_close(logits(reloaded), logits(model), atol=1e-4, rtol=1e-3)
    assert max(missing.values()) < 1e-5
    kept = 4 if kind == "miss" else rank  # MiSS is of low rank itself
    assert Run(tmp_path / "lora").modules["r"].unique().tolist() == [kept]


def test_below_it_what_is_missing_is_named(tmp_path, base):
    model = saved(CONFIGURATIONS["loha"], tmp_path / "adapter")
    missing = convert(tmp_path / "adapter", base=str(base), rank=2, out=tmp_path / "lora")
    assert json.loads((tmp_path / "lora/truncation.json").read_text()) == missing
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(f"base_model.model.{name}")
    sigma = torch.linalg.svdvals(layer.get_delta_weight("default").detach())
    expected = float((sigma[2:].square().sum() / sigma.square().sum()).sqrt())
    assert missing[name] == pytest.approx(expected, rel=1e-4)
    assert missing[name] > 0.1


def test_an_adapter_without_an_update_of_weights_is_refused(tmp_path, base):
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    saved(config, tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be converted"):
        convert(tmp_path / "adapter", base=str(base), rank=2, out=tmp_path / "lora")


def test_a_rank_that_a_weight_does_not_have_is_refused(tmp_path, base):
    saved(CONFIGURATIONS["loha"], tmp_path / "adapter")
    with pytest.raises(UserError, match="larger than the weight shape"):
        convert(tmp_path / "adapter", base=str(base), rank=40, out=tmp_path / "lora")
