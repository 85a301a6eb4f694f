"""The presets say what the paper says, and the parameter counts are the paper's."""

from __future__ import annotations

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from subspace_lab import tasks
from subspace_lab.adapters.methods import lora_config
from subspace_lab.errors import UserError
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import CONFIGS, TrainConfig, find_preset, presets

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


def read(*names: str, **fields: object) -> TrainConfig:
    arguments = [f"--config={name}" for name in names]
    arguments += [f"--{name}={value}" for name, value in fields.items()]
    return TrainConfig(**parse(training_parser(""), arguments))


@pytest.mark.parametrize(("model", "family", "method"), PUBLISHED)
def test_parameter_counts_are_the_papers(model, family, method):
    config = read(f"paper/{model}/{family}", f"methods/{method}")
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


@pytest.mark.parametrize("model", LLAMA)
@pytest.mark.parametrize("family", ["commonsense", "math", "code", "conversation"])
def test_paper_presets_hold_table_7(model, family):
    config = read(f"paper/{model}/{family}")
    rank = 64 if family == "math" else 32
    assert (config.rank, config.scaling_alpha) == (rank, 2 * rank)
    for method, alpha in {"dora": 2 * rank, "pissa": rank, "milora": rank}.items():
        changed = read(f"paper/{model}/{family}", f"methods/{method}")
        assert (changed.method, changed.scaling_alpha) == (method, alpha)
    assert config.epochs == (1 if family == "math" else 3)
    assert (config.lora_dropout, config.learning_rate, config.lr_schedule) == (0.05, 3e-4, "linear")
    assert (config.global_batch, config.warmup_steps, config.weight_decay) == (128, 100, 0.1)
    assert config.targets == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert config.optimizer == "adamw"
    assert config.steps == 0


def test_every_preset_is_valid_and_names_a_task():
    for name in presets():
        config = read(name)
        assert config.task in tasks.names(), name


def test_masks_and_methods_combine():
    config = read("paper/llama2-7b/code", "paper-code", keep_prob=0.7)
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
    assert find_preset("pissa") == str(CONFIGS / "methods" / "pissa.yaml")
    with pytest.raises(UserError, match="no preset or file 'commonsense'"):  # three of that name
        find_preset("commonsense")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "full", "rank_mask": True}, "method full has no adapter"),
        ({"method": "full", "base_dtype": "bf16"}, "in fp32"),
        ({"method": "lora", "rank_mask": True}, "is method droplora"),
        ({"method": "lora", "snapshot_rank": 4}, "belongs to method full"),
        ({"global_batch": 8, "accumulation": 2}, "give one of the two"),
        ({"train_split": "train+validation", "eval_split": "validation"}, "are trained on"),
        ({"global_batch": 0}, "global_batch must be at least 1"),
        ({"keep_prob": 0.0}, "keep_prob must lie in"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**fields)
