"""Runs of every objective: what is recorded of them, and what analyses make of it."""

from __future__ import annotations

import dataclasses

import pytest

from analyses import mask_theory
from analyses.kit.notes import notes
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.training.conftest import TINY, command

ARMS = {
    "masks-8": {"masks_per_step": 3},
    "noise-only": {"objective": "noise-only"},
    "penalty": {"objective": "penalty", "penalty_strength": 0.1},
    "second-order": {"objective": "second-order"},
}


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        base_dtype="fp32",
        method="droplora",
        rank=4,
        train_size=32,
        eval_size=8,
        steps=3,
        batch_size=4,
        accumulation=2,
        learning_rate=1e-2,
        checkpoint_every=2,
    )


@pytest.mark.parametrize("arm", ARMS)
def test_steps_of_an_arm_have_no_single_mask_and_theory_says_so(config, tmp_path, arm):
    train(dataclasses.replace(config, **ARMS[arm]), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.gates_chosen
    assert run.mask_law is not None
    assert run.mask_steps == run.steps_without_mask == []
    assert run.metrics["loss"].notna().sum() == 3
    table = mask_theory.compute(run)
    assert table["agrees"].all()
    assert set(table["tests"]) <= {"initialization", "identity", "trained model"}
    assert any("not testable" in note for note in notes(run))


def test_gates_of_the_terms_are_what_the_layers_did(config, tmp_path):
    train(dataclasses.replace(config, objective="noise-only"), tmp_path / "run")
    seen = [gates for gates in Run(tmp_path / "run").gates if (gates.steps == 1).sum() >= 3]
    assert seen
    for gates in seen:
        first, *masked = gates.gates[gates.steps == 1][:3]
        assert (first[~first.isnan()] - 1).abs().max() < 1e-3
        for passes in masked:
            kept = passes[~passes.isnan()].round(decimals=3)
            assert set(kept.unique().tolist()) <= {0.0, 2.0}


def test_one_mask_a_step_is_recorded_as_before(config, tmp_path):
    train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert not run.gates_chosen
    assert run.mask_steps == [1, 2, 3]


def test_token_masks_are_drawn_anew_in_every_pass(config, tmp_path):
    train(dataclasses.replace(config, granularity="token", masks_per_step=2), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert not run.gates_chosen
    seen = [gates for gates in run.gates if (gates.steps == 1).sum() >= 2]
    assert seen
    for gates in seen:
        first, second = gates.gates[gates.steps == 1][:2]
        assert (first != second)[~first.isnan() & ~second.isnan()].any()
    assert mask_theory.compute(run)["agrees"].all()


def test_second_order_is_refused_in_bf16(config, tmp_path):
    coarse = dataclasses.replace(config, objective="second-order", base_dtype="bf16")
    with pytest.raises(UserError, match="bf16 rounds away: set `base_dtype` to fp32"):
        build(coarse, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "lora", "objective": "penalty"}, "set `method` to droplora"),
        ({"method": "lora", "masks_per_step": 2}, "set `method` to droplora"),
        ({"masks_per_step": 2, "compile": True}, "omit `compile`"),
        ({"masks_per_step": 2, "objective": "noise-only"}, "omit `objective`"),
        ({"masks_per_step": 0}, "`masks_per_step` must be at least 1"),
        ({"objective": "noise-only", "rescale": False}, "set `rescale` to true"),
        ({"objective": "noise-only", "penalty_strength": 1.0}, "belongs to `objective` penalty"),
        ({"objective": "penalty", "penalty_strength": 0.0}, "`penalty_strength` must be above 0"),
        ({"objective": "penalty", "sampling": "exact-k"}, "independent gates"),
        ({"objective": "second-order", "granularity": "token"}, "that of step masks"),
    ],
)
def test_objectives_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**({"method": "droplora"} | fields))


def test_an_arm_is_one_command(base, tmp_path):
    arguments = [*TINY, f"--base={base}", f"--out={tmp_path / 'run'}", "--config=noise-only"]
    result = command("subspace_lab.train", *arguments, "--test_size=4")
    assert result.returncode == 0, result.stderr
    run = Run(tmp_path / "run")
    assert run.config["objective"] == "noise-only"
    assert run.metrics["test_response_loss"].notna().any()
    refused = command("subspace_lab.train", *arguments, "--rescale=false")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
