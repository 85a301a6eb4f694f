"""The presets say what the paper says, and the parameter counts are the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from subspace_lab import models, tasks
from subspace_lab.adapters.methods import lora_config
from subspace_lab.errors import UserError
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import CONFIGS, find_preset, presets

LLAMA = {
    "llama2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "llama3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
HUB = {"llama2-7b": "meta-llama/Llama-2-7b-hf", "llama3-8b": "meta-llama/Meta-Llama-3-8B"}
# Table 1 (commonsense) and Table 2 (math), in millions.
PUBLISHED = {
    ("llama2-7b", "commonsense", "lora"): 56.10,
    ("llama2-7b", "commonsense", "dora"): 56.98,
    ("llama2-7b", "math", "lora"): 112.20,
    ("llama2-7b", "math", "dora"): 113.07,
    ("llama3-8b", "commonsense", "lora"): 56.62,
    ("llama3-8b", "commonsense", "dora"): 57.41,
    ("llama3-8b", "math", "lora"): 113.25,
    ("llama3-8b", "math", "dora"): 114.03,
}
# Table 7: what differs between the tasks, and what does not.
TABLE_7 = {
    "commonsense": {"task": "commonsense_170k", "rank": 32, "epochs": 3},
    "math": {"task": "metamathqa", "rank": 64, "epochs": 1},
    "code": {"task": "codefeedback", "rank": 32, "epochs": 3},
    "conversation": {"task": "wizardlm", "rank": 32, "epochs": 3},
}
ALL_TASKS: dict[str, Any] = {
    "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    "lora_dropout": 0.05,
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "lr_schedule": "linear",
    "global_batch": 128,
    "warmup_steps": 100,
}
# What the paper says nothing of, or not in this table.
CHOSEN: dict[str, Any] = {
    "base_dtype": "bf16",
    "train_split": "train+validation",
    "eval_split": "none",
    "max_length": 2048,
    "drop_long_rows": True,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "batch_size": 8,
    "gradient_checkpointing": True,
    "seed": 42,
    "cores": "light",
    "checkpoint_every": 200,
}
CHOSEN_FOR = {"commonsense": {"max_length": 512, "drop_long_rows": False}}
SMALL: dict[str, Any] = {
    "base": "smollm2",
    "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    "rank": 8,
    "lora_dropout": 0.05,
    "train_size": 4096,
    "eval_size": 256,
    "max_length": 1024,
    "drop_long_rows": True,
    "epochs": 1,
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "weight_decay": 0.1,
    "global_batch": 16,
    "batch_size": 8,
    "cores": "full",
    "snapshots": "every:100",
    "checkpoint_every": 100,
}


def read(*names: str, **fields: object) -> TrainConfig:
    arguments = [f"--config={name}" for name in names]
    arguments += [f"--{name}={value}" for name, value in fields.items()]
    return TrainConfig(**parse(training_parser(""), arguments))


@pytest.mark.parametrize(("model", "family", "method"), PUBLISHED)
def test_parameter_counts_are_the_papers(model, family, method):
    config = read(f"paper/{family}", f"models/{model}", f"methods/{method}")
    with torch.device("meta"):
        base = LlamaForCausalLM(LLAMA[model])
        adapted = get_peft_model(
            base,
            lora_config(
                method,
                rank=config.rank,
                alpha=config.scaling_alpha,
                targets=config.targets,
                lora_dropout=config.lora_dropout,
            ),
            low_cpu_mem_usage=True,
        )
    millions = adapted.get_nb_trainable_parameters()[0] / 1e6
    assert round(millions, 2) == PUBLISHED[model, family, method]


@pytest.mark.parametrize("model", HUB)
@pytest.mark.parametrize("family", TABLE_7)
def test_paper_presets_hold_table_7(model, family):
    recipe = f"paper/{family}"
    fields = CHOSEN | CHOSEN_FOR.get(family, {}) | ALL_TASKS | TABLE_7[family]
    assert read(recipe, f"models/{model}") == TrainConfig(base=HUB[model], **fields)
    rank = TABLE_7[family]["rank"]
    for method, alpha in {"lora": 2, "dora": 2, "paper-code": 2, "pissa": 1, "milora": 1}.items():
        assert read(recipe, f"models/{model}", method).scaling_alpha == alpha * rank


@pytest.mark.parametrize("family", TABLE_7)
def test_small_scale_overrides_the_papers_sizes(family):
    config = read(f"paper/{family}", "smollm2")
    assert config == TrainConfig(task=str(TABLE_7[family]["task"]), **SMALL)


def test_every_preset_is_valid_and_names_a_task():
    for name in presets():
        config = read(name)
        assert config.task in tasks.names(), name


def test_masks_and_methods_combine():
    config = read("paper/code", "paper-code", keep_prob=0.7)
    assert (config.method, config.granularity, config.keep_prob) == ("droplora", "token", 0.7)
    assert read("pocket", method="dora", rank_mask=True).masked


@pytest.mark.parametrize("name", ["single_gpu", "ddp", "cpu", "zero2", "fsdp"])
def test_accelerate_reads_its_configurations(name):
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    kind = {"single_gpu": "NO", "zero2": "DEEPSPEED", "fsdp": "FSDP"}.get(name, "MULTI_GPU")
    assert config.distributed_type == kind
    assert yaml.safe_load(path.read_text())["num_processes"] == config.num_processes


def test_presets_are_found_by_name_or_path(tmp_path):
    assert find_preset("pissa") == find_preset("methods/pissa") == CONFIGS / "methods/pissa.yaml"
    assert find_preset(str(CONFIGS / "demo.yaml")) == CONFIGS / "demo.yaml"
    with pytest.raises(
        UserError, match=r"no preset or file 'paper/llama2-7b/math'; .* paper/math,"
    ):
        find_preset("paper/llama2-7b/math")


@pytest.mark.parametrize("name", ["learning-rates", str(CONFIGS / "sweeps/learning-rates.yaml")])
def test_a_sweep_is_recognized(name, write):
    for preset in (name, write("mine", f"presets: [{name}]")):
        with pytest.raises(UserError, match=f"is a sweep, .* subspace_lab.sweep --config {name} "):
            read(preset)


@pytest.mark.parametrize(
    "typed",
    [
        ["--targets", "q_proj", "v_proj", "--seed", "3"],
        ["--seed=3", "--targets", "q_proj,v_proj"],
        ["--targets=q_proj,v_proj", "--seed", "3"],
        ["--targets", "q_proj,", "v_proj", "--seed=3"],
        ["--targets", "[q_proj,", "v_proj]", "--seed=3"],
        ["--seed=3", '--targets=["q_proj", "v_proj"]'],
        ["--targets", "down_proj", "--seed=3", "--targets", "q_proj", "v_proj"],
    ],
)
def test_lists_are_read_as_people_type_them(typed):
    config = TrainConfig(**parse(training_parser(""), typed))
    assert (config.targets, config.seed) == (["q_proj", "v_proj"], 3)


@pytest.mark.parametrize(
    ("typed", "ranks"), [(["2", "4", "8"], [2, 4, 8]), (["4"], [4]), (["null"], None)]
)
def test_lists_of_numbers_are_read_as_numbers(typed, ranks):
    values = parse(training_parser(""), ["--nested_ranks", *typed, "--config", "pocket"])
    assert values["nested_ranks"] == ranks


def test_a_list_without_words_is_refused():
    with pytest.raises(UserError, match="`targets` is empty"):
        TrainConfig(**parse(training_parser(""), ["--targets", "--seed=3"]))


def test_flag_and_preset_may_be_two_words_or_one():
    assert TrainConfig(**parse(training_parser(""), ["--config", "paper/math"])) == read(
        "paper/math"
    )


def test_short_names_are_unique(tmp_path, monkeypatch):
    for name in ("one/shared", "two/shared", "two/other", "sweeps/grid"):
        (tmp_path / name).with_suffix(".yaml").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".yaml").touch()
    monkeypatch.setattr("subspace_lab.training.presets.CONFIGS", tmp_path)
    assert set(presets()) == {"one/shared", "two/shared", "two/other", "other"}


@pytest.fixture
def write(tmp_path):
    """Write a preset file, and give its path."""

    def write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_own_fields_win_and_later_presets_win_over_earlier_ones(write):
    bottom = write("bottom", "{rank: 2, steps: 3, epochs: 4, seed: 5, cores: light}")
    middle = write("middle", f"{{presets: [{bottom}], steps: 6, epochs: 7, seed: 8}}")
    other = write("other", f"{{presets: {bottom}, epochs: 9, seed: 10}}")
    config = read(write("top", f"{{seed: 12, presets: [{middle}, {other}]}}"))
    # `other` comes later and stands for all of its fields, those of `bottom` included.
    assert (config.rank, config.steps, config.epochs, config.seed) == (2, 3, 9, 12)
    assert config.cores == "light"


def test_numbers_keep_their_values_on_the_way_through_presets(write):
    fields = "learning_rate: 1e-3\nmax_grad_norm: .inf\ncores: 1,2,5\nbase: 'on'\ntask: '10'\n"
    config = read(write("top", f"presets: [{write('bottom', fields)}]\nrank: 4\n"))
    assert (config.learning_rate, config.max_grad_norm) == (1e-3, float("inf"))
    assert (config.cores, config.base, config.task) == ("1,2,5", "on", "10")


def test_presets_that_build_on_themselves_are_refused(write, tmp_path):
    first = write("first", f"presets: [{tmp_path / 'second.yaml'}]")
    second = write("second", f"presets: [pocket, {first}]")
    with pytest.raises(UserError, match=rf"builds on itself \({first} -> {second} -> {first}\)"):
        read(first)


@pytest.mark.parametrize(
    ("bottom", "message"),
    [
        ("presets: [nowhere]", "no preset or file 'nowhere' .named in .*bottom.yaml.; the presets"),
        ("keep_probb: 1", "bottom.yaml has the unknown key 'keep_probb', did you mean 'keep_prob'"),
        ("config: pocket", "bottom.yaml has the unknown key 'config'"),
        ("- rank", "bottom.yaml must hold `field: value` pairs"),
        ("rank: [", "bottom.yaml is not a YAML file"),
    ],
)
def test_a_wrong_file_below_a_preset_is_named(write, bottom, message):
    with pytest.raises(UserError, match=message):
        read(write("top", f"presets: [{write('bottom', bottom)}]"))


def test_old_runs_find_their_base_by_its_old_name(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_dequantized_smollm2", lambda: tmp_path)
    assert models.find_base("bundled") == models.find_base("smollm2")
    assert models.find_base("smollm2").location == str(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "full", "rank_mask": True}, "`method` full has no adapter"),
        ({"method": "full", "base_dtype": "bf16"}, "in fp32"),
        ({"method": "lora", "rank_mask": True}, "use `method` droplora"),
        ({"method": "lora", "snapshot_rank": 4}, "belongs to `method` full"),
        ({"global_batch": 8, "accumulation": 2}, "set only one of the two"),
        (
            {"train_split": "train+validation", "eval_split": "validation"},
            "are part of the training set",
        ),
        ({"global_batch": 0}, "`global_batch` must be at least 1"),
        ({"keep_prob": 0.0}, "`keep_prob` must lie in"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**fields)
