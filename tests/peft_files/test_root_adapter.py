"""The adapter that a Trainer leaves beside its checkpoints is the final one, and never hidden."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from subspace_lab import models
from subspace_lab.runs.run import Run
from subspace_lab.trained import load_trained
from tests.peft_files.test_adapter_folder_files import CONFIG, MODULE, write_adapter


@pytest.fixture
def trainer(tmp_path):
    """Give the output folder of a Trainer with checkpoints of the steps 9 and 10."""
    for step in (9, 10):
        write_adapter(tmp_path / f"checkpoint-{step}", value=float(step))
    return tmp_path


def write_state(folder, **fields):
    (folder / "trainer_state.json").write_text(json.dumps(fields))


def first_value(run):
    return float(run.factors(run.final_step, MODULE).A[0, 0])


def test_without_an_adapter_at_the_root_the_last_checkpoint_is_the_final_one(trainer):
    run = Run(trainer)
    assert list(run.snapshots) == [9, 10] and run.final_step == 10 and first_value(run) == 10
    assert run.snapshots.root is None


def test_a_copy_of_a_checkpoint_is_that_checkpoint(trainer):
    write_adapter(trainer, value=9.0)
    write_state(trainer, global_step=10)
    run = Run(trainer)
    assert list(run.snapshots) == [9, 10] and run.final_step == 9 and first_value(run) == 9
    assert run.adapter_folders[9] == trainer / "checkpoint-9"
    assert "is that of checkpoint-9" in run.snapshots.root.note


@pytest.mark.parametrize(
    ("root", "last", "step", "said"),
    [
        ({"global_step": 12}, {"max_steps": 20}, 12, "of step 12"),
        ({}, {"max_steps": 20}, 20, "taken to be of step 20, the last planned"),
        ({}, {"max_steps": 10}, 11, "its step is not recorded"),
        ({}, {}, 11, "its step is not recorded"),
        ({"global_step": 10}, {}, 11, "its step is not recorded"),  # not checkpoint-10's weights
    ],
)
def test_another_adapter_is_a_further_step(trainer, root, last, step, said):
    write_adapter(trainer, value=7.0)
    write_state(trainer, **root)
    write_state(trainer / "checkpoint-10", **last)
    run = Run(trainer)
    assert list(run.snapshots) == [9, 10, step] == run.steps
    assert run.final_step == step and first_value(run) == 7
    assert run.adapter_folders[step] == trainer
    assert said in run.snapshots.root.note


def test_the_same_weights_under_another_scaling_are_another_adapter(trainer):
    write_adapter(trainer, value=10.0, config=CONFIG | {"lora_alpha": 8})
    run = Run(trainer)
    assert run.final_step == 11
    assert run.factors(11, MODULE).scaling == 2 * run.factors(10, MODULE).scaling


def test_a_damaged_adapter_at_the_root_is_named(trainer):
    file = write_adapter(trainer) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    run = Run(trainer)
    assert list(run.snapshots) == [9, 10] and run.final_step == 11 and run.final_snapshot == 10
    (row,) = run.left_out.itertuples()
    assert row.kind == "checkpoint" and "adapter_model.safetensors cannot be read" in row.reason


def test_evaluation_takes_the_final_adapter(tmp_path):
    base = models.load_model(models.find_base("pocket"))
    model = get_peft_model(base, LoraConfig(r=1, target_modules=["layers.0.self_attn.q_proj"]))
    values = {3: 0.3, 6: 0.6}
    for step, value in values.items():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, value)
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    for file in (tmp_path / "checkpoint-3").iterdir():
        shutil.copy(file, tmp_path)
    trained = load_trained(Run(tmp_path), base="pocket")
    assert trained.step == 3
    loaded = dict(trained.model.named_parameters())
    (B,) = [parameter for name, parameter in loaded.items() if "lora_B" in name]
    assert B.float().mean().item() == pytest.approx(0.3, rel=1e-2)
