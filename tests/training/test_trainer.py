"""Whole tiny runs of every method, and what their folders hold."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from subspace_lab import models
from subspace_lab.errors import UserError
from subspace_lab.evaluation.trained_model import load_trained
from subspace_lab.runs.run import Run
from subspace_lab.training import examples
from subspace_lab.training.arguments import training_arguments
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.tiny import StopAfter


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        base_dtype="fp32",
        rank=4,
        train_size=32,
        eval_size=8,
        steps=3,
        batch_size=4,
        learning_rate=1e-2,
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 25).view(2, 12)).logits


@pytest.mark.filterwarnings("ignore:method full has no rank cores")
@pytest.mark.parametrize("method", ["lora", "droplora", "dora", "pissa", "milora", "full"])
def test_last_snapshot_is_the_trained_model_on_the_original_base(config, base, tmp_path, method):
    model, trainer = build(dataclasses.replace(config, method=method), tmp_path / "run")
    trainer.train()
    run = Run(tmp_path / "run")
    assert sorted(run.snapshots) == [0, 3]
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untrained = logits(original)
    reloaded = PeftModel.from_pretrained(original, tmp_path / "run/snapshots/step-000003")
    torch.testing.assert_close(logits(reloaded), logits(model), atol=5e-5, rtol=1e-3)
    assert (logits(model) - untrained).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_displacement_of_a_split_bases_core_is_the_true_update(config, tmp_path, method):
    train(dataclasses.replace(config, method=method), tmp_path / "run")
    run = Run(tmp_path / "run")
    for module in run.modules["module"]:
        converted = run.factors(3, module)
        update = converted.scaling * converted.B.double() @ converted.A.double()
        core = run.core(3, module)
        found = torch.linalg.svdvals(core.change("start"))
        truth = torch.linalg.svdvals(update)[: len(found)]
        torch.testing.assert_close(found[: len(truth)], truth, atol=1e-8, rtol=1e-6)
        assert core.norm() > 2 * core.change_norm("start")  # B A still holds the initial part


@pytest.mark.filterwarnings("ignore:method full has no rank cores")
def test_full_run_has_cores_of_its_snapshots(config, tmp_path):
    train(dataclasses.replace(config, method="full", snapshot_rank=5), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.steps == [0, 3]
    module = run.modules["module"][0]
    factors = run.factors(3, module)
    sigma = run.core(3, module).singular_values()
    torch.testing.assert_close(
        sigma, torch.linalg.svdvals(factors.B.double() @ factors.A.double())[:5]
    )
    assert run.description["schedules"]["cores"] == "never"
    missing = json.loads((tmp_path / "run/snapshots/step-000003/truncation.json").read_text())
    assert all(0 < value < 1 for value in missing.values())


def test_other_kinds_of_adapters_are_recorded_without_cores(config, tmp_path):
    file = tmp_path / "loha.yaml"
    file.write_text("peft_type: LOHA\nr: 2\n")
    with pytest.warns(UserWarning, match="only metrics and snapshots are recorded"):
        train(dataclasses.replace(config, peft_config=str(file)), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.metrics["loss"].notna().sum() == 3
    trained = load_trained(run)
    assert trained.step == 3
    assert trained.model.peft_config["default"].peft_type == "LOHA"
    with pytest.raises(UserError, match=r"no snapshot of step 2, only of \[0, 3\]"):
        load_trained(run, step=2)


def test_the_description_tells_what_a_peft_file_changed(config, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("r: 2\nlora_alpha: 6\ntarget_modules: [q_proj]\nlayers_to_transform: [1]\n")
    mine = dataclasses.replace(config, peft_config=str(file))
    train(mine, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.modules[["r", "scaling"]].values.tolist() == [[2, 3.0]]
    assert [run.config[name] for name in ("rank", "alpha", "targets")] == [2, 6, ["q_proj"]]
    assert run.config["peft_config"]["layers_to_transform"] == [1]
    file.write_text("r: 3\n")
    with pytest.raises(UserError, match=r"another configuration .* `rank` is 2 there and 3 here"):
        train(mine, tmp_path / "run", resume=True)


def test_an_unfinished_runs_adapter_is_named_by_its_step(config, tmp_path):
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/snapshots/step-000003")
    description = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(description | {"status": "running"}))
    with pytest.warns(UserWarning, match="run is not finished: this is its adapter of step 0"):
        assert load_trained(Run(tmp_path / "run")).step == 0
    with pytest.raises(
        UserError, match=r"cannot load the adapter .* onto pocket .*try another `step` or `base`"
    ):
        load_trained(Run(tmp_path / "run"), step=0, base="pocket")


def test_a_trained_model_goes_to_the_preferred_device(config, tmp_path, monkeypatch):
    train(config, tmp_path / "run")
    monkeypatch.setattr(models, "preferred_device", lambda: torch.device("meta"))
    parameters = load_trained(Run(tmp_path / "run")).model.parameters()
    assert {parameter.device.type for parameter in parameters} == {"meta"}


def test_rank_mask_goes_onto_dora(config, tmp_path):
    train(dataclasses.replace(config, method="dora", rank_mask=True), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.mask_law is not None
    assert run.mask_steps == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:method full has no rank cores")
@pytest.mark.parametrize("method", ["droplora", "pissa", "milora", "full"])
def test_resumed_run_equals_the_uninterrupted_one(config, tmp_path, method):
    wanted = dataclasses.replace(config, method=method, checkpoint_every=2, lora_dropout=0.1)
    train(wanted, tmp_path / "whole")
    _, trainer = build(wanted, tmp_path / "cut")
    trainer.args.max_steps = 3
    trainer.add_callback(StopAfter(2))
    trainer.train()
    description = json.loads((tmp_path / "cut/run.json").read_text())
    (tmp_path / "cut/run.json").write_text(json.dumps(description | {"status": "running"}))
    train(wanted, tmp_path / "cut", resume=True)
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    np.testing.assert_allclose(whole.metrics["loss"], cut.metrics["loss"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:method full has no rank cores")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_target_must_match(config, tmp_path, method):
    wrong = dataclasses.replace(
        config, method=method, targets=["q_proj", "qproj", "v_proj", "_proj"]
    )
    with pytest.raises(UserError, match=r"the targets (qproj, _proj|_proj, qproj) match no"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rank_above_both_sides_of_a_weight_is_named(config, tmp_path):
    high = dataclasses.replace(config, rank=17, targets=["q_proj", "v_proj"])
    with pytest.warns(UserWarning, match=r"in 2 of 4 modules, such as .*v_proj \(16 x 32\)"):
        train(high, tmp_path / "run")


def test_global_batch_is_made_of_whole_batches(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    wanted = dataclasses.replace(config, global_batch=12)
    assert training_arguments(wanted, tmp_path).gradient_accumulation_steps == 3
    with pytest.raises(UserError, match="not a multiple of `batch_size` 4 x 1 processes"):
        training_arguments(dataclasses.replace(config, global_batch=10), tmp_path)


def test_under_fsdp_only_what_can_be_read_is_recorded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="set `cores` to never and `checkpoint_every`"):
        train(config, tmp_path / "refused")
    with pytest.raises(UserError, match="method pissa cannot be recorded under FSDP"):
        train(dataclasses.replace(config, method="pissa"), tmp_path / "refused")
    train(dataclasses.replace(config, cores="never", checkpoint_every=3), tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.metrics["loss"].notna().sum() == 3
    assert not run.snapshots
    checkpoints = Run(tmp_path / "run/checkpoints")
    assert checkpoints.steps == [3]
    assert set(checkpoints.modules["module"]) == set(run.modules["module"])


def test_under_fsdp_step_masks_advance_and_are_recorded(config, tmp_path, monkeypatch):
    masked = dataclasses.replace(config, method="droplora", granularity="step")
    train(masked, tmp_path / "whole")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded = dataclasses.replace(masked, cores="never", checkpoint_every=3)
    train(sharded, tmp_path / "sharded")
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "sharded")
    assert run.mask_law == whole.mask_law
    for rank in whole.modules["r"].unique():
        steps, masks = run.masks_of_rank(int(rank))
        assert steps.tolist() == [1, 2, 3]
        np.testing.assert_array_equal(masks, whole.masks_of_rank(int(rank))[1])
    np.testing.assert_allclose(run.metrics["loss"], whole.metrics["loss"], rtol=1e-6)


def test_the_last_step_is_evaluated(config, tmp_path):
    train(config, tmp_path / "run")
    metrics = Run(tmp_path / "run").metrics
    assert metrics.loc[metrics["eval_response_loss"].notna(), "step"].tolist() == [0, 3]


def test_long_rows_are_dropped_and_counted(config, tmp_path):
    short = dataclasses.replace(config, max_length=48, eval_split="none")
    with pytest.raises(UserError, match=r"raise `max_length` \(now 48\)"):
        train(short, tmp_path / "refused")
    train(dataclasses.replace(short, drop_long_rows=True), tmp_path / "run")
    facts = Run(tmp_path / "run").description["provenance"]
    assert 0 < facts["rows"]["train"] < 32
    assert facts["rows"]["train"] + facts["rows_dropped"]["train"] == 32


def test_rows_beyond_the_context_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "context_length", lambda model: 40)
    with pytest.raises(UserError, match=r"more than the base's context of 40: lower `max_length`"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(dataclasses.replace(config, max_length=40, drop_long_rows=True), tmp_path / "run")


def test_validation_examples_are_evaluated_by_default(config, tmp_path):
    _, trainer = build(config, tmp_path / "a")
    _, other = build(dataclasses.replace(config, eval_split="test"), tmp_path / "b")
    assert trainer.eval_dataset != other.eval_dataset
    assert list(trainer.train_dataset) == list(other.train_dataset)
