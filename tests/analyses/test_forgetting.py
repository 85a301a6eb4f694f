"""Losses before and after equal evaluations by hand; intruders are scaled as dense algebra says."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer

from analyses import forgetting
from analyses.forgetting import KEPT, intruders_kept
from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.likelihood import response_loss
from subspace_lab.evaluation.trained_model import evaluation_examples, load_trained
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.analyses.documented import documented


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Give a run at a rate so high that it forgets."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(
        method="lora", rank=4, steps=6, train_size=48, eval_size=8, test_size=8, task="flip",
        learning_rate=3e-2, cores="never",
    )  # fmt: skip
    train(config, out)
    return Run(out)


def test_losses_and_their_changes(run):
    table = forgetting.compute(run, examples=12)
    assert set(table.columns) == documented("forgetting")
    trained = load_trained(run)
    texts = {
        "general text": tasks.load("pocket_pretraining", "test", size=12),
        "own task": evaluation_examples(run, split="test", size=12),
    }
    for of, examples in texts.items():
        rows = table[table["of"] == of]
        after = response_loss(trained.model, trained.tokenizer, examples).per_token
        with trained.model.disable_adapter():
            before = response_loss(trained.model, trained.tokenizer, examples).per_token
        with intruders_kept(trained.model, 0.0):
            without = response_loss(trained.model, trained.tokenizer, examples).per_token
        kept = rows[rows["model"] == "trained"].set_index("kept")
        assert rows[rows["model"] == "base"]["loss"].iloc[0] == pytest.approx(before, rel=1e-5)
        assert kept["loss"][1.0] == pytest.approx(after, rel=1e-5)
        assert kept["difference"][1.0] == pytest.approx(after - before, rel=1e-4)
        assert kept["loss"][0.0] == pytest.approx(without, rel=1e-5) != pytest.approx(after)
        assert set(kept.index) == set(KEPT)
    assert "without intruder dimensions" in " ".join(forgetting.summarize(table).values())


def test_intruders_are_scaled_in_the_merged_weight_and_the_adapter_is_restored(run):
    model = load_trained(run).model
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    trained = [layer.get_delta_weight("default").clone() for layer in layers]
    changed = 0
    with intruders_kept(model, 0.25):
        for layer, update in zip(layers, trained, strict=True):
            W = layer.get_base_layer().weight.data.double()
            U, S, V = torch.linalg.svd(W + update.double(), full_matrices=False)
            likeness = (U.T @ torch.linalg.svd(W, full_matrices=False)[0]).abs().amax(1)
            intruders = [i for i in range(10) if likeness[i] < 0.5]
            changed += bool(intruders)
            wanted = update.double() - 0.75 * (U[:, intruders] * S[intruders]) @ V[intruders]
            best = torch.linalg.svd(wanted, full_matrices=False)
            rank = layer.r["default"]
            closest = (best[0][:, :rank] * best[1][:rank]) @ best[2][:rank]
            reduced = layer.get_delta_weight("reduced").double()
            torch.testing.assert_close(reduced, closest, atol=1e-4, rtol=1e-3)
    assert changed
    assert model.active_adapters == ["default"] and set(model.peft_config) == {"default"}
    for layer, update in zip(layers, trained, strict=True):
        assert torch.equal(layer.get_delta_weight("default"), update)


def test_what_it_refuses(run):
    with pytest.raises(UserError, match="whole models"):
        forgetting.compute(run, modules=["q_proj"])
    with pytest.raises(UserError, match="no task 'wiki'"):
        forgetting.compute(run, text="wiki")
    with pytest.raises(UserError, match="at least 1"):
        forgetting.compute(run, examples=0)


def test_figure_shows_a_run_with_its_interval_and_seeds_with_theirs():
    rows = [
        (f"seed {seed}", 6, "trained", kept, "general text", kept + seed, 0.0, 9.0, 4, "fp32")
        for seed in range(2)
        for kept in KEPT
    ]
    columns = ["run", "step", "model", "kept", "of", "difference", "difference_low"]
    table = pd.DataFrame(rows, columns=[*columns, "difference_high", "examples", "dtype"])
    plot = forgetting.ANALYSIS.plots["forgetting"]
    alone = plot.shown(table)
    assert len(alone) == 10 and set(alone["low"]) == {0.0} and set(alone["high"]) == {9.0}
    together = plot.shown(table.assign(configuration="both")).set_index("kept")
    assert together["value"].to_dict() == {kept: kept + 0.5 for kept in KEPT}
    assert together.loc[1.0, "high"] - 1.5 == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert len(plot(table).axes) == 1
