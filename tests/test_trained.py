"""A run's adapter on its base: the right model or a refusal, whatever its tensors are named."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.trained import load_trained
from tests.training.conftest import make_base

WEIGHTS = "adapter_model.safetensors"
TARGETS = ["q_proj", "v_proj", "down_proj"]
MODULES = 2 * len(TARGETS)  # of two layers


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def save(base: Path, tmp_path: Path) -> Callable[[peft.PeftConfig], tuple[Path, torch.Tensor]]:
    """Save an adapter with random weights; give its folder and what the model answers."""

    def make(config: peft.PeftConfig) -> tuple[Path, torch.Tensor]:
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", answers(model)

    return make


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(1, 25).view(2, 12)).logits


def rename(folder: Path, new_name: Callable[[str], str | None]) -> list[str]:
    """Rename the tensors of an adapter, or drop them (None); return the names that are left."""
    named = {new_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    named.pop(None, None)
    save_file(named, folder / WEIGHTS)
    return list(named)


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=TARGETS, **options)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("^", ""),  # as PEFT saves it
        ("^", "_orig_mod."),
        ("^", "module._orig_mod."),
        ("base_model.model.", "base_model.model._orig_mod."),
        (r"(layers\.\d)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        ("q_proj", "q_proj._orig_mod"),
    ],
)
def test_names_of_a_wrapped_model_are_those_of_the_model(save, base, pattern, replacement):
    folder, expected = save(lora())
    rename(folder, lambda name: re.sub(pattern, replacement, name))
    found = answers(load_trained(Run(folder), base=str(base)).model)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def without_module(name: str) -> Callable[[str], str | None]:
    return lambda key: None if name in key else key


MISFITS = {
    "another model": (lambda n: n.replace("model.layers", "model.language_model.layers"), 0, 12),
    "a wrapper in the middle of a name": (
        lambda n: n.replace("layers", "my_orig_mod.layers"),
        0,
        12,
    ),
    "an adapter's name": (lambda n: n.replace(".weight", ".mine.weight"), 0, 12),
    "one projection by another name": (lambda n: n.replace("v_proj", "value"), 4, 4),
    "one layer of another base": (lambda n: n.replace("layers.1", "layers.7"), 3, 6),
    "one module missing": (without_module("layers.1.mlp.down_proj"), 5, 0),
    "one factor missing": (without_module("layers.0.self_attn.q_proj.lora_B"), 5, 0),
    "a layer missing": (without_module("layers.0"), 3, 0),
}


@pytest.mark.parametrize(("new_name", "whole", "without_place"), MISFITS.values(), ids=MISFITS)
def test_an_adapter_that_does_not_fit_its_base_is_refused(
    save, base, new_name, whole, without_place
):
    folder, _ = save(lora())
    original = set(load_file(folder / WEIGHTS))
    left = rename(folder, new_name)
    with pytest.raises(UserError, match="does not fit") as refused:
        load_trained(Run(folder), base=str(base))
    text = str(refused.value)
    assert f"{whole} of the {MODULES} modules that it adapts have their weights" in text
    assert ("fit no module" in text) == (without_place > 0)
    if without_place:
        assert f"and {without_place} of its tensors fit no module" in text
        assert any(name in text for name in set(left) - original)
    else:
        assert "lora_" in text and text.count("is missing") == 1


def test_a_layer_that_the_base_lacks_is_refused(save, base):
    folder, _ = save(lora())
    tensors = load_file(folder / WEIGHTS)
    more = {name.replace("layers.1", "layers.2"): t.clone() for name, t in tensors.items()}
    save_file(more | tensors, folder / WEIGHTS)
    with pytest.raises(
        UserError, match=r"6 of the 6 modules .* and 6 of its tensors fit no module"
    ):
        load_trained(Run(folder), base=str(base))


def test_a_missing_module_to_save_is_refused(save, base):
    folder, _ = save(lora(modules_to_save=["lm_head"]))
    rename(folder, without_module("lm_head"))
    with pytest.raises(UserError, match=r"its file lacks .*lm_head"):
        load_trained(Run(folder), base=str(base))


def test_an_adapter_without_weights_is_refused(save, base):
    folder, _ = save(lora())
    run = Run(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no weights file"):
        load_trained(run, base=str(base))


KINDS = {
    "dora": lora(use_dora=True),
    "biases": lora(bias="lora_only"),
    "modules to save": lora(modules_to_save=["lm_head"]),
    "tokens": lora(trainable_token_indices=[1, 2]),
    "embeddings": peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj", "lm_head"]),
    "causal": lora(task_type="CAUSAL_LM"),
    "adalora": peft.AdaLoraConfig(init_r=4, target_modules=TARGETS, total_step=10),
    "loha": peft.LoHaConfig(r=2, target_modules=TARGETS),
    "ia3": peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "vblora": peft.VBLoRAConfig(r=4, target_modules=["q_proj"], vector_length=8, num_vectors=8),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
"""Kinds of adapters whose files differ from a LoRA's: shared tensors, full modules, other names."""


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_whatever_peft_saves_fits(save, base, tmp_path, config):
    folder, expected = save(config)
    (tmp_path / "run/snapshots").mkdir(parents=True)
    folder.rename(tmp_path / "run/snapshots/step-000003")
    (tmp_path / "run/run.json").write_text('{"status": "finished"}')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        found = answers(load_trained(Run(tmp_path / "run"), base=str(base)).model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not [warning for warning in said if "missing" in str(warning.message)]
