"""AdaLoRA's ranks are allocated in training, and recorded."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from analyses import effective_rank
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train

pytestmark = pytest.mark.filterwarnings("ignore:AdaLoRA has no rank cores")

STEPS, FIRST, LAST = 20, 4, 12


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        method="adalora",
        rank=2,
        initial_rank=5,
        allocation_start=FIRST / STEPS,
        allocation_end=LAST / STEPS,
        train_size=32,
        eval_size=8,
        steps=STEPS,
        batch_size=4,
        learning_rate=1e-2,
        snapshots="every:1",
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adalora") / "run"
    model, trainer = build(config, folder)
    trainer.train()
    return model, Run(folder)


def budget(step: int, layers: int) -> int:
    """Equation 12 of the paper, in whole directions."""
    if step <= FIRST:
        return 5 * layers
    if step > LAST:
        return 2 * layers
    left = 1 - (step - FIRST) / (LAST - FIRST)
    return int(2 * layers + (5 - 2) * layers * left**3)


def test_the_ranks_of_all_layers_follow_the_papers_budget(trained):
    _, run = trained
    ranks = pd.read_parquet(run.path / "ranks.parquet")
    layers = run.modules["module"].nunique()
    assert set(ranks["module"]) == set(run.modules["module"])
    total = ranks.groupby("step")["rank"].sum()
    assert total.to_dict() == {step: budget(step, layers) for step in range(1, STEPS + 1)}
    last = ranks[ranks["step"] == STEPS].set_index("module")["rank"]
    assert last.nunique() > 1  # handed out by importance, not evenly


def test_a_snapshot_has_the_allocated_directions_and_is_the_trained_model(trained, base):
    model, run = trained
    ranks = pd.read_parquet(run.path / "ranks.parquet").set_index(["step", "module"])["rank"]
    for step in (8, STEPS):
        for module in run.modules["module"]:
            factors = run.factors(step, module)
            assert factors.rank == 5
            assert int((factors.A != 0).any(1).sum()) == ranks[step, module]
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(original, run.path / f"snapshots/step-{STEPS:06d}")
    tokens = torch.arange(1, 25).view(2, 12)
    with torch.no_grad():
        expected, found = (m.eval()(input_ids=tokens).logits for m in (model, reloaded))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-3)
    table = effective_rank.compute(run, steps=[STEPS], measures=["numerical"])
    of_updates = table[table["matrix"] == "update"].set_index("module")["value"]
    assert of_updates.to_dict() == {m: ranks[STEPS, m] for m in run.modules["module"]}


def test_the_module_table_is_that_of_the_saved_adapter(trained):
    _, run = trained
    saved = run.snapshots[0].modules.set_index("module")
    for row in run.modules.itertuples():
        assert (row.m, row.n, row.r) == tuple(saved.loc[row.module, ["m", "n", "r"]])
        assert row.scaling == pytest.approx(saved.loc[row.module, "scaling"])


def test_a_peft_configuration_of_adalora_is_allocated_by_its_own_schedule(config, tmp_path):
    file = tmp_path / "adalora.yaml"
    file.write_text(
        "peft_type: ADALORA\ninit_r: 3\ntarget_r: 1\ntinit: 1\ntfinal: 1\ntotal_step: 4\n"
    )
    mine = dataclasses.replace(
        config, method="lora", initial_rank=None, peft_config=str(file), steps=4
    )
    train(mine, tmp_path / "run")
    ranks = pd.read_parquet(tmp_path / "run/ranks.parquet").groupby("step")["rank"].mean()
    assert ranks.iloc[0] == 3 and ranks.iloc[-1] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial_rank": 2}, "above `rank`, 2"),
        ({"rank_mask": True}, "omit `rank_mask`"),
        ({"allocation_end": 0.1}, "ascending order"),
        ({"method": "lora"}, "belongs to `method` adalora"),
    ],
)
def test_settings_that_do_not_go_with_adalora_are_refused(config, fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"checkpoint_every": 2}, "cannot be continued"), ({"steps": 1}, "train longer")],
)
def test_runs_that_adalora_cannot_make_are_refused(config, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, **fields), tmp_path / "run")
