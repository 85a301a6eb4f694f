"""Adapters saved by PEFT itself, against the dense updates that PEFT computes from them."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from subspace_lab.errors import UserError
from subspace_lab.recording.factors import weight_matrix
from subspace_lab.recording.peft_folder import AdapterFolder, dora_whole_update

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]

ATTENTION_AND_MLP = ["q_proj", "v_proj", "up_proj", "down_proj"]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
            tie_word_embeddings=False,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8))


class Zoo(nn.Module):
    """One layer of every kind that LoRA adapts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)
        self.embedding = nn.Embedding(10, 4)
        self.conv1d = nn.Conv1d(3, 4, 3)
        self.conv2d = nn.Conv2d(3, 4, (2, 3))
        self.conv1x1 = nn.Conv2d(3, 4, 1)
        self.conv3d = nn.Conv3d(2, 4, 2)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.mha = nn.MultiheadAttention(4, 2)


def adapt(base, config):
    """Apply the adapter and give every tensor of it a random value, as if trained."""
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.uniform_(0.5, 2)
            elif "lora_" in name:
                parameter.normal_()
    return model.eval()


def adapted_layers(model):
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def product(factors):
    return factors.scaling * (factors.B @ factors.A)


def assert_near(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    difference = torch.linalg.vector_norm(found - expected)
    assert difference <= tolerance * torch.linalg.vector_norm(expected)


def assert_peft_agrees(folder, model, *, fan_in_fan_out=False, without=()):
    layers = adapted_layers(model)
    assert set(folder.modules["module"]) == layers.keys() - set(without)
    for row in folder.modules.itertuples():
        factors = folder.factors(row.module)
        delta = weight_matrix(
            layers[row.module].get_delta_weight("default").detach(),
            kind=row.kind,
            fan_in_fan_out=fan_in_fan_out,
        )
        assert delta.norm() > 0
        assert_near(product(factors), delta)
        assert (row.m, row.n, row.r) == (*delta.shape, factors.rank)
        assert row.scaling == factors.scaling


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
    monkeypatch.setattr("subspace_lab.recording.peft_files.dora._ROWS", 3)
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


def reason(folder, module):
    reasons = folder.skipped.set_index("module")["reason"]
    assert module in reasons.index
    return str(reasons[module])


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
        (["experts.stack"], "stack of expert matrices"),
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
