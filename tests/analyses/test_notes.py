"""What a table does not cover is printed, and kept with the table and in NAME.json."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from tests.analyses.test_command import assert_one_sentence
from tests.runs.test_left_out import pair, write


@pytest.fixture
def partly(tmp_path):
    """Write an adapter of which 16 of 128 parameters can be analyzed, in a Trainer's folder."""
    stacks = {}
    for layer in range(4):
        stacks |= pair(f"base_model.model.layers.{layer}.mlp.experts", r=4)  # of 2 experts: 32
    tensors = pair("base_model.model.layers.0.q_proj") | stacks
    folder = tmp_path / "trainer"
    targets = {"target_parameters": ["mlp.experts.down_proj"]}
    write(folder / "checkpoint-1", tensors, **targets)
    write(folder, tensors, **targets)
    (write(folder / "checkpoint-2", tensors) / "adapter_model.safetensors").unlink()
    return folder


EXPECTED = [
    "the adapter at the root of trainer is that of checkpoint-1: the final one",
    "4 modules: layers.0.mlp.experts, layers.1.mlp.experts, layers.2.mlp.experts and 1 more; "
    "128 parameters)",
    "(1 checkpoint: checkpoint-2)",
    "analyzed: 16 of 144 parameters of the adapter (11.1%)",
]


def test_left_out_modules_and_checkpoints_are_named_everywhere(command, partly, tmp_path):
    found = command("effective_rank", "--run", partly, "--out", tmp_path, "--format", "svg")
    assert found.code == 0, found.err
    printed = [line for line in found.out.splitlines() if line.startswith("  note on trainer: ")]
    content = json.loads((tmp_path / "effective_rank.json").read_text())
    kept = pd.read_parquet(tmp_path / "effective_rank.parquet").attrs["notes"]
    for lines in (printed, content["runs"][0]["notes"], kept["trainer"]):
        assert len(lines) == len(EXPECTED)
        assert all(words in line for words, line in zip(EXPECTED, lines, strict=True)), lines
    assert "a stack of 2 expert matrices" in printed[1]


def test_a_run_that_is_wholly_covered_has_no_notes(command, run, tmp_path):
    found = command("frame_drift", "--run", run.path, "--out", tmp_path, "--format", "svg")
    assert found.code == 0 and "note on" not in found.out


def test_claims_and_mask_theory_say_it_too(command, partly, tmp_path):
    for name in ("claims", "mask_theory"):
        found = command(name, "--run", partly, "--out", tmp_path)
        assert found.code == 0, found.err
        assert "analyzed: 16 of 144 parameters" in found.out


def test_where_nothing_is_left_the_reason_is_given(command, tmp_path):
    empty = {key: torch.zeros(0) for key in pair()}
    adapter = write(tmp_path / "adapter", empty)
    for name in ("effective_rank", "merged_spectra", "grassmann"):
        found = command(name, "--run", adapter, *["--steps", "0,1"] * (name == "grassmann"))
        assert_one_sentence(found, adapter, "its tensors are empty: sharded weights")
    write(tmp_path / "trainer/checkpoint-1", empty)
    found = command("effective_rank", "--run", tmp_path / "trainer")
    assert_one_sentence(found, "checkpoint-1", "its tensors are empty")
