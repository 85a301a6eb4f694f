"""Whole runs with restarts, a frozen factor, and LoRA+."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from analyses.predictions.optimizer import optimizer_of
from peft import PeftModel
from transformers import AutoModelForCausalLM

from analyses import effective_rank
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.tiny import StopAfter


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        rank=4,
        train_size=32,
        eval_size=8,
        steps=6,
        batch_size=4,
        learning_rate=1e-2,
        snapshots="every:1",
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 25).view(2, 12)).logits


@pytest.mark.parametrize("method", ["lora", "droplora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_snapshot_holds_the_sum_over_restarts(config, base, tmp_path, method, use_rslora):
    wanted = dataclasses.replace(config, method=method, restart_every=2, use_rslora=use_rslora)
    model, trainer = build(wanted, tmp_path / "run")
    trainer.train()
    run = Run(tmp_path / "run")
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(original, run.path / "snapshots/step-000006")
    torch.testing.assert_close(logits(reloaded), logits(model), atol=5e-5, rtol=1e-3)
    module = run.modules["module"][0]
    assert [run.factors(step, module).rank for step in range(7)] == [4, 4, 4, 8, 8, 12, 12]
    factors = run.factors(6, module)
    update = factors.B.double() @ factors.A.double()
    assert torch.linalg.matrix_rank(update) > 4
    # Cores are those of the adapter since the last restart: B = 0 after steps 2 and 4.
    core = run.core(6, module)
    torch.testing.assert_close(
        core.singular_values(),
        torch.linalg.svdvals(factors.scaling * factors.B[:, :4].double() @ factors.A[:4].double())[
            :4
        ],
        atol=1e-9,
        rtol=1e-6,
    )
    assert not run.core(3, module).column.before("previous").any()
    table = effective_rank.compute(run, steps=[6], measures=["stable"])
    assert {"product"} <= set(table["matrix"]) and "restart" in "".join(table["remark"].unique())
    whole = effective_rank.compute(Run(run.path / "snapshots"), steps=[6], measures=["numerical"])
    assert whole.loc[whole["matrix"] == "update", "value"].max() > 4


def test_a_resumed_run_with_restarts_equals_the_uninterrupted_one(config, tmp_path):
    wanted = dataclasses.replace(config, restart_every=2, checkpoint_every=4, restart="keep_a")
    train(wanted, tmp_path / "whole")
    _, trainer = build(wanted, tmp_path / "cut")
    trainer.add_callback(StopAfter(5))
    trainer.train()
    description = json.loads((tmp_path / "cut/run.json").read_text())
    (tmp_path / "cut/run.json").write_text(json.dumps(description | {"status": "running"}))
    train(wanted, tmp_path / "cut", resume=True)
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    for module in whole.modules["module"]:
        mine, theirs = cut.factors(6, module), whole.factors(6, module)
        torch.testing.assert_close(mine.B @ mine.A, theirs.B @ theirs.A, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "droplora"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_a_frozen_factor_stays_where_it_was_drawn(config, tmp_path, side, method):
    train(dataclasses.replace(config, freeze=side, method=method), tmp_path / "run")
    run = Run(tmp_path / "run")
    for module in run.modules["module"]:
        first, last = run.factors(0, module), run.factors(6, module)
        assert not (first.B @ first.A).any()  # the model starts out as its base
        assert (last.B @ last.A).any()
        assert torch.equal(getattr(first, side), getattr(last, side))
        assert getattr(first, side).std() > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_lora_plus_gives_b_its_own_rate(config, tmp_path, optimizer):
    wanted = dataclasses.replace(
        config, lora_plus_ratio=8, lr_schedule="constant", optimizer=optimizer, weight_decay=0.01
    )
    model, trainer = build(wanted, tmp_path / "run")
    trainer.train()
    rates = {
        name: group["lr"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        for name, other in model.named_parameters()
        if other is parameter
    }
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {1e-2}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {8e-2}
    if optimizer == "adamw":  # the first step of AdamW has the length of the rate
        run = Run(tmp_path / "run")
        B = run.factors(1, run.modules["module"][0]).B
        torch.testing.assert_close(B.abs().median(), torch.tensor(8e-2), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "pissa", "restart_every": 2}, "goes with `method` lora and droplora"),
        ({"restart_every": 2, "reset_optimizer": "prune:2"}, "share in"),
        ({"restart_every": 2, "reset_optimizer": "some"}, "is not known"),
        ({"restart_every": 2, "freeze": "B"}, "which is frozen"),
        ({"method": "full", "freeze": "A"}, "has no adapter"),
        ({"freeze": "A", "lora_plus_ratio": 4.0}, "both factors"),
        ({"lora_plus_ratio": 0.0}, "above 0"),
        ({"restart_every": -1}, "at least 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **fields)


@pytest.mark.parametrize("fields", [{"freeze": "A"}, {"lora_plus_ratio": 4.0}])
def test_laws_of_the_optimizers_steps_are_not_tested_on_such_runs(config, tmp_path, fields):
    train(dataclasses.replace(config, **fields), tmp_path / "run")
    assert optimizer_of(Run(tmp_path / "run")) is None
