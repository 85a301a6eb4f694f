"""What an adapter holds besides low-rank updates: named with the reason, or refused by name."""

import json

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn

from subspace_lab.errors import UserError
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from tests.peft_files.peft_models import (
    IGNORE_PEFTS_WARNINGS,
    Zoo,
    adapt,
    assert_peft_agrees,
    llama,
    reason,
)

pytestmark = IGNORE_PEFTS_WARNINGS


def test_what_is_no_low_rank_update_is_named(tmp_path):
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        trainable_token_indices=[1, 2],
    )
    adapt(llama(), config).save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert "modules_to_save" in reason(folder, "lm_head")
    assert "trainable tokens" in reason(folder, "model.embed_tokens")
    assert len(folder.skipped) == 2
    assert len(folder.modules) == 2
    with pytest.raises(UserError, match=r"lm_head .* has no factors: weight is stored whole"):
        folder.factors("lm_head")


def test_the_stored_copy_of_an_adapted_embedding_is_no_update(tmp_path):
    model = adapt(llama(), LoraConfig(r=2, target_modules=["embed_tokens"]))
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model)
    assert "copy of the base weight" in reason(folder, "model.embed_tokens")


def test_trained_biases_are_named_beside_the_factors(tmp_path):
    model = adapt(
        Zoo(), LoraConfig(r=2, target_modules=["linear", "conv2d"], lora_bias=True, bias="all")
    )
    model.save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert_peft_agrees(folder, model)
    biases = folder.skipped[folder.skipped["module"] == "linear"]["reason"].tolist()
    assert sorted(text.split(":")[0] for text in biases) == ["a trained bias", "lora_bias"]
    assert "grouped" in set(folder.skipped["module"])


class Experts(nn.Module):
    """A stack of expert matrices, and two parameters that are plain matrices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.second = nn.Parameter(torch.randn(4, 6))
        self.stack = nn.Parameter(torch.randn(3, 4, 6))


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (["experts.stack"], "stack of 3 expert matrices"),
        (["experts.weight", "experts.second"], "several parameters"),
        (["weight", "experts.second"], "several parameters"),
    ],
)
def test_target_parameters_that_the_file_does_not_resolve_are_skipped(tmp_path, parameters, why):
    config = LoraConfig(r=2, target_modules=[], target_parameters=parameters)
    adapt(Mixture(), config).save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert folder.modules.empty
    assert folder.skipped["reason"].str.contains(why).all()
    assert set(folder.skipped["module"]) == {"experts"}


def test_a_single_matrix_parameter_is_read_with_its_own_patterns(tmp_path):
    config = LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=["experts.weight"],
        rank_pattern={"weight": 3},
        alpha_pattern={"experts.weight": 12},
    )
    model = adapt(Mixture(), config)
    model.save_pretrained(tmp_path)
    assert_peft_agrees(AdapterFolder(tmp_path), model)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"}, "invocation"),
        ({"kasa_config": {}}, "KaSA"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2}}, "BD-LoRA"),
    ],
)
def test_lora_variants_that_are_no_plain_product_are_skipped(tmp_path, options, why):
    adapt(llama(), LoraConfig(r=2, target_modules=["q_proj"], **options)).save_pretrained(tmp_path)
    folder = AdapterFolder(tmp_path)
    assert folder.modules.empty
    assert set(folder.skipped["module"]) == {
        f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)
    }
    assert folder.skipped["reason"].str.contains(why).all()


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"use_qalora": True}, "QA-LoRA"),
        ({"use_what_comes_next": True}, "use_what_comes_next=True is not known"),
        ({"r": 5}, "rank 2 in the file, 5 in the configuration"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
)
def test_a_configuration_that_the_tensors_contradict_is_not_believed(tmp_path, edit, why):
    adapt(llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    folder = AdapterFolder(tmp_path)
    assert folder.modules.empty
    assert folder.skipped["reason"].str.contains(why).all()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LoHaConfig(target_modules=["q_proj"]), "LOHA"),
        (LoKrConfig(target_modules=["q_proj"]), "LOKR"),
        (VeraConfig(target_modules=["q_proj"]), "VERA"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "IA3"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING"),
    ],
)
def test_other_methods_are_told_by_name(tmp_path, config, name):
    get_peft_model(llama(), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"of the type {name}, not LORA"):
        AdapterFolder(tmp_path)
