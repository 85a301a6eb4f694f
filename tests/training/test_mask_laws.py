"""Every law of gates trained on the pocket base by one command, and read back."""

from __future__ import annotations

import json
import sys
from typing import get_args, get_type_hints
from unittest import mock

import numpy as np
import pytest
import torch

from analyses import mask_theory
from subspace_lab import train
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import LAWS
from subspace_lab.training.config import TrainConfig, filled_in

SMALL = [
    "--train_size=32", "--eval_size=8", "--steps=4", "--batch_size=4", "--accumulation=2",
    "--targets=[q_proj]", "--rank=8", "--lora_dropout=0", "--checkpoint_every=2",
]  # fmt: skip
PRESETS = {
    "step": "bernoulli", "exact-k": "exact-k", "antithetic": "antithetic", "two": "two",
    "blocks": "blocks", "dylora": "prefix", "matryoshka": "fixed", "gaussian": "gaussian",
    "haar": "haar",
}  # fmt: skip


def run_command(folder, *arguments):
    command = ["train", *SMALL, *map(str, arguments), f"--out={folder}"]
    with mock.patch.object(sys, "argv", command):
        train.main()
    return Run(folder)


def test_every_law_has_a_preset():
    names = get_args(get_type_hints(TrainConfig)["sampling"])
    assert set(PRESETS.values()) == set(LAWS) == set(names)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_law_is_trained_recorded_and_read_back(preset, tmp_path):
    run = run_command(tmp_path / "run", f"--config={preset}", "--mask_seed=9")
    law = run.mask_law
    assert (law.sampling, law.seed, run.finished) == (PRESETS[preset], 9, True)
    assert run.mask_steps == ([1, 2, 3, 4] if law.binary else [])
    assert run.steps_without_mask == []
    observed = 0
    for seen in run.gates:
        for step, gates in zip(seen.steps.tolist(), seen.gates, strict=True):
            if law.diagonal:
                expected = torch.from_numpy(run.step_gates(step)[seen.module]).float()
                known = ~gates.isnan()
                difference = (gates - expected)[known].abs()
                assert difference.median() < 1e-4
                observed += int(known.sum())
    assert observed or not law.diagonal
    table = mask_theory.compute(run)
    assert table["agrees"].fillna(True).all(), table[~table["agrees"].fillna(True)]
    covered = table[table["kind"] != "not testable"]["prediction"].tolist()
    assert ("masks are the law's function" in covered) == law.binary
    assert ("overlap of next masks, mean" in covered) == (law.binary and not law.dependence)


def test_a_schedule_and_a_pattern_from_the_command_line(tmp_path):
    run = run_command(
        tmp_path / "run",
        "--config=step",
        "--keep_prob_schedule=early",
        '--keep_prob_pattern={"layers.0.self_attn.q_proj": 0.25}',
        "--dwell=2",
        "--shared_mask=true",
        "--rescale=none",
    )
    first, *others = (run.masks(module)[1] for module in run.modules["module"])
    assert all((masks[2:] == 1).all() for masks in [first, *others])  # half of 4 steps
    assert all((masks[0] == masks[1]).all() for masks in [first, *others])
    assert all((masks[:2] >= first[:2]).all() for masks in others)  # the same numbers below q
    assert set(np.concatenate(list(run.step_gates(1).values()))) == {0.0, 1.0}
    assert mask_theory.compute(run)["agrees"].fillna(True).all()


def test_a_schedule_needs_its_steps():
    with pytest.raises(UserError, match="needs `steps` or `schedule_steps`"):
        TrainConfig(method="droplora", keep_prob_schedule="linear", epochs=2)
    early = TrainConfig(method="droplora", keep_prob_schedule="early", steps=9)
    assert early.mask_law().schedule_steps == 4
    linear = TrainConfig(method="droplora", keep_prob_schedule="linear", steps=9)
    assert linear.mask_law().schedule_steps == 9


def test_settings_of_another_law_are_refused():
    with pytest.raises(UserError, match="no setting block_size"):
        TrainConfig(method="droplora", block_size=2)
    TrainConfig(method="lora", block_size=2)  # means nothing there


@pytest.mark.parametrize("seed", ["init_seed", "data_seed", "mask_seed", "noise_seed"])
def test_a_seed_changes_its_own_source_only(seed, tmp_path):
    noisy = ["--config=step", "--label_noise=0.5"]
    plain = run_command(tmp_path / "plain", *noisy)
    other = run_command(tmp_path / "other", *noisy, f"--{seed}=1")
    split = plain.config["train_split"]
    hashes = [run.description["provenance"]["data_hashes"][split] for run in (plain, other)]
    module = plain.modules["module"][0]
    same = {
        "init_seed": np.array_equal(*(run.core(0, module).row.R for run in (plain, other))),
        "mask_seed": np.array_equal(plain.masks(module)[1], other.masks(module)[1]),
    }
    assert same == {name: name != seed for name in same}
    assert (hashes[0] == hashes[1]) == (seed in same)
    assert plain.metrics["loss"].iloc[1:].tolist() != other.metrics["loss"].iloc[1:].tolist()


def test_records_of_an_older_version_are_those_of_the_defaults(tmp_path):
    config = TrainConfig(method="droplora", rescale="none").to_dict()
    new = {
        "block_size", "prefix_geometric", "nested_ranks", "dwell", "keep_prob_schedule",
        "schedule_steps", "keep_prob_pattern", "shared_mask", "init_seed", "data_seed",
        "mask_seed", "noise_seed", "log_every", "report_to", "adam_epsilon",
        "training_loss",
    }  # fmt: skip
    old = {name: value for name, value in config.items() if name not in new} | {"rescale": False}
    assert filled_in(json.loads(json.dumps(old))) == config
